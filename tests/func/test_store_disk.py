# SPDX-License-Identifier: Apache-2.0
"""The registry on a full, a read-only and a broken disk."""

import contextlib
import errno
import os
import random
import shutil
import subprocess

import pytest

from store_support import PROBE, Running, check_counted, probe, query, refusal, rounds, show

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount or change its user")
NOBODY = 65534


@pytest.fixture
def small_disk(place):
    """256 KiB, and no more."""
    with mounted(place / "disk", "-t", "tmpfs", "-o", "size=256k", "tmpfs") as disk:
        yield disk


@contextlib.contextmanager
def mounted(directory, *how):
    directory.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *how, directory], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


def numbers(writer):
    return [int(line) for line in writer.lines if not line.startswith("error")]


def wait_refusal(writer):
    """Until it waits after a refusal, which is what it said last."""
    while not writer.lines or not writer.lines[-1].startswith("error"):
        writer.wait_lines(len(writer.lines) + 1)
    return writer.lines[-1]


def tell(writer):
    """To try again; what comes of it is the next line."""
    writer.process.stdin.write(b"again\n")
    writer.process.stdin.flush()
    writer.wait_lines(len(writer.lines) + 1)


def use_up(disk):
    """Takes the room that is left; returns the file to remove."""
    filler = disk / "filler"
    with open(filler, "ab", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(b"x" * 4096)
    return filler


@root_only
def test_a_full_disk_refuses_the_change_and_the_same_writer_goes_on_later(small_disk):
    file = small_disk / "vgpu.db"
    probe("create", file)
    with Running("count", file, 0) as writer:
        writer.wait_lines(5)
        for _ in range(4):
            # What it has freed since, to try better next time, is taken, too.
            filler = use_up(small_disk)
            message = wait_refusal(writer)
            assert f"error {errno.ENOSPC} " in message
            assert "no space left on the disk; nothing was changed" in message
            # The old state, for others too, and nothing of the refused change.
            last = numbers(writer)[-1]
            assert check_counted(file, numbers(writer)) == last
            assert show(file)["left"] == last
            tell(writer)
        wait_refusal(writer)
        filler.unlink()
        tell(writer)
        more = writer.wait_lines(len(writer.lines) + 5)[-5:]
        assert all(not line.startswith("error") for line in more)
        writer.kill()
        check_counted(file, numbers(writer))
        assert numbers(writer) == list(range(1, numbers(writer)[-1] + 1))


@root_only
def test_a_full_disk_refuses_a_new_writer_too_and_readers_read(small_disk):
    file = small_disk / "vgpu.db"
    probe("create", file)
    probe("count", file, 3)
    filler = use_up(small_disk)
    assert refusal("count", file, 200)[0] == errno.ENOSPC
    before = show(file)["left"]
    assert before >= 3
    assert probe("open", file, "read") == "opened\n"
    filler.unlink()
    assert probe("count", file, 1) == f"{before + 1}\n"
    check_counted(file, [before + 1])


@root_only
def test_a_writer_killed_on_a_full_disk_leaves_the_last_state(small_disk):
    file = small_disk / "vgpu.db"
    probe("create", file)
    reached = 0
    for _ in range(5):
        with Running("count", file, 0) as writer:
            writer.wait_lines(2)
            filler = use_up(small_disk)
            wait_refusal(writer)
            writer.kill()
        reached = check_counted(file, numbers(writer), reached)
        filler.unlink()
        assert show(file)["left"] == reached


@root_only
def test_without_room_nothing_is_made_and_nothing_is_left(small_disk):
    file = small_disk / "vgpu.db"
    probe("create", file)
    filler = use_up(small_disk)
    before = sorted(path.name for path in small_disk.iterdir())
    assert refusal("backup", file, small_disk / "backup.db")[0] == errno.ENOSPC
    assert refusal("create", small_disk / "second.db")[0] == errno.ENOSPC
    assert sorted(path.name for path in small_disk.iterdir()) == before
    filler.unlink()
    probe("backup", file, small_disk / "backup.db")


@root_only
def test_a_restore_without_room_keeps_the_present_state(place, small_disk):
    file = small_disk / "vgpu.db"
    large = place / "large.db"
    probe("create", file)
    probe("count", file, 3)
    probe("create", large)
    probe("fill", large, "red", 1500)
    code, message = refusal("restore", file, 1, large)
    assert code == errno.ENOSPC, message
    assert check_counted(file, [3]) == 3
    assert probe("count", file, 1) == "4\n"


# --- not writable ------------------------------------------------------------------------


def as_nobody():
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


@pytest.fixture
def nobody(copy_for_others):
    """Options with which a command is run by user and group `nobody`."""
    return {"preexec_fn": as_nobody, "executable": copy_for_others(PROBE)}


@root_only
def test_who_may_only_read_can_read_and_is_told_so(place, nobody):
    file = place / "vgpu.db"
    place.chmod(0o755)
    probe("create", file)
    probe("count", file, 2)
    code, message = refusal("open", file, "read", **nobody)
    assert code == errno.EACCES and "unable to open" in message
    for path in place.iterdir():
        path.chmod(0o644)
    assert probe("show", file, **nobody).split()[0] == "2"
    code, message = refusal("count", file, 1, **nobody)
    assert code == errno.EACCES and "run it as root" in message
    # Also while somebody writes.
    with Running("count", file, 0) as writer:
        writer.wait_lines(2)
        assert int(probe("show", file, **nobody).split()[0]) >= 4
        writer.kill()
    assert int(probe("show", file, **nobody).split()[0]) >= 4


@root_only
def test_the_group_of_the_directory_may_read_and_others_may_not(place, nobody):
    group = 12345
    os.chown(place, 0, group)
    place.chmod(0o750)
    file = place / "vgpu.db"
    probe("create", file)
    probe("count", file, 2)
    probe("backup", file, place / "backup.db")
    for path in place.iterdir():
        assert (path.stat().st_uid, path.stat().st_gid) == (0, group), path
        assert path.stat().st_mode & 0o7777 == 0o640, path

    def as_member():
        os.setgroups([group])
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    member = {**nobody, "preexec_fn": as_member}
    assert probe("show", file, **member).split()[0] == "2"
    assert refusal("count", file, 1, **member)[0] == errno.EACCES
    assert refusal("show", file, **nobody)[0] == errno.EACCES


@root_only
def test_a_directory_that_takes_no_files_refuses_a_new_database(place, nobody):
    place.chmod(0o755)
    code, message = refusal("create", place / "vgpu.db", **nobody)
    assert code == errno.EACCES and str(place) in message
    assert list(place.iterdir()) == []


@root_only
def test_a_read_only_disk_is_read_and_not_written(place):
    disk = place / "disk"
    disk.mkdir()
    file = disk / "vgpu.db"
    probe("create", file)
    probe("count", file, 2)
    probe("backup", file, disk / "backup.db")
    with mounted(disk, "--bind", disk):
        subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)
        assert show(file)["left"] == 2
        code, message = refusal("count", file, 1)
        assert code == errno.EACCES and "mounted read-only" in message
        assert probe("open", disk / "backup.db", "read") == "opened\n"
        assert refusal("backup", file, disk / "second.db")[0] == errno.EROFS
    assert probe("count", file, 1) == "3\n"


