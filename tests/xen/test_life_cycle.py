# SPDX-License-Identifier: Apache-2.0
"""A VM's life by vgpu-admin in Dom0, whose toolstack is the real xl: registered, started,
changed while it works, given another number, destroyed, removed.

tests/func/test_toolstack_xl.py has the adapter's own tests, against a stand-in for xl.
"""

import json
import re

import pytest

from xen_harness import Host, Load, image
from xen_harness.host import DIRECTORY, wait_until

VM_ID = 7
NEW_VM_ID = 12
OWNER = 2100000000 + VM_ID  # nobody names one
CONFIGS = "/etc/xen"
REGISTER = f"register-vm {{}} --vm-id {VM_ID} --pool B --priority high --channels window"


@pytest.fixture(scope="module")
def host(dom0):
    """Both programs serve, and the registry is empty."""
    with Host(dom0) as made:
        yield made.start()


@pytest.fixture
def good(host):
    def call(words):
        status, output = host.admin(words)
        assert status == 0, output
        return output
    return call


@pytest.fixture
def vms(good):
    """vms(): what list-vms says, by name."""
    return lambda: {vm["name"]: vm for vm in json.loads(good("list-vms --json"))["vms"]}


@pytest.fixture
def scan(good):
    return lambda: {vm["name"]: vm for vm in json.loads(good("scan-vms --json"))["vms"]}


def remove(host, guest):
    guest.destroy()
    host.admin(f"remove-vm --yes {guest.name}")
    host.dom0.check(f"rm -f {CONFIGS}/{guest.name}.cfg")


@pytest.fixture
def defined(dom0, host):
    """defined(kind, **options): a guest that has a file, and is neither registered nor started."""
    made = []

    def define(kind, **options):
        guest = dom0.domain(f"life-{kind}{len(made)}", kind=kind, **options)
        made.append(guest)
        guest.write_config(CONFIGS)
        return guest
    yield define
    for guest in made:
        remove(host, guest)


def start(host, good, guest, vm_id=VM_ID):
    """By vgpu-admin, until the guest has the channel."""
    said = good(f"start-vm {guest.name}")
    guest.attach().wait_ready()
    host.watch.wait_output(f"domain {guest.id} is vm {vm_id}")
    return said


@pytest.fixture
def started(host, good, defined):
    """started(kind): it runs as VM 7, of pool B and high priority."""
    def make(kind="pv", **options):
        guest = defined(kind, **options)
        good(REGISTER.format(guest.name))
        start(host, good, guest)
        return guest
    return make


def identity(guest):
    """(VM, pool, priority) as a new session of the guest is told them."""
    load = Load(guest, "rounds=1")
    load.wait()
    (vm_id, pool, priority, transport), = load.sessions()
    assert transport == "xen"
    return vm_id, pool, priority


def live(good):
    """What status says of VM 7."""
    return next(vm for vm in json.loads(good("status --json"))["vms"] if vm["vm_id"] == VM_ID)


def device(host, guest):
    """The arguments of the device in the guest's file."""
    text = host.dom0.check(f"cat {CONFIGS}/{guest.name}.cfg")
    found = re.search(r'^device_model_args_hvm *= *\[ "-device", "vgpu-stub,(.*)" \]$', text,
                      re.MULTILINE)
    return found and found[1]


# --- what is there ---------------------------------------------------------------------


def test_scan_shows_what_runs_and_what_could_and_how_to_register(dom0, good, defined, scan):
    off, paused = defined("pv"), defined("pvh")
    dom0.check(f"xl create -p {CONFIGS}/{paused.name}.cfg")
    dom0.check(f"mv {CONFIGS}/{paused.name}.cfg /run/elsewhere.cfg")
    found, told = scan(), good("scan-vms").partition("\nTo register:\n")[2]
    for guest, state in [(off, "off"), (paused, "paused")]:
        assert (found[guest.name]["state"], found[guest.name]["uuid"]) == (state, guest.uuid)
        assert f"  vgpu-admin register-vm --uuid {guest.uuid} {guest.name}\n" in told
    assert "Domain-0" not in found


# --- start, change, renumber, destroy ------------------------------------------------------


