# SPDX-License-Identifier: Apache-2.0
"""A real guest that means harm to the Xen channel, next to a real guest that works.

The PV guest runs intruder (guest/intruder.c), which grants and tells what it is told;
the PVH guest's program checks every answer meanwhile.
"""

import os
import re

import pytest

from xen_harness import Load
from xen_harness.host import wait_until

SEED = int(os.environ.get("VGPU_TEST_SEED", "20240607"))
VMS = {"pv": (7, "A", "medium"), "pvh": (9, "A", "medium")}
FRONTEND = "data/vgpu/frontend"
SESSIONS_MOST = 32  # of a domain, those that are over too
FREE_LESS_KIB = 16384
HARM = ["list=from:4294966000", "directory=0", "revoke=1", "event-channel=4000", "list=self",
        "slot-bytes=8388608", "extra=vm-id=9", "then=vanish", "then=tail", "then=head",
        "then=relist", "then=scribble seconds=1 seed={seed}", "then=revoke seconds=1 seed={seed}"]
HARM_ROUNDS = 4


def full(*values):
    return pytest.param(*values, marks=pytest.mark.full)


@pytest.fixture(scope="module")
def victim(host, guests):
    """It works now and then: there is one processor for all."""
    load = Load(guests["pvh"], f"pause_ms=150 seed={SEED % 1000}")
    load.wait_progress()
    yield load
    load.end()


@pytest.fixture(scope="module")
def nothing_kept(host, guests, victim, request):
    """Afterwards no more is held than before: neither by Dom0 nor by Xen for it.  The guest
    itself may hold what it did to itself, in the tests that are marked so."""
    before = host.counts()
    yield
    host.wait_counts(before)
    if request.getfixturevalue("full"):
        guests.pop("pv").destroy()


@pytest.fixture
def mad(host, guests, victim, nothing_kept):
    """The PV guest.  Afterwards its sessions are gone, and the victim is undisturbed."""
    guest = guests["pv"]
    yield guest
    guest.run("killall intruder")
    guest.run(f"xenstore-rm {FRONTEND}")
    wait_until(lambda: len(host.brokers()) == 1 and not host.nodes(guest, "backend"), host.report)
    assert host.watch.running() and host.mediator.running()
    victim.wait_progress(2)
    assert len(victim.sessions()) == 1, "the victim lost its session"


def intrude(guest, words=""):
    """Returns what it says of its session last: (state, error)."""
    status, output = guest.run(f"intruder {words}", 180)
    assert status == 0, output
    name, state, error = re.findall(r"^(\S+) (connected|refused|closed|nothing) (.*)$", output,
                                    re.MULTILINE)[-1]
    return state, error


def test_an_honest_intruder_is_connected(mad):
    """Else the refusals below would prove nothing."""
    assert intrude(mad)[0] == "connected"


@pytest.mark.parametrize("words, error", [
    ("list=from:4294966000", "cannot be mapped"),
    ("event-channel=4000", "event channel 4000 cannot be bound"),
    full("directory=4294967295", "cannot be mapped"),
    full("revoke=1", "cannot be mapped"),
    full("slot-bytes=67112960", "slot-bytes is '67112960', expected 434176 to 67108864"),
    full("list=from:0", "cannot be mapped"),
    full("list=random", "cannot be mapped"),
    full("directory=0", "cannot be mapped"),
    full("write=0", "cannot be mapped"),
    full("slot-bytes=2097152", "cannot be mapped"),
    full("event-channel=4294967295", "event channel 4294967295 cannot be bound"),
    full("event-channel=1", "event channel 1 cannot be bound"),
    full("event-channel=0", "event-channel is '0', expected a port's number"),
    full("event-channel=-1", "event-channel is '-1'"),
    full("slot-bytes=18446744073709551615", "expected 434176 to 67108864"),
    full("slot-bytes=434177", "slot-bytes is '434177'"),
    full("slot-bytes=8388608", "expected a grant reference for each 1024 pages"),
    full("version=2", "version is '2', expected 1"),
    full("directory=%s%n", "directory is '%s%n'"),
])
def test_what_cannot_be_is_refused_with_the_reason(mad, words, error):
    state, told = intrude(mad, words)
    assert state == "refused" and error in told, told


def granted(output):
    """(directory, first of the slot, last of the slot) of an intruder's references."""
    return tuple(map(int, re.match(r"granted (\d+) (\d+) (\d+)", output).groups()))


def test_references_of_another_guest_are_not_mapped(guests, mad):
    """The victim's guest has granted them to the host, and the host maps them: for that guest."""
    other = guests["pvh"].spawn("intruder then=stay")
    try:
        other.wait_output("connected")
        directory, first, last = granted(other.output)
        assert last - first == 105
        status, output = mad.run(f"intruder list=from:{first}", 180)
        assert status == 0 and max(granted(output)) < first, output
        assert "refused" in output and "cannot be mapped" in output
        state, error = intrude(mad, f"directory={directory}")
        assert state == "refused" and "cannot be mapped" in error, error
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("words", [full("list=self"), full("list=same")])
def test_one_page_in_all_places_harms_its_own_guest_only(mad, words):
    state, error = intrude(mad, f"{words} then=scribble seconds=2")
    assert state in ("connected", "closed", "refused"), error


