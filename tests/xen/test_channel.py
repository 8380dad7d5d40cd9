# SPDX-License-Identifier: Apache-2.0
"""The Xen channel for real: programs in PV and PVH guests, grants, brokers, mediator.

tests/vm/test_window.py has the same on the window channel.
"""

import contextlib
import json

import pytest

from harness.load import order_problems
from xen_harness import Load
from xen_harness.host import wait_until

VMS = {"pv": (7, "B", "high"), "pvh": (9, "A", "low")}
LEVELS = {"low": 0, "medium": 1, "high": 2}
PV, PVH = (VMS[kind][0] for kind in ["pv", "pvh"])
READ_AGAIN = "was read again"
SPINS_MS = [3000, 12000, 48000, 96000]
GNTALLOC_LIMIT = "/sys/module/xen_gntalloc/parameters/limit"
both_kinds = pytest.mark.parametrize("kind", VMS)


def full(value):
    return pytest.param(value, marks=pytest.mark.full)


def client(guest, words):
    """What vgpu-client says of one request, whether it went well or not."""
    return json.loads(guest.run(f"vgpu-client --json --channel window --timeout 90 {words}", 180)[1])


def identity(kind):
    vm_id, pool, priority = VMS[kind]
    return vm_id, pool, LEVELS[priority]


# --- answers and data ----------------------------------------------------------------


@both_kinds
def test_a_guest_gets_right_answers_as_the_vm_that_the_registry_knows(host, guests, kind):
    record = client(guests[kind], "3 4")
    assert record["answer"]["message"] == "3 + 4 = 7"
    assert record["channel"]["kind"] == record["channel"]["transport"] == "xen"
    device = record["device"]
    assert (device["vm_id"], device["pool"], device["priority"]) == identity(kind)


@pytest.mark.full
@both_kinds
def test_info_names_the_channel(host, guests, kind):
    vm_id, pool, priority = VMS[kind]
    said = guests[kind].check("vgpu-client info")
    assert f"pool {pool}, priority {priority} ({LEVELS[priority]}), vm {vm_id}\n" in said
    assert "channel  granted pages of 2.0 MiB, xen, cached (the best that is there)\n" in said


@pytest.mark.parametrize("size", [full(1), full(4097), 500003])
@both_kinds
def test_what_is_copied_in_comes_out_the_same(host, guests, kind, size):
    load = Load(guests[kind], f"rounds=4 bytes={size} seed={size}")
    assert load.wait() == 4
    assert load.sessions() == [(*identity(kind), "xen")]


@contextlib.contextmanager
def pages_for(guest, count):
    """So many that its programs may grant."""
    before = guest.check(f"cat {GNTALLOC_LIMIT}").strip()
    guest.check(f"echo {count} >{GNTALLOC_LIMIT}")
    try:
        yield
    finally:
        guest.check(f"echo {before} >{GNTALLOC_LIMIT}")


@pytest.mark.full
@both_kinds
def test_bulk_data_through_a_large_slot_comes_out_the_same(host, guests, kind):
    with pages_for(guests[kind], 8192):
        assert Load(guests[kind], "rounds=3 slot=16777216 bytes=8000003").wait() == 3


@pytest.mark.full
def test_two_programs_of_one_guest_work_at_once(host, guests):
    loads = [Load(guests["pv"], f"seed={seed}") for seed in (1, 2)]
    for load in loads:
        load.wait_progress()
    assert len(host.brokers()) == len(host.nodes(guests["pv"], "backend")) == 2
    for load in loads:
        load.wait_progress()
        load.end()


def test_both_guests_work_at_once(host, guests):
    loads = [Load(guests[kind], f"seed={seed}") for seed, kind in enumerate(VMS, 1)]
    for load in [*loads, *loads]:
        load.wait_progress()
    assert [load.sessions() for load in loads] == [[(*identity(kind), "xen")] for kind in VMS]
    for load in loads:
        load.end()


@pytest.mark.parametrize("kind", ["pv", full("pvh")])
def test_a_session_that_ends_in_order_leaves_nothing(host, guests, kind):
    guest = guests[kind]
    host.wait_idle()
    before = host.counts()
    Load(guest, "rounds=2").wait()
    host.wait_counts(before)
    assert host.nodes(guest, "frontend") == host.nodes(guest, "backend") == []


# --- who is offered the channel ------------------------------------------------------------
@pytest.mark.full
def test_a_domain_is_offered_the_channel_when_it_is_registered_and_not_before(dom0, host):
    stranger = dom0.domain("stranger", kind="pv").boot()
    try:
        record = client(stranger, "3 4")
        assert (record["ok"], record["exit_code"]) == (False, 3)
        assert "the Xen host offers no channel" in record["error"]["text"]
        assert "is this VM registered with its UUID?" in record["error"]["text"]
        assert stranger.store("data/vgpu/backend") is None
        host.register(11, stranger, "A", "medium")
        host.wait_offered(stranger)
        assert client(stranger, "3 4")["device"]["vm_id"] == 11
    finally:
        stranger.destroy()
    host.watch.wait_output(f"domain {stranger.id} (vm 11) is gone")


# --- limits -----------------------------------------------------------------------------------
@pytest.mark.full
def test_more_pages_than_gntalloc_lets_is_an_error_that_names_the_parameter(host, guests):
    guest = guests["pv"]
    status, output = guest.run("vgpu-xen-load rounds=1 slot=4194304")
    assert (status, "limit" in output) == (2, True), output
    assert "no further 1024 pages" in output and GNTALLOC_LIMIT in output
    with pages_for(guest, 2048):
        assert Load(guest, "rounds=1 slot=4194304").wait() == 1