def check_start(good, defined, host, vms, scan, kind):
    guest = defined(kind)
    known = f"VM {VM_ID} ({guest.name})"
    assert good(REGISTER.format(guest.name)) == f"{known} is registered: pool B, priority high\n"
    assert (vms()[guest.name]["uuid"], vms()[guest.name]["owner"]["uid"]) == (guest.uuid, OWNER)
    assert start(host, good, guest) == f"{known} is started: pool B, priority high\n"
    assert device(host, guest) == f"vm_id={VM_ID},pool_id=B,priority=high"
    assert identity(guest) == (VM_ID, "B", 2)
    assert host.dom0.check(f"stat -c %u {DIRECTORY}/run/vm{VM_ID}.sock").split() == [str(OWNER)]
    assert (scan()[guest.name]["state"], scan()[guest.name]["registered"]) == ("running", True)
    assert host.admin(f"start-vm {guest.name}")[1] == \
        f"vgpu-admin: VM {VM_ID} is not off: it keeps the values that it has\n"
    return guest


def check_live_change(good, host, guest):
    """While it works: the session goes on, and the next is told the new values."""
    load = Load(guest, "pause_ms=20")
    load.wait_progress()
    good(f"set-priority {guest.name} low")
    good(f"set-pool {guest.name} A")
    assert identity(guest) == (VM_ID, "A", 0)
    load.wait_progress()
    assert len(load.sessions()) == 1
    load.end()
    assert device(host, guest) == f"vm_id={VM_ID},pool_id=A,priority=low"


def check_destroyed_under_load(good, host, guest, scan):
    for seed in (1, 2):
        Load(guest, f"seed={seed}").wait_progress()
    assert live(good)["sessions"] == 2
    guest.destroy()
    host.watch.wait_output(f"domain {guest.id} (vm {VM_ID}) is gone")
    wait_until(lambda: live(good)["sessions"] == 0, lambda: good("status"))
    assert (scan()[guest.name]["state"], scan()[guest.name]["registered"]) == ("off", True)


@pytest.mark.full
@pytest.mark.parametrize("kind", ["pv", "pvh"])
def test_registered_started_changed_while_it_works_and_destroyed(good, defined, host, vms, scan,
                                                                 kind):
    before = host.counts()
    guest = check_start(good, defined, host, vms, scan, kind)
    check_live_change(good, host, guest)
    check_destroyed_under_load(good, host, guest, scan)
    host.wait_counts(before)
    start(host, good, guest)
    assert identity(guest) == (VM_ID, "A", 0)


@pytest.mark.full
def test_an_hvm_guest_is_started_with_the_registered_device(good, started, host):
    if not image.has_device_model():
        pytest.skip("no device model for HVM guests: run scripts/build-qemu --xen")
    guest = started("hvm", memory_mib=160)
    said = json.loads(guest.check("vgpu-client --json info"))
    registers = {one["name"]: one["value"] for one in said["devices"][0]["registers"]}
    assert (registers["vm_id"], registers["pool_id"], registers["priority"]) == (VM_ID, ord("B"), 2)
    assert identity(guest) == (VM_ID, "B", 2)


@pytest.mark.full
def test_another_number_is_a_real_shutdown_and_start(good, started, host, vms):
    guest = started()
    old = guest.id
    Load(guest).wait_progress()
    assert good(f"set-vm-id {guest.name} {NEW_VM_ID} --yes").endswith(
        f"VM {VM_ID} ({guest.name}) is VM {NEW_VM_ID} now, and runs again\n")
    host.watch.wait_output(f"domain {old} (vm {VM_ID}) is gone")
    guest.attach().wait_ready()
    host.watch.wait_output(f"domain {guest.id} is vm {NEW_VM_ID}")
    assert identity(guest) == (NEW_VM_ID, "B", 2)
    assert vms()[guest.name]["vm_id"] == NEW_VM_ID
    assert device(host, guest) == f"vm_id={NEW_VM_ID},pool_id=B,priority=high"


# --- what xl refuses -------------------------------------------------------------------------


def test_a_start_that_xl_refuses_changes_nothing_and_gives_its_reason(dom0, good, host, defined,
                                                                      scan):
    guest = defined("pv")
    good(REGISTER.format(guest.name))
    dom0.check(f"sed -i 's:/guest/vmlinux:/guest/none:' {CONFIGS}/{guest.name}.cfg")
    status, said = host.admin(f"start-vm {guest.name}")
    assert status == 1 and "xl create failed with status 3" in said, said
    assert "failed to open file '/guest/none'" in said
    assert scan()[guest.name]["state"] == "off" and not guest.exists()


