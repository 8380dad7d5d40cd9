# SPDX-License-Identifier: Apache-2.0
"""The Xen channel while mediator, vgpu-xen, brokers, workers, programs and guests end.

What is left afterwards is counted: processes, nodes of XenStore, and event channels and
grants as Xen itself counts them.
"""

import pytest

from xen_harness import Load
from xen_harness.host import wait_until

VMS = {"pv": (7, "A", "medium"), "pvh": (9, "A", "medium")}
ROUNDS = 20


def full(value):
    return pytest.param(value, marks=pytest.mark.full)


@pytest.fixture(autouse=True)
def idle(host):
    """Both programs serve; nothing is at work."""
    for service in [host.mediator, host.watch]:
        if not service.running():
            service.start()
    host.wait_idle()


@pytest.fixture
def load(guests):
    made = Load(guests["pv"], "pause_ms=20")
    made.wait_progress()
    yield made
    if not made.job.done():
        made.kill()


def check_next_session(guest):
    assert Load(guest, "rounds=2").wait() == 2


def check_no_leftovers(host, guest):
    wait_until(lambda: host.nodes(guest, "frontend") == host.nodes(guest, "backend") == [],
               host.report)


# --- programs of the host --------------------------------------------------------------


@pytest.mark.parametrize("end", [full("stop"), "kill"])
def test_a_program_goes_on_while_the_mediator_is_started_anew(host, load, end):
    getattr(host.mediator, end)()
    host.mediator.start()
    load.wait_progress(5)
    assert len(load.sessions()) == 1
    load.end()
    assert "lost" not in load.output and "closed" not in load.output


@pytest.mark.full
def test_the_end_of_vgpu_xen_is_told_and_its_next_life_serves_again(host, guests, load):
    assert host.watch.stop() == 0
    assert "vgpu-xen on the host ends" in load.wait_closed()
    status, output = guests["pv"].run("vgpu-client --channel window 3 4")
    assert (status, "offers no channel" in output) == (3, True), output
    host.watch.start()
    host.wait_offered(guests["pv"])
    check_next_session(guests["pv"])
    check_no_leftovers(host, guests["pv"])
@pytest.mark.full
def test_a_killed_vgpu_xen_ends_its_sessions_and_its_next_life_serves_again(host, guests, load):
    host.watch.kill()
    assert "the Xen host has ended the session" in load.wait_closed()
    wait_until(lambda: not host.brokers(), "the end of the brokers")
    host.watch.start()
    check_next_session(guests["pv"])


@pytest.mark.full
def test_what_a_killed_vgpu_xen_left_in_xenstore_is_removed_by_the_next(host, guests, load):
    host.watch.kill()
    load.wait_closed()
    host.watch.start()
    check_no_leftovers(host, guests["pv"])


def test_a_killed_broker_ends_its_session_with_the_reason(host, guests, load):
    broker, = host.brokers()
    host.dom0.check(f"kill -9 {broker}")
    assert "its broker on the host died" in load.wait_closed()
    check_next_session(guests["pv"])
    check_no_leftovers(host, guests["pv"])
@pytest.mark.full
def test_a_killed_broker_is_nothing_to_another_session(host, guests, load):
    first, = host.brokers()
    other = Load(guests["pvh"], "pause_ms=20 seed=2")
    other.wait_progress()
    host.dom0.check(f"kill -9 {first}")
    load.wait_closed()
    other.wait_progress(5)
    other.end()
    assert len(other.sessions()) == 1


@pytest.mark.full
def test_the_death_of_a_worker_is_device_lost_and_the_session_goes_on(host, load):
    worker, = host.workers()
    host.dom0.check(f"kill -9 {worker}")
    wait_until(lambda: "lost" in load.output or load.job.done(), lambda: load.output[-400:])
    load.wait_progress(5)
    assert len(load.sessions()) == 1
    load.end()


# --- guests ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pv", full("pvh")])
def test_a_killed_program_leaves_nothing(host, guests, kind):
    before = host.counts()
    loads = [Load(guests[kind], f"seed={seed}") for seed in (1, 2)]
    for load in loads:
        load.wait_progress()
        load.kill()
    host.wait_counts(before)
    check_no_leftovers(host, guests[kind])
    check_next_session(guests[kind])


@pytest.fixture
def short_lived(dom0, host):
    """boot(kind, number): one more guest that is a VM; it is destroyed at the end."""
    made = []

    def boot(kind, number):
        made.append(dom0.domain(f"short-lived-{number}", kind=kind))
        host.register(number, made[-1])
        made[-1].boot()
        host.wait_offered(made[-1])
        return made[-1]
    yield boot
    for guest in made:
        guest.destroy()


def put_to_work(host, guest):
    loads = [Load(guest, f"seed={seed}") for seed in (1, 2)]
    for load in loads:
        load.wait_progress()
    assert len(host.brokers()) == 2


@pytest.mark.full
@pytest.mark.parametrize("kind, number", [("pv", 21), ("pvh", 22)])
def test_a_guest_that_is_destroyed_under_load_leaves_nothing(dom0, host, short_lived, kind, number):
    before = host.counts()
    guest = short_lived(kind, number)
    put_to_work(host, guest)
    guest.destroy()
    host.watch.wait_output(f"domain {guest.id} (vm {number}) is gone")
    host.wait_counts(before)
    assert f"({guest.id})" not in dom0.check("xl list")


@pytest.mark.full
@pytest.mark.parametrize("kind, number", [("pv", 23), ("pvh", 24)])
def test_a_guest_that_reboots_under_load_is_the_same_vm_and_leaves_nothing(host, short_lived, kind,
                                                                           number):
    guest = short_lived(kind, number)
    before, old = host.counts(), guest.id
    put_to_work(host, guest)
    guest.spawn("reboot -f")
    guest.wait_reboot()
    host.watch.wait_output(f"domain {old} (vm {number}) is gone")
    host.watch.wait_output(f"domain {guest.id} is vm {number}: ")
    check_next_session(guest)
    host.wait_counts(before)
    check_no_leftovers(host, guest)


# --- many rounds --------------------------------------------------------------------------


def end_service(name, how):
    def end(host):
        service = getattr(host, name)
        getattr(service, how)()
        service.start()
    return end


def kill_one(kind):
    def end(host):
        host.dom0.check(f"kill -9 {getattr(host, kind)()[0]}")
    return end


ENDS = [end_service("mediator", "stop"), end_service("watch", "kill"), kill_one("brokers"),
        kill_one("workers"), end_service("mediator", "kill"), end_service("watch", "stop")]


@pytest.mark.full
def test_twenty_rounds_of_ends_under_two_guests_load_leave_dom0_as_it_was(host, guests, summary):
    for kind in VMS:
        check_next_session(guests[kind])
    host.wait_idle()
    before, free_kib = host.all_counts(), host.free_kib()
    loads = [Load(guests[kind], f"pause_ms=20 reopen=1 seed={seed}")
             for seed, kind in enumerate(VMS, 1)]
    for number in range(ROUNDS):
        for load in loads:
            load.wait_progress()
        ENDS[number % len(ENDS)](host)
    for load in loads:
        load.wait_progress()
        load.end()
    host.wait_counts(before, host.all_counts)
    check_no_leftovers(host, guests["pv"])
    check_no_leftovers(host, guests["pvh"])
    summary(f"{ROUNDS} rounds, {sum(load.rounds() for load in loads)} answers right in "
            f"{sum(len(load.sessions()) for load in loads)} sessions; {before} before and after; "
            f"Dom0's free memory {(host.free_kib() - free_kib) / 1024:+.1f} MiB")