@pytest.mark.parametrize("extra", ["vm-id=9", full("pool=B"), full("priority=2"), full("domain=9")])
def test_who_it_says_that_it_is_changes_nothing(host, mad, extra):
    job = mad.spawn(f"intruder extra={extra} then=stay")
    job.wait_output("connected")
    name, = host.nodes(mad, "backend")
    told = {key: mad.store(f"data/vgpu/backend/{name}/{key}")
            for key in ["vm-id", "pool", "priority"]}
    job.kill()
    job.wait()
    assert told == {"vm-id": "7", "pool": "A", "priority": "1"}


@pytest.mark.parametrize("node", ["", full("/domain"), full("/0123456789abcdef/state")])
def test_it_cannot_write_what_the_host_says(mad, node):
    path = f"data/vgpu/backend{node}"
    before = mad.store(path)
    assert mad.run(f"xenstore-write {path} forged")[0] == 1
    assert mad.store(path) == before


@pytest.mark.parametrize("then, index", [("tail", "sq_tail"), full("head", "cq_head")])
def test_an_index_that_cannot_be_ends_its_session_with_the_reason(mad, then, index):
    state, error = intrude(mad, f"then={then}")
    assert state == "closed" and f"{index} is " in error, error


@pytest.mark.full
def test_rings_that_lie_harm_nobody_else(mad, victim):
    before = victim.rounds()
    intrude(mad, f"then=scribble seconds=3 seed={SEED}")
    victim.wait_progress(2)
    assert victim.rounds() > before


@pytest.mark.full
def test_pages_taken_back_while_the_host_has_them_stay_its_own_guests_loss(mad):
    state, error = intrude(mad, f"then=revoke seconds=2 seed={SEED + 1}")
    assert state in ("connected", "closed"), error


@pytest.mark.full
def test_a_directory_that_changes_later_is_not_read_again(mad):
    assert intrude(mad, "then=relist")[0] == "connected"


def test_one_that_vanishes_leaves_nothing(host, mad):
    """What it leaves is counted when the test ends."""
    for _ in range(3):
        mad.check("intruder then=vanish")
    wait_until(lambda: not host.nodes(mad, "backend"), host.report)


@pytest.mark.full
def test_a_thousand_sessions_are_bounded_and_memory_stays_flat(host, mad, victim):
    free_kib = host.free_kib()
    job = mad.spawn("intruder sessions=1000 then=stay")
    job.wait_output("asked")
    asked = int(re.search(r"asked (\d+)", job.output)[1])
    assert asked > SESSIONS_MOST
    for _ in range(5):
        victim.wait_progress(2)
        assert len(host.brokers()) <= SESSIONS_MOST + 1
        assert len(host.nodes(mad, "backend")) <= SESSIONS_MOST
    job.kill()
    job.wait()
    mad.check(f"xenstore-rm {FRONTEND}")
    wait_until(lambda: len(host.brokers()) == 1, host.report)
    assert host.free_kib() >= free_kib - FREE_LESS_KIB


@pytest.mark.full
def test_a_session_that_waits_for_others_is_told_so_in_the_end(mad):
    """Names that nobody takes back count for half a minute, and then others do."""
    mad.check("xenstore-write " + " ".join(
        f"{FRONTEND}/{number:016x}/state initialising" for number in range(3 * SESSIONS_MOST)))
    status, said = mad.run("vgpu-client --channel window --timeout 1 3 4", 600)
    assert status == 3 and f"lets the session wait: this VM has {SESSIONS_MOST} sessions" in said
    mad.check(f"xenstore-rm {FRONTEND}")
    assert "3 + 4 = 7" in mad.check("vgpu-client --channel window 3 4")


def do_all_harm(host, guest, seed):
    for words in HARM:
        guest.check(f"intruder {words.format(seed=seed)}", 180)
    guest.run(f"xenstore-rm {FRONTEND}")
    wait_until(lambda: len(host.brokers()) == 1 and not host.nodes(guest, "backend"), host.report)


@pytest.mark.full
def test_many_rounds_of_harm_leave_dom0_as_it_was(host, mad, victim, summary):
    do_all_harm(host, mad, SEED)  # what is made once and kept is made now
    before, free_kib, had_kib = host.all_counts(), host.free_kib(), host.resident_kib()
    for number in range(1, HARM_ROUNDS + 1):
        do_all_harm(host, mad, SEED + number)
        victim.wait_progress(1)
    host.wait_counts(before, host.all_counts)
    less_kib, has_kib = free_kib - host.free_kib(), host.resident_kib()
    grown = ", ".join(f"{name} {has_kib[name] - had_kib[name]:+d} KiB" for name in had_kib)
    summary(f"{HARM_ROUNDS * len(HARM)} intrusions: free memory of Dom0 "
            f"{-less_kib / 1024:+.1f} MiB, {grown}")
    assert less_kib <= FREE_LESS_KIB