@pytest.mark.full
def test_a_file_that_xl_refuses_is_told_before_the_guest_is_stopped(dom0, host, started, vms):
    guest = started()
    was = guest.id
    dom0.check(f"sed -i 's/^memory=128$/memory=abc/' {CONFIGS}/{guest.name}.cfg")
    status, said = host.admin(f"set-vm-id {guest.name} {NEW_VM_ID} --yes")
    assert status == 1 and f"VM {VM_ID} would not start again as VM {NEW_VM_ID}" in said, said
    assert "config parsing error near `abc'" in said
    assert vms()[guest.name]["vm_id"] == VM_ID
    assert device(host, guest) == f"vm_id={VM_ID},pool_id=B,priority=high"
    assert identity(guest) == (VM_ID, "B", 2) and guest.id == was
    assert dom0.check(f"ls {CONFIGS} | grep -c {guest.name}").split() == ["1"]


@pytest.mark.full
def test_a_start_that_xl_refuses_takes_the_new_number_back(dom0, good, host, started, vms, scan):
    guest = started()
    file = f"{CONFIGS}/{guest.name}.cfg"
    dom0.check(f"sed -i 's:/guest/vmlinux:/guest/none:' {file}")
    status, said = host.admin(f"set-vm-id {guest.name} {NEW_VM_ID} --yes")
    assert status == 1 and "starting it failed" in said, said
    assert "failed to open file '/guest/none'" in said
    assert vms()[guest.name]["vm_id"] == VM_ID
    assert device(host, guest) == f"vm_id={VM_ID},pool_id=B,priority=high"
    assert scan()[guest.name]["state"] == "off"
    dom0.check(f"sed -i 's:/guest/none:/guest/vmlinux:' {file}")
    start(host, good, guest)
    assert identity(guest) == (VM_ID, "B", 2)


@pytest.mark.full
def test_a_domain_that_does_not_shut_down_is_a_timeout_or_destroyed_with_force(dom0, good, host,
                                                                               defined, scan):
    """Paused, it cannot answer."""
    guest = defined("pv")
    good(REGISTER.format(guest.name))
    dom0.check(f"xl create -p {CONFIGS}/{guest.name}.cfg")
    status, said = host.admin(f"stop-vm {guest.name} --timeout 1")
    assert status == 1 and "xl shutdown did not end within 1000 ms and was killed" in said, said
    assert scan()[guest.name]["state"] == "paused"
    assert good(f"stop-vm {guest.name} --timeout 1 --force").endswith(" is off\n")
    assert scan()[guest.name]["state"] == "off" and not guest.exists()


@pytest.mark.full
def test_a_domain_that_xen_keeps_after_its_end_is_told(good, host, started, scan):
    guest = started(config='on_poweroff="preserve"')
    status, said = host.admin(f"stop-vm {guest.name} --timeout 10")
    assert status == 1 and f"has shut down, but Xen still has domain {guest.id}" in said, said
    assert scan()[guest.name]["state"] == "other"
    good(f"stop-vm {guest.name} --timeout 5 --force")
    assert scan()[guest.name]["state"] == "off" and not guest.exists()


# --- removed -----------------------------------------------------------------------------------


@pytest.mark.full
def test_a_running_vm_that_is_removed_has_no_session_and_no_channel(good, host, started, scan):
    guest = started()
    load = Load(guest, "pause_ms=20")
    load.wait_progress()
    good(f"remove-vm {guest.name}")
    load.wait_closed()
    wait_until(lambda: guest.store("data/vgpu/backend/domain") is None, host.report)
    status, said = guest.run("vgpu-client --channel window 3 4")
    assert status == 3 and "is this VM registered with its UUID?" in said, said
    found = scan()[guest.name]
    assert (found["state"], found["registered"]) == ("running", False)
    assert found["command"] == f"vgpu-admin register-vm --uuid {guest.uuid} {guest.name}"
    host.wait_idle()


@pytest.mark.full
def test_a_vm_that_is_destroyed_can_be_removed(good, host, started, vms, scan):
    guest = started()
    guest.destroy()
    good(f"remove-vm {guest.name}")
    assert vms() == {}
    assert (scan()[guest.name]["state"], scan()[guest.name]["registered"]) == ("off", False)
