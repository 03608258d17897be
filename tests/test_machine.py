"""Cores that a process may really use: the quota of its container counts, not the cores of the machine around it."""

import pytest

from afina.devices import machine
from afina.devices.container import cores_of_container


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
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(machine, "cores_of_container", lambda: 3)
    assert machine.available_cores() == 3
    monkeypatch.setattr(machine, "cores_of_container", lambda: 16)
    assert machine.available_cores() == 8
    monkeypatch.setattr(machine, "cores_of_container", lambda: None)
    assert machine.available_cores() == 8