# --- damaged ------------------------------------------------------------------------------


def test_a_damaged_file_is_told_from_a_good_one_wherever_the_damage_is(place):
    """A page of noise, a cut end: an error, never a crash, and never a changed file."""
    good = place / "good.db"
    probe("create", good)
    probe("fill", good, "red", 60)
    backup = place / "backup.db"
    probe("backup", good, backup)
    data = backup.read_bytes()
    chance = random.Random(8)
    pages = len(data) // 4096
    for page in range(0, pages, 5 // rounds(5)):
        broken = bytearray(data)
        broken[page * 4096:(page + 1) * 4096] = chance.randbytes(4096)
        damaged = place / "damaged.db"
        damaged.write_bytes(broken)
        code, message = refusal("show", damaged)
        assert code == errno.EBADMSG, (page, message)
        assert damaged.read_bytes() == broken
        code, message = refusal("restore", good, 1, damaged)
        assert code == errno.EBADMSG, (page, message)
    for length in [1, 99, 100, 4096, 5000, len(data) - 4096]:
        damaged.write_bytes(data[:length])
        assert refusal("show", damaged)[0] == errno.EBADMSG, length
    assert query(good, "SELECT count(*) FROM vms") == [(60,)]


def test_single_wrong_bytes_never_crash_a_reader(place):
    good = place / "good.db"
    probe("create", good)
    probe("fill", good, "red", 20)
    backup = place / "backup.db"
    probe("backup", good, backup)
    data = backup.read_bytes()
    chance = random.Random(9)
    for _ in range(2 * rounds(60)):
        broken = bytearray(data)
        for _ in range(chance.choice([1, 4, 64])):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        damaged = place / "damaged.db"
        damaged.write_bytes(broken)
        # Refused with a reason (1) or nothing was hit that counts (its VMs are no "left").
        assert refusal("show", damaged)[0] in (errno.EBADMSG, errno.ENOENT, errno.EPROTO)


def test_a_lost_wal_costs_no_older_state(place):
    """After a clean end all is in the one file: it can be copied by itself."""
    file = place / "vgpu.db"
    probe("create", file)
    probe("count", file, 5)
    copy = place / "copy.db"
    shutil.copyfile(file, copy)
    assert check_counted(copy, [5]) == 5
