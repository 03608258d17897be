"""Several devices that train one network: each takes its part of every batch, and gradients are averaged.

Fabric's strategy joins the processes and reduces their gradients. The process that asks for the training is the first
of them: it alone evaluates, writes checkpoints and reports progress; the others are started here, take the same steps,
and end with it.
"""

import contextlib
import multiprocessing
import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from afina.errors import InputError, TrainingError
from afina.store.sending import packed

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

_HOST = "127.0.0.1"
_LOOK = 1.0
# What Fabric sets for a group of processes, and leaves.
_OF_FABRIC = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Seat:
    """The place of this process among those that train together, and the port at which they meet.

    Attributes:
        rank: Number of the process; 0 is the one that called `fit`.
        size: How many processes there are.
        port: TCP port on this machine at which the first process waits for the others.
    """

    rank: int = 0
    size: int = 1
    port: int = 0


class Team:
    """The processes that train one network together, as the steps of a training see them.

    Args:
        fabric: The `Fabric` of this process.
        seat: The place of this process among the others.
    """

    def __init__(self, fabric: "Fabric", seat: Seat) -> None:
        self.fabric, self.rank, self.size = fabric, seat.rank, seat.size

    @property
    def alone(self) -> bool:
        """Whether there is one device."""
        return self.size == 1

    @property
    def leads(self) -> bool:
        """Whether this process evaluates, writes checkpoints and reports progress."""
        return self.rank == 0

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Give every parameter the mean of its gradients in all processes, by one `all_reduce` of all of them."""
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
        mean = self.fabric.all_reduce(torch.tensor(value, device=self.fabric.device), reduce_op="mean")
        assert isinstance(mean, Tensor)
        return float(mean)

    def broadcast(self, value: float) -> float:
        """The value that the first process has, in all of them."""
        return value if self.alone else float(self.fabric.broadcast(value))


def strategy_of(seat: Seat) -> "DDPStrategy":
    """The strategy by which Fabric joins the process at `seat` with the others."""
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

    What happens with three devices: this process packs the arguments once, starts processes 1 and 2 and waits until
    each reports that it has unpacked them (one that cannot, because a class is defined in the user's script, would
    otherwise leave this process waiting in the first `all_reduce` for ever). All three then meet at `port` and take
    steps; every `all_reduce` waits for all of them. If process 2 dies, the `all_reduce` fails here with an error of the
    connection, which does not name the cause: the error that process 2 sent is raised in its place. If this process is
    killed, the others see that their parent is gone and end by themselves.

    Raises:
        InputError: there are not so many devices, or the arguments cannot be sent to another process.
        TrainingError: one of the others ended, so that the block could not go on.
    """
    if devices == 1:
        yield Seat()
        return
    _check(devices)
    fix = "Define the dataset and its transforms in a module, or train on one device."
    packed_arguments, threads = packed(arguments, "What is trained on", fix), torch.get_num_threads()
    before = {name: os.environ.get(name) for name in _OF_FABRIC}
    port = _free_port()
    others = [_Other(work, Seat(rank, devices, port), packed_arguments) for rank in range(1, devices)]
    try:
        for other in others:
            other.process.start()
        for other in others:
            other.wait_until_ready()
        yield Seat(0, devices, port)
    except RuntimeError as error:
        lost = next((other for other in others if other.is_lost()), None)
        if lost is None or not _is_of_the_others(error):
            raise
        raise lost.error() from error
    finally:
        for other in others:
            other.end()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        torch.set_num_threads(threads)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class _Other:
    """One of the other processes, as the first one sees it.

    Args:
        work: The function that it runs.
        seat: Its place.
        packed_arguments: The arguments of the function, as bytes.
    """

    def __init__(self, work: Callable[..., None], seat: Seat, packed_arguments: bytes) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._seat, self._messages, self._reason = seat, spawn.SimpleQueue(), ""
        self.process = spawn.Process(
            target=_join, args=(work, seat, os.getpid(), packed_arguments, self._messages), daemon=True
        )

    def wait_until_ready(self) -> None:
        """Wait until it has its arguments; an error before that would leave the first process waiting for ever."""
        while self._messages.empty():
            if not self.process.is_alive() and self._messages.empty():
                raise self.error()
            time.sleep(_LOOK / 20)
        self._read()
        if self._reason:
            raise self.error()

    def is_lost(self) -> bool:
        """Whether it has ended by itself, or is about to."""
        self.process.join(_LOOK)
        return self.process.exitcode not in (None, 0)

    def error(self) -> TrainingError:
        """An error that says that the process ended, and why, as far as it could send the reason."""
        self._read()
        self.process.join(_LOOK)
        ended = "failed" if self._reason else f"ended with code {self.process.exitcode}"
        return TrainingError(
            f"Training stopped: the process of device {self._seat.rank} {ended}.",
            why=self._reason,
            fix="" if self._reason else "If memory is short, use a smaller batch_size or fewer devices.",
        )

    def end(self) -> None:
        """Stop the process, if it was started."""
        if self.process.pid is not None:
            self.process.terminate()
            self.process.join()

    def _read(self) -> None:
        while not self._messages.empty():
            self._reason = self._messages.get()


def _join(work: Callable[..., None], seat: Seat, parent: int, packed_arguments: bytes, messages: Any) -> None:
    """Run in one of the other processes: sends an empty text when it is ready, and its error where it cannot go on."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        arguments = pickle.loads(packed_arguments)
        messages.put("")
        work(seat, *arguments)
    except Exception as error:
        messages.put(f"{type(error).__name__}: {str(error).strip()}")
        sys.exit(1)


def _end_with(parent: int) -> None:
    """End this process when the one that started it is gone, which may be killed without a word."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os._exit(1)


def _is_of_the_others(error: RuntimeError) -> bool:
    """Whether an error is about the connection to the other processes, and not one of the training itself."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error).lower()


def _check(devices: int) -> None:
    if devices < 1:
        raise InputError(f"A training is to use {devices} devices.", fix="Give 1 or more.")
    if torch.cuda.is_available() and devices > torch.cuda.device_count():
        raise InputError(
            f"A training is to use {devices} GPUs, and {torch.cuda.device_count()} are here.", fix="Ask for fewer."
        )
    if torch.backends.mps.is_available():
        raise InputError(f"A training is to use {devices} devices, and this machine has one.", fix="Ask for one.")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((_HOST, 0))
        return int(listener.getsockname()[1])
