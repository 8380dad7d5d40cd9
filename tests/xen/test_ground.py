# SPDX-License-Identifier: Apache-2.0
"""The ground that the other tests on Xen stand on: Dom0, guests, and who may do what."""

import pytest

from harness.agent import GuestError

KINDS = ["pv", "pvh"]
GNTALLOC_PAGES = 1024  # the default of the module's parameter `limit`
both_kinds = pytest.mark.parametrize("kind", KINDS)


def full(*values):
    return [pytest.param(value, marks=pytest.mark.full) for value in values]


def other(kind):
    return KINDS[1 - KINDS.index(kind)]


def test_dom0_runs_on_xen_and_can_map_grants(dom0):
    assert dom0.check("cat /sys/hypervisor/type") == "xen\n"
    assert {"evtchn", "gntdev", "privcmd", "xenbus"} <= set(dom0.check("ls /dev/xen").split())
    assert dom0.store_read("/local/domain/0/name") == "Domain-0"


@both_kinds
def test_a_guest_runs_and_can_grant_pages(guests, kind):
    guest = guests[kind]
    assert guest.check("cat /sys/hypervisor/guest_type") == kind.upper() + "\n"
    assert guest.check("hostname") == guest.name + "\n"
    assert {"evtchn", "gntalloc", "xenbus"} <= set(guest.check("ls /dev/xen").split())
    assert guest.run("echo out; echo err >&2; exit 3") == (3, "out\nerr\n")
    assert guest.check("xenstore-read domid") == f"{guest.id}\n"


@pytest.mark.full
def test_large_outputs_and_files_arrive_whole(guests):
    data = bytes(range(256)) * 200
    guests["pv"].put(data, "/run/file")
    assert guests["pv"].get("/run/file") == data
    assert guests["pv"].check("seq 1 3000") == "".join(f"{n}\n" for n in range(1, 3001))


@both_kinds
def test_a_guest_writes_below_its_own_data_and_dom0_reads_it(guests, kind):
    guest = guests[kind]
    guest.check("xenstore-write data/vgpu/frontend/0/state initialising")
    assert guest.store("data/vgpu/frontend/0/state") == "initialising"
    guest.check("xenstore-rm data/vgpu")
    assert guest.store("data/vgpu/frontend/0/state") is None


@pytest.mark.full
@both_kinds
def test_a_guest_reads_what_dom0_writes_into_its_data(dom0, guests, kind):
    guest = guests[kind]
    dom0.store_write(f"/local/domain/{guest.id}/data/answer", "connected")
    dom0.check(f"xenstore-chmod /local/domain/{guest.id}/data/answer n0 r{guest.id}")
    assert guest.check("xenstore-read data/answer") == "connected\n"
    status, output = guest.run("xenstore-write data/answer forged")
    assert (status, guest.store("data/answer")) == (1, "connected"), output


@pytest.mark.parametrize("node", [
    "/local/domain/{id}/vm", *full("/local/domain/{id}/name", "/local/domain/{id}/domid"),
    *full("/local/domain/{id}/platform/vgpu-id", "/vm/{uuid}/uuid", "/vm/{uuid}/name"),
    *full("/vm/{uuid}/new", "/vm/forged", "/local/domain/0/data/forged"),
    "/local/domain/{other}/data/forged"])
@both_kinds
def test_a_guest_cannot_write_who_it_is_nor_into_anothers_area(dom0, guests, kind, node):
    guest = guests[kind]
    path = node.format(id=guest.id, uuid=guest.uuid, other=guests[other(kind)].id)
    before = dom0.store_read(path)
    status, output = guest.run(f"xenstore-write {path} forged")
    assert (status, dom0.store_read(path)) == (1, before), output
    guest.run(f"xenstore-rm {path}")
    assert dom0.store_read(path) == before


@both_kinds
def test_a_guest_cannot_read_anothers_data(dom0, guests, kind):
    path = f"/local/domain/{guests[other(kind)].id}/data/secret"
    guests[other(kind)].check("xenstore-write data/secret mine")
    assert dom0.store_read(path) == "mine"
    status, output = guests[kind].run(f"xenstore-read {path}")
    assert status == 1 and "mine" not in output


@both_kinds
def test_xen_tells_the_host_which_vm_a_domain_is(guests, kind):
    assert guests[kind].store("vm") == f"/vm/{guests[kind].uuid}"


@pytest.mark.full
@both_kinds
def test_a_guest_is_refused_one_page_more_than_gntalloc_lets(guests, kind):
    limit = GNTALLOC_PAGES
    assert guests[kind].run(f"grants {limit + 1}") == (1, f"{limit} pages: No space left on device\n")
    # They were given back when the program ended, and one less is no trouble.
    assert guests[kind].run(f"grants {limit}") == (0, f"{limit} pages\n")


@pytest.mark.full
def test_a_guest_that_is_destroyed_is_gone_and_who_waits_is_told(dom0, guests):
    guest = guests["pv"]
    del guests["pv"]  # who comes later boots it anew
    job = guest.spawn("sleep 600")
    guest.destroy()
    with pytest.raises(GuestError, match="its console has closed|was destroyed"):
        job.wait(60)
    assert not guest.exists()
    assert dom0.store_read(f"/local/domain/{guest.id}/name") is None


@pytest.mark.full
@both_kinds
def test_a_guest_that_reboots_is_a_new_domain_of_the_same_vm(dom0, kind):
    guest = dom0.domain(f"rebooting-{kind}", kind=kind).boot()
    try:
        old = guest.id
        guest.spawn("reboot -f")
        guest.wait_reboot()
        assert guest.id != old
        assert guest.store("vm") == f"/vm/{guest.uuid}"
        guest.spawn("poweroff -f")
        guest.wait_ended()
    finally:
        guest.destroy()
