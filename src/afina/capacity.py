"""Cores and memory that this process may use: those of the machine, or of the container (control group) around it."""

import os
from collections.abc import Iterator
from math import ceil
from pathlib import Path


def available_cores() -> int:
    """Cores that this process may use: by its affinity, and by the quota of the container that it runs in."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(cores, cores_of_container() or cores)


def available_memory() -> int:
    """Bytes that this process may still take: of the machine, and of the container that it runs in."""
    import psutil

    free = int(psutil.virtual_memory().available)
    return min(free, memory_of_container() or free)


def cores_of_container(root: Path = Path("/")) -> int | None:
    """Whole cores that the quotas of this process' control groups allow, rounded up; None where there is no quota.

    A container that is started with half a core sees all cores of its machine, and is slowed down as soon as it has
    used its share: more threads than that wait for each other. The smallest quota on the way to the root holds.

    Args:
        root: The root of the file system.
    """
    quotas = [quota for folder in _folders(root) if (quota := _quota(folder)) is not None]
    return max(1, ceil(min(quotas))) if quotas else None


def memory_of_container(root: Path = Path("/")) -> int | None:
    """Bytes that the limits of this process' control groups leave; None where there is no limit.

    What the system keeps of files that were read counts as free: it gives that back when memory is short.

    Args:
        root: The root of the file system.
    """
    left = [free for folder in _folders(root, "memory") if (free := _memory_left(folder)) is not None]
    return max(1, min(left)) if left else None


def _folders(root: Path, controller: str = "cpu") -> Iterator[Path]:
    """Folders of the control groups of this process and of those around them, of both versions of control groups."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and controller not in controllers.split(","):
            continue
        # Version 2 names no controllers and has one tree; version 1 has a tree for each set of controllers.
        trees = (f"sys/fs/cgroup/{controller}", f"sys/fs/cgroup/{controllers}") if controllers else ("sys/fs/cgroup",)
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for tree in trees:
            # A container sees its own group as the root of the tree, whatever its path is: the root is read too.
            for length in range(len(parts), -1, -1):
                yield root.joinpath(tree, *parts[:length])


def _quota(folder: Path) -> float | None:
    """Cores that one control group may use, by the files of version 2 or 1; None where it has no limit."""
    both = (_read(folder / "cpu.max") or "").split()
    if len(both) != 2:
        both = [_read(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
    try:
        quota, period = (float(text) for text in both)
    except ValueError:  # `max`, or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


def _memory_left(folder: Path) -> int | None:
    """Bytes that one control group may still take, by the files of version 2 or 1; None where it has no limit."""
    for limit, used, cached in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        statistics = dict(line.split() for line in (_read(folder / "memory.stat") or "").splitlines())
        try:
            whole, taken = (int(_read(folder / name) or "") for name in (limit, used))
        except ValueError:  # `max`, or no such file
            continue
        # Without a limit, version 1 gives the largest number of pages.
        return whole - taken + int(statistics.get(cached, 0)) if whole < 2**62 else None
    return None


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
