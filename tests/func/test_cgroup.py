# SPDX-License-Identifier: Apache-2.0
"""Workers are bound in the host's memory, by a cgroup a VM."""

import os
import pathlib

import pytest

import window_peer
from support import wait_until


def memory_cgroup(pid):
    """The directory of the process's cgroup that has the memory controller."""
    mounts = [line.split() for line in pathlib.Path("/proc/self/mounts").read_text().splitlines()]
    for line in pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for _, where, kind, options, *_ in mounts:
            v1 = kind == "cgroup" and "memory" in controllers.split(",") and "memory" in options
            v2 = kind == "cgroup2" and controllers == "" and "memory" in pathlib.Path(
                where, "cgroup.controllers").read_text()
            if v1 or v2:
                return pathlib.Path(where + path.rstrip("/"))
    return None


def can_make(directory):
    try:
        (directory / "vgpu-test-probe").mkdir()
    except OSError:
        return False
    (directory / "vgpu-test-probe").rmdir()
    return True


@pytest.fixture
def own():
    directory = memory_cgroup(os.getpid())
    if directory is None or not can_make(directory):
        pytest.skip("no cgroup with a memory controller can be made here")
    return directory


def bound_of(directory):
    for name in ("memory.max", "memory.limit_in_bytes"):
        if (directory / name).exists():
            return int((directory / name).read_text())
    raise AssertionError(f"no bound in {directory}")


def test_the_workers_of_a_vm_share_one_bound(mediator, own):
    m = mediator({1: ("A", 1), 2: ("A", 1)}, worker_memory_mib=512, log_level="debug")
    with window_peer.Peer(m.state / "run/vm1.sock", slots=2, window_bytes=4 << 20) as peer:
        peer.connect().hello()
        for slot in (0, 1):
            peer.open(slot).ping()
        pids = {entry["worker_pid"] for entry in m.events("process", vm=1)}
        assert len(pids) == 2
        cgroups = {memory_cgroup(pid) for pid in pids}
        assert len(cgroups) == 1
        directory = cgroups.pop()
        assert own in directory.parents
        assert bound_of(directory) == 512 << 20
    wait_until(lambda: not (directory / "cgroup.procs").read_text(), "an empty cgroup")
    m.stop()
    assert not directory.exists()


def test_a_cgroup_that_cannot_be_had_is_a_warning(mediator):
    m = mediator(worker_memory_mib=512, worker_cgroup="/proc/no-cgroup")
    assert m.messages("without a bound on their memory")
    with window_peer.Peer(m.state / "run/vm1.sock") as peer:
        peer.connect().hello().open().ping()
