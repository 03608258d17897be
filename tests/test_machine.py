"""What a process may really use: the limits of its container count, not the cores and the memory of the machine."""

import pytest

from afina import capacity
from afina.capacity import cores_of_container, memory_of_container


def _files(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


V2, V1 = {"proc/self/cgroup": "0::/box/app\n"}, {"proc/self/cgroup": "5:memory:/box\n4:cpu,cpuacct:/box\n"}
QUOTAS = {
    "two cores": ({**V2, "sys/fs/cgroup/box/app/cpu.max": "200000 100000\n"}, 2),
    "half a core is one": ({**V2, "sys/fs/cgroup/box/app/cpu.max": "50000 100000\n"}, 1),
    "two and a half are three": ({**V2, "sys/fs/cgroup/box/app/cpu.max": "250000 100000\n"}, 3),
    "no quota": ({**V2, "sys/fs/cgroup/box/app/cpu.max": "max 100000\n"}, None),
    "a quota on the group around it": (
        {**V2, "sys/fs/cgroup/box/cpu.max": "100000 100000", "sys/fs/cgroup/box/app/cpu.max": "400000 100000"},
        1,
    ),
    "the container's own view": ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
    "the first version": (
        {
            **V1,
            "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "150000\n",
            "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "1e5\n",
        },
        2,
    ),
    "the first version from inside": (
        {
            **V1,
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        4,
    ),
    "the first version without a quota": (
        {**V1, "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"},
        None,
    ),
    "nonsense": ({**V2, "sys/fs/cgroup/cpu.max": "many cores please\n"}, None),
    "no such files, as on a Mac": ({}, None),
}


@pytest.mark.parametrize(("files", "cores"), QUOTAS.values(), ids=QUOTAS)
def test_the_quota_of_a_container_is_read_and_rounded_up(files, cores, tmp_path):
    assert cores_of_container(_files(tmp_path, files)) == cores


def test_no_more_cores_are_used_than_the_container_allows(monkeypatch):
    monkeypatch.setattr(capacity.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(capacity, "cores_of_container", lambda: 3)
    assert capacity.available_cores() == 3
    monkeypatch.setattr(capacity, "cores_of_container", lambda: 16)
    assert capacity.available_cores() == 8
    monkeypatch.setattr(capacity, "cores_of_container", lambda: None)
    assert capacity.available_cores() == 8


MEMORIES = {
    "a limit": (
        {**V2, "sys/fs/cgroup/box/app/memory.max": "8000", "sys/fs/cgroup/box/app/memory.current": "3000"},
        5000,
    ),
    "what is cached is free": (
        {
            **V2,
            "sys/fs/cgroup/box/memory.max": "8000",
            "sys/fs/cgroup/box/memory.current": "7000",
            "sys/fs/cgroup/box/memory.stat": "anon 1000\ninactive_file 6000\n",
        },
        7000,
    ),
    "no limit": ({**V2, "sys/fs/cgroup/box/memory.max": "max", "sys/fs/cgroup/box/memory.current": "7000"}, None),
    "the first version": (
        {
            **V1,
            "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "9000\n",
            "sys/fs/cgroup/memory/box/memory.usage_in_bytes": "4000\n",
        },
        5000,
    ),
    "the first version without a limit": (
        {
            **V1,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "4000",
        },
        None,
    ),
    "no such files, as on a Mac": ({}, None),
}


@pytest.mark.parametrize(("files", "free"), MEMORIES.values(), ids=MEMORIES)
def test_the_memory_that_a_container_leaves_is_read(files, free, tmp_path):
    assert memory_of_container(_files(tmp_path, files)) == free
    assert capacity.available_memory() > 0
