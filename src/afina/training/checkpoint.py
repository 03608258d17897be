"""The state of a training on disk: plain tensors and numbers, written whole or not at all."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from afina.errors import StorageError
from afina.graph.network import Network
from afina.progress import Progress
from afina.tasks.table import identity_of
from afina.training.config import FitConfig

_FORMAT = "afina/training/1"


def identity(networks: Sequence[Network | None], config: FitConfig, data: str, device: str) -> str:
    """A digest of all that decides how a training goes: another digest, another training.

    Args:
        networks: The network to train, its teacher, and the network whose zeros stay, all as they are before training;
            None where there is none.
        config: How it is trained.
        data: Fingerprint of the data.
        device: Type of the device.
    """
    digest = hashlib.sha256()
    plain = dataclasses.asdict(config.resolved())
    digest.update(json.dumps([_FORMAT, torch.__version__, plain, data, device], sort_keys=True).encode())
    for part in networks:
        digest.update(b"network" if part else b"none")
        if part is not None:
            _add_network(digest, part)
    return digest.hexdigest()


def write_state(path: Path, identity: str, state: dict[str, Any]) -> None:
    """Write the state of a training, atomically.

    Args:
        path: The file.
        identity: The digest of the training, as `identity` gives it.
        state: Tensors, numbers and text, and lists and dicts of them.

    Raises:
        StorageError: it could not be written; what was there before is as it was.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            torch.save({"format": _FORMAT, "identity": identity, "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch gives a RuntimeError where the disk is full
        raise StorageError(
            f"The training checkpoint {path} could not be written.",
            why=str(error).splitlines()[0] if str(error) else type(error).__name__,
            fix="Free some space or choose a folder that can be written; training then goes on from the epoch before.",
        ) from error
    finally:
        with contextlib.suppress(OSError):  # the folder itself may not be there
            part.unlink()


def read_state(path: Path, identity: str, progress: Progress) -> dict[str, Any] | None:
    """The state that a training has written; None where there is none to go on from.

    Args:
        path: The file.
        identity: The digest of the training; a file of another training is not used.
        progress: Gets a line where a file is there and not used.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        is_this_training = content["format"] == _FORMAT and content["identity"] == identity
        state = content["state"]
    except Exception:
        # Whatever a broken file makes torch.load raise (it has many ways), the answer is the same.
        progress.say(f"{path.name} is damaged and is left aside: training starts from the beginning.")
        return None
    if not is_this_training:
        progress.say(f"{path.name} is of another training and is left aside: training starts from the beginning.")
        return None
    return dict(state)


def _add_network(digest: "hashlib._Hash", network: Network) -> None:
    digest.update(repr((network.input, identity_of(network.task), sorted(network.frozen))).encode())
    with network.inference():  # the mode it happens to be in is not part of what it is
        digest.update(str(network.graph).encode())
    trainable = {name for name, p in network.module.named_parameters(remove_duplicate=False) if p.requires_grad}
    for name, tensor in network.module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {name in trainable}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