@pytest.mark.full
def test_a_third_session_is_refused_for_its_pages_and_opens_when_one_has_ended(host, guests):
    """1024 pages are two sessions of 2 MiB."""
    loads = [Load(guests["pv"], f"pause_ms=200 seed={seed}") for seed in (1, 2)]
    for load in loads:
        load.wait_progress(1)
    record = client(guests["pv"], "3 4")
    assert record["exit_code"] == 3 and record["error"]["code"] == "window-busy"
    assert "module parameter `limit` of xen-gntalloc" in record["error"]["text"]
    loads[0].end()
    assert client(guests["pv"], "3 4")["ok"]
    loads[1].wait_progress()
    loads[1].end()


# --- order -------------------------------------------------------------------------------------


def spawn_client(guest, command):
    return guest.spawn(f"vgpu-client --json --channel window --timeout 170 '{command}'")


def ran(host, after):
    return [event["vm"] for event in host.events("process")[after:]]


def try_order(host, guests, spin_ms, meanwhile=lambda: None):
    """PVH spins; PVH, then PV, are seen waiting; then meanwhile().  Returns the order in
    which the three ran; None when the spin was over before all that was done."""
    ends, runs = len(host.events("returned")), len(host.events("process"))
    jobs = [spawn_client(guests["pvh"], f"SPIN {spin_ms}")]
    host.wait_event("process", runs + 1)
    for kind in ["pvh", "pv"]:
        waiting = len(host.events("queue", vm=VMS[kind][0]))
        jobs.append(spawn_client(guests[kind], "20:22"))
        host.wait_event("queue", waiting + 1, vm=VMS[kind][0])
    meanwhile()
    in_time = len(host.events("returned")) == ends
    for job in jobs:
        status, output = job.wait(180)
        assert status == 0, output
    assert all(json.loads(job.output)["answer"]["message"] == "20 + 22 = 42" for job in jobs[1:])
    order = ran(host, runs)
    assert sorted(order) == sorted([PVH, PVH, PV])
    return order if in_time else None


def first_order(tries):
    return next((order for order in tries if order), None)


def test_of_two_guests_that_wait_the_one_of_higher_priority_runs_first(host, guests):
    with host.with_settings(log_level="debug"):  # which writes turns down
        assert first_order(try_order(host, guests, ms) for ms in SPINS_MS) == [PVH, PV, PVH]
        assert order_problems(host.events()) == []


def change(host, command, *words):
    """Until the mediator goes by it."""
    count = host.mediator.output.count(READ_AGAIN)
    host.change(command, *words)
    wait_until(lambda: host.mediator.output.count(READ_AGAIN) > count, host.report)


@pytest.fixture
def upside_down(host):
    """PVH comes before PV; afterwards they are as VMS says."""
    change(host, "set-priority", PVH, "medium")
    change(host, "set-priority", PV, "low")
    with host.with_settings(log_level="debug"):
        yield
    for vm_id, _, priority in VMS.values():
        change(host, "set-priority", vm_id, priority)


@pytest.mark.full
def test_one_of_lower_priority_waits_until_the_other_has_no_more(host, guests, upside_down):
    assert first_order(try_order(host, guests, ms) for ms in SPINS_MS) == [PVH, PVH, PV]


@pytest.mark.full
def test_a_priority_that_changes_while_two_wait_changes_their_order(host, guests, upside_down):
    def tries():
        for spin_ms in SPINS_MS:
            yield try_order(host, guests, spin_ms, lambda: change(host, "set-priority", PV, "high"))
            change(host, "set-priority", PV, "low")
    assert first_order(tries()) == [PVH, PV, PVH]


@contextlib.contextmanager
def pools_on(host, devices):
    """{pool: device} for a mediator that is started anew."""
    for pool, device in devices.items():
        host.change("bind-device", pool, device)
    try:
        with host.with_settings(log_level="debug"):
            yield
    finally:
        for pool in devices:
            host.change("bind-device", pool, "cpu")
        host.mediator.restart()


def try_pools(host, guests, spin_ms):
    """Whether pool B answers five times while pool A's device is at work and one waits there."""
    runs = len(host.events("process", vm=PVH))
    jobs = [spawn_client(guests["pvh"], f"SPIN {spin_ms}")]
    host.wait_event("process", runs + 1, vm=PVH)
    waiting = len(host.events("queue", vm=PVH))
    jobs.append(spawn_client(guests["pvh"], "20:22"))
    host.wait_event("queue", waiting + 1, vm=PVH)
    for _ in range(5):
        assert client(guests["pv"], "20 22")["answer"]["message"] == "20 + 22 = 42"
    in_time = not any(job.done() for job in jobs)
    for job in jobs:
        status, output = job.wait(180)
        assert status == 0, output
    return in_time


@pytest.mark.full
def test_pools_on_two_devices_do_not_disturb_each_other(host, guests):
    """On one device pool B would wait for the spin."""
    devices, before = {"A": "cpu:0", "B": "cpu:1"}, len(host.events())
    with pools_on(host, devices):
        assert any(try_pools(host, guests, ms) for ms in SPINS_MS)
        assert order_problems(host.events()[before:], devices) == []
