# SPDX-License-Identifier: Apache-2.0
"""Several programs at one registry at the same time."""

import errno

import pytest

from store_support import Running, check_counted, probe, query, refusal, show


@pytest.mark.parametrize("writers", [2, 8])
def test_writers_at_once_lose_no_update(place, writers):
    file = place / "vgpu.db"
    times = 240 // writers
    probe("create", file)
    running = [Running("count", file, times) for _ in range(writers)]
    acknowledged = []
    for writer in running:
        with writer:
            acknowledged += map(int, writer.finish())
    # Each step was seen by one alone.
    assert sorted(acknowledged) == list(range(1, writers * times + 1))
    assert check_counted(file, sorted(acknowledged)) == writers * times


def test_administrators_who_change_different_things_both_win(place):
    file = place / "vgpu.db"
    probe("create", file)
    with Running("set", file, "memory", 64) as one, Running("set", file, "sessions", 64) as other:
        one.finish()
        other.finish()
    assert (show(file)["memory"], show(file)["sessions"]) == (64, 64)


def test_a_second_writer_waits_and_is_told_when_the_first_never_ends(place):
    file = place / "vgpu.db"
    probe("create", file)
    with Running("begin", file) as first:
        first.wait_lines(1)
        with Running("count", file, 1) as second:
            second.process.stdin.close()  # no second try
            # A reader is not kept waiting.
            assert show(file)["left"] == 0
            code, message = second.wait_lines(1)[0].split(" ", 2)[1:]
    assert int(code) == errno.EBUSY
    assert "another program is changing it" in message
    assert show(file)["left"] == 0


def test_readers_see_a_restore_whole_or_not_at_all(place):
    file = place / "vgpu.db"
    backups = []
    probe("create", file)
    for prefix, count in [("red", 40), ("green", 70)]:
        probe("fill", file, prefix, count)
        backups.append(place / f"{prefix}.db")
        probe("backup", file, backups[-1])
    with Running("watch", file) as one, Running("watch", file) as other, \
            Running("restore", file, 0, *backups) as writer:
        writer.wait_lines(60)
        events = query(file, "SELECT count(*) FROM events WHERE action = 'restore'")
        seen = [set(one.kill()), set(other.kill())]
        done = len(writer.kill())
    assert seen == [{"red 40", "green 70"}] * 2
    # The audit goes on through all of them.
    assert events[0][0] >= 59 and done >= 60
    assert query(file, "SELECT count(*) FROM events WHERE action = 'fill'")[0][0] > 110


def test_a_backup_is_one_state_while_others_write(place):
    file = place / "vgpu.db"
    probe("create", file)
    with Running("count", file, 0) as writer:
        writer.wait_lines(3)
        for turn in range(10):
            lowest = len(writer.wait_lines(len(writer.lines) + 1))
            assert probe("backup", file, place / f"backup-{turn}") == "backed up\n"
            [(left,), (right,)] = query(place / f"backup-{turn}",
                                        "SELECT operation_limit_ms FROM vms ORDER BY vm_id")
            assert left == right >= lowest
        writer.kill()


def test_a_second_database_in_the_same_place_is_refused_to_one_of_two(place):
    file = place / "vgpu.db"
    makers = [Running("create", file) for _ in range(2)]
    outcomes = []
    for maker in makers:
        with maker:
            maker.process.wait()
            outcomes += [line.split()[0] for line in maker.kill()]
    assert sorted(outcomes) == ["created", "error"]
    assert refusal("create", file)[0] == errno.EEXIST
    assert show(file)["left"] == 0
