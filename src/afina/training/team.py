"""Several devices that train one network: each takes its part of every batch, and gradients are averaged.

Fabric's strategy joins the processes and carries their sums. The process that asks for the training is the first of
them: it alone judges, writes checkpoints and tells; the others are started here, do its steps, and end with it.
"""

import contextlib
import multiprocessing
import os
import pickle
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from afina.errors import InputError, TrainingError

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

_HOST = "127.0.0.1"
_LOOK = 1.0


@dataclass(frozen=True)
class Seat:
    """Which of the processes this is, and where they meet.

    Attributes:
        rank: From 0, the one that asked for the training.
        size: Processes.
        port: Of the first one, on this machine.
    """

    rank: int = 0
    size: int = 1
    port: int = 0


class Team:
    """What the steps of a training need of the others.

    Args:
        fabric: Of this process.
        seat: Its place.
    """

    def __init__(self, fabric: "Fabric", seat: Seat) -> None:
        self.fabric, self.rank, self.size = fabric, seat.rank, seat.size

    @property
    def alone(self) -> bool:
        """Whether there is one device."""
        return self.size == 1

    @property
    def leads(self) -> bool:
        """Whether this process judges and tells."""
        return self.rank == 0

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Give every parameter the mean gradient of all processes."""
        if self.alone:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        summed = self.fabric.all_reduce(flat, reduce_op="mean")
        assert isinstance(summed, Tensor)
        for gradient, mean in zip(gradients, summed.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def mean(self, value: float) -> float:
        """The mean of a number over all processes; what is not finite in one is so in all."""
        if self.alone:
            return value
        found = self.fabric.all_reduce(torch.tensor(value, device=self.fabric.device), reduce_op="mean")
        assert isinstance(found, Tensor)
        return float(found)

    def told(self, value: float) -> float:
        """What the first process says, in all of them."""
        return value if self.alone else float(self.fabric.broadcast(value))


def strategy_of(seat: Seat) -> "DDPStrategy":
    """How Fabric joins the process at `seat` with the others."""
    from lightning_fabric.plugins.environments import LightningEnvironment
    from lightning_fabric.strategies import DDPStrategy

    class _Environment(LightningEnvironment):
        """Processes that are started here, and not by Fabric, which would run the user's program again."""

        creates_processes_externally = True
        main_address = _HOST
        main_port = seat.port

        def local_rank(self) -> int:
            return seat.rank

        def node_rank(self) -> int:
            return 0

        def world_size(self) -> int:
            return seat.size

        def global_rank(self) -> int:
            return seat.rank

    return DDPStrategy(cluster_environment=_Environment())


@contextlib.contextmanager
def gathered(devices: int, work: Callable[..., None], *arguments: Any) -> Iterator[Seat]:
    """For the length of a `with` block, `devices - 1` other processes run `work(seat, *arguments)`.

    The block does the same work, at the seat that it is given. The others are gone when it ends, however it ends.

    Raises:
        InputError: there are not so many devices.
        TrainingError: one of the others died, so that the block could not go on.
    """
    if devices == 1:
        yield Seat()
        return
    _check(devices)
    threads, port = torch.get_num_threads(), _free_port()
    # As plain bytes: handed over as they are, tensors would be moved into memory that the processes share.
    sent = pickle.dumps(arguments)
    spawn = multiprocessing.get_context("spawn")
    seats = [Seat(rank, devices, port) for rank in range(1, devices)]
    others = [spawn.Process(target=_join, args=(work, seat, os.getpid(), sent), daemon=True) for seat in seats]
    try:
        for process in others:
            process.start()
        yield Seat(0, devices, port)
    except RuntimeError as error:
        raise _lost(others, error) from error
    finally:
        for process in others:
            if process.pid is not None:
                process.terminate()
                process.join()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        torch.set_num_threads(threads)


def _join(work: Callable[..., None], seat: Seat, parent: int, sent: bytes) -> None:
    """One of the other processes."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    work(seat, *pickle.loads(sent))


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone, which may be killed without a word."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


def _lost(others: Sequence[Any], error: RuntimeError) -> Exception:
    """The error that says which process is gone; where none is, the error itself."""
    for process in others:
        process.join(_LOOK)
    dead = [(rank, process.exitcode) for rank, process in enumerate(others, 1) if process.exitcode]
    if not dead:
        return error
    return TrainingError(
        f"Training stopped: the process of device {dead[0][0]} ended with code {dead[0][1]}.",
        why=str(error).strip().splitlines()[0] if str(error).strip() else "",
        fix="If memory is short, use a smaller batch_size or fewer devices.",
    )


def _check(devices: int) -> None:
    if torch.cuda.is_available() and devices > torch.cuda.device_count():
        raise InputError(
            f"A training is to use {devices} GPUs, and {torch.cuda.device_count()} are here.", fix="Ask for fewer."
        )


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((_HOST, 0))
        return int(found.getsockname()[1])
