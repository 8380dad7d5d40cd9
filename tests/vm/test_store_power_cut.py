# SPDX-License-Identifier: Apache-2.0
"""The registry on a machine whose power goes.

A guest changes a database on its own disk (ext4) and QEMU is killed in the middle.
The next boot finds the disk as a real one may be after that: with all that was
written, with none of what no flush had confirmed, with some of it; see harness/disk.py.
"""

import random
import time

from harness import Guest, paths, process
from harness.disk import KEPT, LOST, SOME, Disk, mount_script, run

CUTS = 3
OLDER = 4  # instants of each run besides its end
FILE = "vgpu.db"


def probe(*words, at="/data"):
    return f"{run('store_probe', at)} {words[0]} {at}/{FILE} {' '.join(map(str, words[1:]))}"


def state_of(guest, at):
    """(left, acknowledged steps with all their events) of a database that verifies."""
    left, right, _, _, events = map(int, guest.check(probe("show", at=at)).split())
    assert left == right and events == 2 * left, (left, right, events)
    return left


def write_until_cut(guest, chance, lines):
    """Counts on /data until the power goes; returns the last acknowledged number."""
    job = guest.spawn(probe("count", 0))
    deadline = time.monotonic() + 60
    while job.output.count("\n") < lines:
        assert time.monotonic() < deadline and not job.done(), job.output
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.1))
    guest.stop()
    whole = [line for line in job.output.split("\n")[:-1]]
    return int(whole[-1])


def disks_after(disk, directory, turn, chance):
    """{name: (Disk, is it the end)}: three kinds of end, and some older instants."""
    made = {}
    for later in [LOST, SOME, KEPT]:
        made[later] = disk.cut(directory / f"{later}-{turn}.raw", later, chance=chance), True
    entries = disk.entries()
    for number in range(OLDER):
        name = f"older{number}"
        made[name] = disk.cut(directory / f"{name}-{turn}.raw", chance.choice([LOST, SOME]),
                              at=chance.randrange(1, len(entries)), chance=chance), False
    return made


def test_acknowledged_changes_survive_power_cuts(summary):
    directory = process.run_directory("power-cut")
    chance = random.Random(11)
    disk = Disk(directory, programs=[paths.BUILD / "tests/func/store_probe"])
    guest = Guest("vm0", directory, options=disk.options())
    reached = looked_at = 0
    seen = set()
    try:
        guest.boot()
        guest.check(mount_script("vda", "/data"))
        guest.check(probe("create"))
        for turn in range(CUTS):
            before = reached
            acknowledged = write_until_cut(guest, chance, 5 + turn)
            assert acknowledged > before
            made = disks_after(disk, directory, turn, chance)
            disk = made[LOST][0]
            options = disk.options(LOST)
            for name, (other, _) in made.items():
                options += other.options(name, logged=False) if other is not disk else []
            guest = Guest(f"vm{turn + 1}", directory, options=options)
            guest.boot()
            for name, (_, is_end) in made.items():
                at = "/data" if name == LOST else f"/{name}"
                guest.check(mount_script(name, at))
                if is_end:
                    state = state_of(guest, at)
                    assert acknowledged <= state <= acknowledged + 1, (name, state)
                    reached = state if name == LOST else reached
                elif turn > 0:  # in the first run there may be no database yet
                    state = state_of(guest, at)
                    assert before <= state <= acknowledged + 1, (name, state)
                    seen.add(state)
                looked_at += 1
        # They were different instants, not only the end again and again.
        assert len(seen) > 2, seen
        assert reached >= acknowledged
        # And it goes on.
        assert guest.check(probe("count", 1)).split() == [str(reached + 1)]
    finally:
        guest.stop()
        process.remove_directory(directory)
    summary(f"{CUTS} power cuts, {looked_at} disks looked at, {reached} changes kept")
