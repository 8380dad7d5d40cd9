# SPDX-License-Identifier: Apache-2.0
"""The registry's file when its writer is killed, at whatever instant."""

import os
import random
import shutil
import sqlite3
import subprocess
import time

import pytest

import support
from store_support import PROBE, Running, check_counted, probe, query, refusal, rounds, show

KILLS = rounds(300)
NOW = len(list((support.REPOSITORY / "src/store/schema").glob("*.sql")))


class Aim:
    """When to kill a command so that it is near its end: a bit later after a kill that
    came too early, a bit earlier after one that came too late."""

    def __init__(self, chance, *arguments):
        started = time.monotonic()
        probe(*arguments)
        self.delay_s = time.monotonic() - started
        self.chance = chance

    def wait(self):
        time.sleep(self.delay_s * self.chance.uniform(0.7, 1.2))

    def learn(self, was_done):
        self.delay_s *= 0.8 if was_done else 1.3


def test_what_was_acknowledged_survives_hundreds_of_kills(place):
    file = place / "vgpu.db"
    probe("create", file)
    chance = random.Random(4)
    reached = killed_in_work = 0
    for turn in range(KILLS):
        with Running("count", file, 0) as writer:
            if turn % 3:
                writer.wait_lines(1)
            time.sleep(chance.uniform(0, 0.012))
            acknowledged = [int(line) for line in writer.kill()]
        killed_in_work += bool(acknowledged)
        reached = check_counted(file, acknowledged, reached)
        if turn % 50 == 0:
            assert show(file)["left"] == reached
    # It was at work when it was killed, not only on its way there.
    assert killed_in_work >= KILLS // 2
    assert reached >= killed_in_work


def test_a_killed_restore_leaves_one_of_the_two_states(place):
    file = place / "vgpu.db"
    backups = []
    probe("create", file)
    for prefix, count in [("red", 40), ("green", 70)]:
        probe("fill", file, prefix, count)
        backups.append(place / f"{prefix}.db")
        probe("backup", file, backups[-1])
    chance = random.Random(5)
    seen = set()
    for turn in range(rounds(60)):
        with Running("restore", file, 0, *backups) as writer:
            writer.wait_lines(1 + turn % 2)
            time.sleep(chance.uniform(0, 0.02))
            writer.kill()
        assert query(file, "PRAGMA integrity_check") == [("ok",)]
        [(state, count)] = query(file, "SELECT pools.name, count(*) FROM vms JOIN pools ON"
                                       " pools.id = vms.pool GROUP BY pools.name")
        assert (state, count) in [("red", 40), ("green", 70)]
        foreign = query(file, f"SELECT name FROM vms WHERE name NOT LIKE '{state}-%'")
        assert foreign == []
        seen.add(state)
    assert seen == {"red", "green"}


def test_a_killed_backup_leaves_a_whole_file_or_none(place):
    file = place / "vgpu.db"
    probe("create", file)
    probe("fill", file, "red", 300)
    chance = random.Random(6)
    outcomes = set()
    aim = Aim(chance, "backup", file, place / "backup-0")
    for turn in range(1, rounds(60)):
        target = place / f"backup-{turn}"
        with Running("backup", file, target) as writer:
            aim.wait()
            writer.kill()
        outcomes.add(target.exists())
        aim.learn(target.exists())
        if target.exists():
            assert query(target, "PRAGMA integrity_check") == [("ok",)]
            assert query(target, "SELECT count(*) FROM vms") == [(300,)]
    # No nameless remains either.
    names = {path.name for path in place.iterdir()}
    assert names <= {"vgpu.db", "vgpu.db-wal", "vgpu.db-shm",
                     *(f"backup-{turn}" for turn in range(60))}
    assert outcomes == {True, False}


def version_1(file):
    sql = (support.REPOSITORY / "tests/unit/data/store_v1.sql").read_text()
    with sqlite3.connect(file) as database:
        database.executescript(sql)
    database.close()


def read_somehow(file):
    done = subprocess.run([PROBE, "open", file, "read"], capture_output=True, text=True,
                          timeout=support.WAIT_S, check=False)
    return done.stdout


def test_a_killed_migration_leaves_the_old_version_or_the_new(place):
    chance = random.Random(7)
    outcomes = []
    version_1(place / "version-1.db")
    shutil.copy(place / "version-1.db", place / "first.db")
    aim = Aim(chance, "open", place / "first.db", "write")
    for turn in range(rounds(50)):
        file = place / f"old-{turn}.db"
        shutil.copy(place / "version-1.db", file)
        with Running("open", file, "write") as writer:
            aim.wait()
            writer.kill()
        # A reader clears up after it, and says what is missing.
        if "opened" not in (said := read_somehow(file)):
            assert "its schema has version 1" in said
        [(version,)] = query(file, "PRAGMA user_version")
        outcomes.append(version)
        aim.learn(version == NOW)
        assert version in (1, NOW)
        tables = {name for (name,) in
                  query(file, "SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert ("devices" in tables) == (version == NOW)
        assert query(file, "SELECT vm_id, name FROM vms ORDER BY vm_id") == [(1, "web"), (7, None)]
        assert probe("open", file, "write") == "opened\n"
        assert query(file, "PRAGMA user_version") == [(NOW,)]
    assert set(outcomes) == {1, NOW}


@pytest.mark.fault_points
@pytest.mark.parametrize("step", range(1, NOW))
def test_a_migration_killed_after_each_step_is_done_anew(place, step):
    file = place / "old.db"
    version_1(file)
    probe("open", file, "write", status=-9, env={**os.environ, "VGPU_FAULT": f"store_step:{step}"})
    assert query(file, "PRAGMA user_version") == [(1,)]
    assert refusal("open", file, "read")[1].count("has version 1")
    assert probe("open", file, "write") == "opened\n"
    assert probe("open", file, "read") == "opened\n"


@pytest.mark.fault_points
def test_between_a_row_and_its_event_a_kill_takes_both_back(place):
    file = place / "vgpu.db"
    probe("create", file)
    for row in range(1, 5):
        with Running("count", file, 0,
                     env={**os.environ, "VGPU_FAULT": f"store_row:{row}"}) as writer:
            assert writer.process.wait(support.WAIT_S) == -9
            acknowledged = [int(line) for line in writer.kill()]
        check_counted(file, acknowledged, show(file)["left"])


@pytest.mark.fault_points
def test_a_restore_killed_between_two_tables_has_not_begun(place):
    file = place / "vgpu.db"
    probe("create", file)
    probe("fill", file, "red", 5)
    probe("backup", file, place / "red.db")
    probe("fill", file, "green", 9)
    probe("restore", file, 1, place / "red.db", status=-9,
          env={**os.environ, "VGPU_FAULT": "store_restore:1"})
    assert query(file, "SELECT count(*) FROM vms WHERE name LIKE 'green-%'") == [(9,)]
    assert query(file, "SELECT count(*) FROM vms") == [(9,)]
    assert query(file, "SELECT name FROM pools WHERE id = 'B'") == [("green",)]
