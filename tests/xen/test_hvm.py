# SPDX-License-Identifier: Apache-2.0
"""HVM guests: Xen's device model gives them the device, without a window; their requests go
over granted pages as those of other guests, and both have to say the same VM."""

import json

import pytest

from xen_harness import Host, image
from xen_harness.files import STEP_TIMEOUT_S

pytestmark = pytest.mark.full

SAID = "device {address} says vm 7 too"


@pytest.fixture(scope="module")
def guest(dom0):
    """VM 7 as its device says it."""
    if not image.has_device_model():
        pytest.skip("no device model for HVM guests: run scripts/build-qemu --xen")
    made = dom0.domain("hvm", kind="hvm", memory_mib=160,
                       device="vm_id=7,pool_id=B,priority=high")
    try:
        yield made.boot()
    finally:
        made.destroy()


@pytest.fixture
def host(dom0, guest):
    """serve(vm_id): mediator and vgpu-xen that know the guest as this VM."""
    with Host(dom0) as made:
        def serve(vm_id):
            made.register(vm_id, guest, pool="B", priority="high")
            made.start()
            made.wait_offered(guest)
            return made
        yield serve


def client(guest, words):
    """(exit status, what vgpu-client says)."""
    status, output = guest.run(f"vgpu-client --json --timeout 90 {words}", STEP_TIMEOUT_S)
    return status, json.loads(output)


def registers(guest):
    _, record = client(guest, "info")
    device, = record["devices"]
    return device["address"], {one["name"]: one["value"] for one in device["registers"]}


def test_an_hvm_guest_reads_who_it_is_from_its_device(guest):
    assert guest.check("cat /sys/hypervisor/guest_type") == "HVM\n"
    _, found = registers(guest)
    assert (found["vm_id"], found["pool_id"], found["priority"]) == (7, ord("B"), 2)


def test_its_requests_go_over_grants_and_the_device_agrees(host, guest):
    host(7)
    address, _ = registers(guest)
    status, record = client(guest, "3 4")
    assert (status, record["answer"]["message"]) == (0, "3 + 4 = 7")
    assert record["channel"]["kind"] == "xen"
    assert record["channel"]["identity"] == SAID.format(address=address)


def test_who_is_another_vm_to_the_host_than_to_its_device_asks_nothing(host, guest):
    served = host(9)
    status, record = client(guest, "3 4")
    assert (status, record["error"]["code"]) == (3, "device-values"), record
    assert "says that this is vm 7" in record["error"]["text"]
    served.wait_idle()


def test_what_changes_live_is_the_registrys_not_the_registers(host, guest):
    served = host(7)
    served.change("set-priority", 7, "low")
    served.mediator.wait_output("was read again")
    status, record = client(guest, "3 4")
    assert (status, record["device"]["priority"]) == (0, 0)
    assert registers(guest)[1]["priority"] == 2
