# SPDX-License-Identifier: Apache-2.0
"""Each write, sync and truncation of the registry fails once, one after the other.

store_shim.c lets the N-th of them fail, for N = 1, 2, ... until a run meets none.
"""

import errno
import os
import shutil
import sqlite3
import subprocess

import pytest

import support
from store_support import PROBE, check_counted, probe, query, refusal, rounds

FAULTS = {"eio": errno.EIO, "half": 0}  # half a write, then ENOSPC
each_fault = pytest.mark.parametrize("fault", FAULTS)
STEPS_MAX = 400


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    path = tmp_path_factory.mktemp("shim") / "store_shim.so"
    source = support.REPOSITORY / "tests/func/store_shim.c"
    subprocess.run(["gcc", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC",
                    "-shared", "-o", path, source], check=True)
    return path


def each_step(shim, fault, directory, command):
    """Yields (a directory of its own, what the command printed) for each step that failed."""
    for step in range(1, STEPS_MAX, 5 // rounds(5)):
        place = directory / f"step-{step}"
        place.mkdir()
        mark = place / "mark"
        words = command(place)
        done = subprocess.run(
            [PROBE, *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=support.WAIT_S, check=False,
            env={**os.environ, "LD_PRELOAD": str(shim), "ASAN_OPTIONS": "verify_asan_link_order=0",
                 "STORE_SHIM": f"{step}:{FAULTS[fault]}:{mark}"})
        assert done.returncode in (0, 1), done
        if not mark.exists():
            assert done.returncode == 0 and step > 1
            return
        mark.unlink()
        yield place, done.stdout
        shutil.rmtree(place)
    raise AssertionError(f"more than {STEPS_MAX} steps")


def refused(output):
    """Its errno value; None when it was done."""
    last = output.splitlines()[-1]
    if not last.startswith("error "):
        return None
    assert int(last.split()[1]) in (errno.EIO, errno.ENOSPC), last
    return int(last.split()[1])


@each_fault
def test_a_change_is_done_or_refused_whichever_write_fails(place, shim, fault):
    good = place / "good.db"
    probe("create", good)
    probe("count", good, 2)

    def command(directory):
        shutil.copy(good, directory / "vgpu.db")
        return "count", directory / "vgpu.db", 3

    refusals = steps = 0
    for directory, output in each_step(shim, fault, place, command):
        file = directory / "vgpu.db"
        numbers = [int(line) for line in output.splitlines() if not line.startswith("error")]
        last = numbers[-1] if numbers else 2
        assert numbers == list(range(3, last + 1))
        assert check_counted(file, [last]) == last
        assert probe("count", file, 1) == f"{last + 1}\n"
        refusals += bool(refused(output))
        steps += 1
        assert bool(refused(output)) == (last < 5)
    # Some failures cost nothing: what is put in its place later is safe already.
    assert 0 < refusals < steps


def test_a_database_is_made_or_not_whichever_write_fails(place, shim):
    for directory, output in each_step(shim, "half", place, lambda path: ("create",
                                                                         path / "vgpu.db")):
        file = directory / "vgpu.db"
        if refused(output) and not file.exists():
            assert list(directory.iterdir()) == []
            assert probe("create", file) == "created\n"
        else:  # the database was made; one of the two VMs was refused, perhaps
            assert query(file, "PRAGMA integrity_check") == [("ok",)]
            assert query(file, "SELECT count(*) FROM pools") == [(2,)]
            assert refusal("create", file)[0] == errno.EEXIST


@each_fault
def test_a_backup_is_made_or_not_whichever_write_fails(place, shim, fault):
    good = place / "good.db"
    probe("create", good)
    probe("fill", good, "red", 30)
    refusals = 0
    for directory, output in each_step(shim, fault, place,
                                       lambda path: ("backup", good, path / "backup.db")):
        refusals += bool(refused(output))
        if refused(output):
            assert list(directory.iterdir()) == []
        else:
            assert query(directory / "backup.db", "SELECT count(*) FROM vms") == [(30,)]
    # Half a write is finished by a second one.
    assert refusals >= 3


def test_a_restore_is_done_or_not_whichever_write_fails(place, shim):
    good, backup = place / "good.db", place / "backup.db"
    probe("create", good)
    probe("fill", good, "red", 30)
    probe("backup", good, backup)
    probe("fill", good, "green", 40)

    def command(directory):
        shutil.copy(good, directory / "vgpu.db")
        return "restore", directory / "vgpu.db", 1, backup

    refusals = 0
    for directory, output in each_step(shim, "half", place, command):
        file = directory / "vgpu.db"
        state = query(file, "SELECT count(*), (SELECT name FROM pools WHERE id = 'B') FROM vms")
        assert state == ([(40, "green")] if refused(output) else [(30, "red")])
        assert query(file, "PRAGMA integrity_check") == [("ok",)]
        refusals += bool(refused(output))
        probe("restore", file, 1, backup)
    assert refusals > 0


def test_a_migration_is_done_or_not_whichever_write_fails(place, shim):
    sql = (support.REPOSITORY / "tests/unit/data/store_v1.sql").read_text()
    with sqlite3.connect(place / "old.db") as database:
        database.executescript(sql)
    database.close()

    def command(directory):
        shutil.copy(place / "old.db", directory / "vgpu.db")
        return "open", directory / "vgpu.db", "write"

    refusals = 0
    for directory, output in each_step(shim, "half", place, command):
        file = directory / "vgpu.db"
        [(version,)] = query(file, "PRAGMA user_version")
        assert (version == 1) == bool(refused(output)), output
        assert query(file, "PRAGMA integrity_check") == [("ok",)]
        assert probe("open", file, "write") == "opened\n"
        assert query(file, "SELECT vm_id FROM vms ORDER BY vm_id") == [(1,), (7,)]
        refusals += bool(refused(output))
    assert refusals > 0
