# SPDX-License-Identifier: Apache-2.0
"""The Xen channel while a guest is saved and restored, or moves while it runs: its memory goes on
as a new domain, where nothing of the old one's grants and event channels is left."""

import re
import signal

import pytest

from xen_harness import Domain, Load
from xen_harness.host import wait_until

VMS = {"pv": (7, "A", "medium"), "pvh": (9, "B", "high")}
SESSIONS = {"pv": (7, "A", 1, "xen"), "pvh": (9, "B", 2, "xen")}
LOST = "lost the VM was saved and restored"
both_kinds = pytest.mark.parametrize("kind", ["pv", "pvh"])
pytestmark = pytest.mark.full


class KeptLoad(Load):
    """Writes into a file of the guest, so that it can be asked over a restore."""

    def __init__(self, guest, options="", name="load"):
        self.guest = guest
        self.file = f"/run/{name}"
        # The shell stays, to tell how its program ended.
        guest.check(f"(vgpu-xen-load {options}; echo status $?) >{self.file} 2>&1 </dev/null &")

    @property
    def output(self):
        return self.guest.check(f"cat {self.file}")

    def status(self):
        """None while it runs."""
        said = re.search(r"^status (\d+)$", self.output, re.MULTILINE)
        return int(said[1]) if said else None

    def wait_progress(self, count=3):
        goal = self.rounds() + count
        wait_until(lambda: self.rounds() >= goal or self.status() is not None, self.report)
        assert self.rounds() >= goal, self.report()

    def wait_status(self):
        wait_until(lambda: self.status() is not None, self.report)
        return self.status()

    def wait_reset(self, generation):
        """Until it goes on after so many sessions on the host."""
        line = f"reset {generation}\n"
        wait_until(lambda: line in self.output or self.status() is not None, self.report)
        assert line in self.output, self.report()

    def end(self):
        """Ends all of this guest."""
        self.guest.check(f"killall -{int(signal.SIGTERM)} vgpu-xen-load; true")
        assert self.wait_status() == 0, self.report()

    def report(self):
        return self.output[-400:] + self.guest.run("dmesg | tail -n 40")[1]


@pytest.fixture
def before(host):
    """What is held when no session is there."""
    host.wait_idle()
    return host.counts()


def restore(host, guest, how=Domain.save_and_restore):
    """Returns when the guest is offered the channel again, by its UUID."""
    old = guest.id
    how(guest)
    assert guest.id != old
    host.watch.wait_output(f"domain {old} (vm {VMS[guest.kind][0]}) is gone")
    host.wait_offered(guest)


@both_kinds
def test_a_program_in_a_restored_guest_resets_and_goes_on(host, guests, before, kind):
    """Twice: a session that came over one restore is as good as any."""
    guest = guests[kind]
    load = KeptLoad(guest, "pause_ms=20")
    for generation in (2, 3):
        load.wait_progress()
        restore(host, guest)
        load.wait_reset(generation)
    load.wait_progress(5)
    assert load.output.count(LOST) == 2, load.report()
    assert load.sessions() == [SESSIONS[kind]], load.report()
    load.end()
    host.wait_counts(before)
    assert host.nodes(guest, "frontend") == host.nodes(guest, "backend") == []


@both_kinds
def test_a_program_in_a_restored_guest_ends_as_it_wants_to(host, guests, before, kind):
    load = KeptLoad(guests[kind], "reset=0 pause_ms=20")
    load.wait_progress()
    restore(host, guests[kind])
    assert load.wait_status() == 4, load.report()
    assert LOST in load.output
    assert Load(guests[kind], "rounds=2").wait() == 2
    host.wait_counts(before)


def test_a_program_in_a_guest_that_moves_while_it_runs_resets_and_goes_on(host, guests, before):
    """PVH only: for a PV guest this Xen, without shadow page tables, refuses it."""
    guest = guests["pvh"]
    load = KeptLoad(guest, "pause_ms=20")
    load.wait_progress()
    restore(host, guest, Domain.migrate_live)
    load.wait_reset(2)
    load.wait_progress(5)
    assert load.output.count(LOST) == 1, load.report()
    load.end()
    host.wait_counts(before)
    assert host.nodes(guest, "frontend") == host.nodes(guest, "backend") == []


def test_two_programs_of_a_restored_guest_reset_beside_each_other(host, guests, before):
    """Neither takes the port that the other one has to leave."""
    guest = guests["pv"]
    loads = [KeptLoad(guest, f"pause_ms={20 * seed} seed={seed}", f"load{seed}")
             for seed in (1, 2)]
    for load in loads:
        load.wait_progress()
    restore(host, guest)
    for load in loads:
        load.wait_reset(2)
        load.wait_progress(5)
    for load in loads:
        load.end()
    host.wait_counts(before)


def test_a_guest_that_is_copied_and_stays_keeps_its_sessions(host, guests, before):
    load = Load(guests["pv"], "pause_ms=500")
    load.wait_progress()
    guests["pv"].save_and_go_on()
    load.wait_progress(5)
    assert len(load.sessions()) == 1 and "lost" not in load.output
    load.end()
    host.wait_counts(before)
