# SPDX-License-Identifier: Apache-2.0
"""A database of each older version becomes what a new one is."""

import sqlite3

import pytest

from store_support import Running, probe, query, refusal, show
from support import REPOSITORY

STEPS = sorted((REPOSITORY / "src/store/schema").glob("*.sql"), key=lambda path: int(path.stem))
OBJECTS = ("SELECT type, name, tbl_name, sql FROM sqlite_master"
           " WHERE name NOT LIKE 'sqlite%' ORDER BY name")


def make(file, version, rows=()):
    with sqlite3.connect(file) as database:
        for step in STEPS[:version]:
            database.executescript(step.read_text())
        for row in ["INSERT INTO pools (id, name) VALUES ('A', 'Pool A'), ('B', 'Pool B')", *rows]:
            database.execute(row)
        database.execute(f"PRAGMA application_id = {0x76475055}")
        database.execute(f"PRAGMA user_version = {version}")
    database.close()


def test_the_steps_are_numbered_from_one_on():
    assert [int(path.stem) for path in STEPS] == list(range(1, len(STEPS) + 1))
    assert len(STEPS) >= 3


@pytest.mark.parametrize("version", range(1, len(STEPS)))
def test_each_older_version_becomes_the_schema_of_a_new_database(place, version):
    file = place / "old.db"
    make(file, version, ["INSERT INTO vms (vm_id, name, pool, priority, created_us) VALUES"
                         " (1, 'left', 'A', 2, 7), (2, 'right', 'B', 0, 8)",
                         "INSERT INTO events (time_us, actor, action) VALUES (9, 'root', 'x')"])
    assert f"its schema has version {version} and" in refusal("open", file, "read")[1]
    assert probe("open", file, "write") == "opened\n"
    probe("create", place / "new.db")
    assert query(file, OBJECTS) == query(place / "new.db", OBJECTS)
    assert query(file, "PRAGMA user_version") == [(len(STEPS),)]
    assert query(file, "SELECT vm_id, name, pool, priority, created_us FROM vms ORDER BY vm_id") \
        == [(1, "left", "A", 2, 7), (2, "right", "B", 0, 8)]
    assert query(file, "SELECT actor, action, before, after FROM events ORDER BY id") == [
        ("root", "x", None, None),
        ("schema", "migrate", f'{{"schema":{version}}}', f'{{"schema":{len(STEPS)}}}')]
    assert show(file)["left"] == 0
    assert probe("count", file, 2) == "1\n2\n"


def test_two_who_bring_it_up_to_date_at_once_do_it_once(place):
    file = place / "old.db"
    make(file, 1)
    running = [Running("open", file, "write") for _ in range(6)]
    for one in running:
        with one:
            assert one.finish() == ["opened"]
    assert query(file, "SELECT count(*) FROM events WHERE action = 'migrate'") == [(1,)]
