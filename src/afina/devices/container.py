"""The limit on processor time of the container (control group) that this process runs in."""

from collections.abc import Iterator
from math import ceil
from pathlib import Path


def cores_of_container(root: Path = Path("/")) -> int | None:
    """Whole cores that the quotas of this process' control groups allow, rounded up; None where there is no quota.

    A container that is started with half a core sees all cores of its machine, and is slowed down as soon as it has
    used its share: more threads than that wait for each other. The smallest quota on the way to the root holds.

    Args:
        root: The root of the file system.
    """
    quotas = [quota for folder in _folders(root) if (quota := _quota(folder)) is not None]
    return max(1, ceil(min(quotas))) if quotas else None


def _folders(root: Path) -> Iterator[Path]:
    """Folders of the control groups of this process and of those around them, of both versions of control groups."""
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        # Version 2 names no controllers and has one tree; version 1 has a tree for each set of controllers.
        trees = ("sys/fs/cgroup/cpu", f"sys/fs/cgroup/{controllers}") if controllers else ("sys/fs/cgroup",)
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


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
