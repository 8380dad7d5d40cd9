# SPDX-License-Identifier: Apache-2.0
"""libvirt for real: a libvirtd of the test's own, and guests that it starts.

What an administrator does is done here by vgpu-admin and virsh; what a tenant sees is
read in the guest.
"""

import json
import pathlib
import pwd
import shutil
import stat
import time

import pytest

from harness import paths
from harness.libvirt import WRAPPER, LibvirtLab
from harness.load import requests_of

WAIT_S = 90
REFUSED = ("vgpu-stub: VM 7 cannot be migrated, saved or snapshotted, because its GPU work lives "
           "on this host: shut the VM down or unplug the device first")


def make_wrapper(directory):
    """A qemu-with-vgpu whose device is a copy that a test can exchange."""
    device = directory / "vgpu-stub.so"
    shutil.copyfile(paths.device(), device)
    wrapper = directory / "qemu-with-vgpu"
    wrapper.write_text(f'#!/bin/sh\nVGPU_STUB_SO={device} exec {WRAPPER} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper, device


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """VM 7 `web` is defined without a device, registered and started."""
    wrapper, device = make_wrapper(tmp_path_factory.mktemp("wrapper"))
    with LibvirtLab(wrapper=wrapper) as lab:
        lab.device = device
        lab.uuid = lab.libvirt.define("web", append="vgpu.module")
        lab.good("register-vm", "web", "--vm-id", "7", "--pool", "B", "--priority", "high")
        lab.good("start-vm", "web")
        lab.libvirt.guest("web")
        yield lab


@pytest.fixture
def web(host):
    """Its guest, running; a test that stopped it has it started anew."""
    if host.json("scan-vms")["vms"][0]["state"] != "running":
        host.good("start-vm", "web")
        host.libvirt.guest("web")
    return host.libvirt.guests["web"]


def registers(guest):
    """Pool, priority and number, as the guest's own program reads them."""
    device, = json.loads(guest.check("vgpu-client --json info"))["devices"]
    values = {register["name"]: register["value"] for register in device["registers"]}
    return chr(values["pool_id"]), values["priority"], values["vm_id"]


def check_work(guest):
    request, = requests_of(guest.check("vgpu-client --json VECTOR_ADD"))
    assert request.channel == "window"
    assert request.answer.startswith("1:Vector add PASSED")


def test_the_guest_sees_the_device_with_its_registered_values(web):
    classes = web.check("cat /sys/bus/pci/devices/*/class").split()
    assert classes.count("0x120000") == 1
    assert registers(web) == ("B", 2, 7)


def test_its_work_goes_through_the_window_to_the_mediator(web):
    check_work(web)


def test_scan_and_virsh_agree_about_it(host, web):
    assert host.libvirt.check("list", "--name").split() == ["web"]
    found, = host.json("scan-vms")["vms"]
    assert (found["name"], found["state"], found["uuid"]) == ("web", "running", host.uuid)
    assert found["device"] == {"vm_id": 7, "pool": "B", "priority": "high"}
    assert (found["note"], found["command"]) == (None, None)


@pytest.mark.parametrize("command", [
    ["managedsave", "web"], ["save", "web", "{directory}/lib/saved"],
    ["snapshot-create-as", "web", "s", "--memspec",
     "file={directory}/lib/memory,snapshot=external"],
    ["migrate", "web", "{uri}"], ["migrate", "--live", "web", "{uri}"],
], ids=["managedsave", "save", "snapshot", "migrate", "live-migrate"])
def test_what_would_take_the_vm_off_its_gpu_is_refused_with_the_reason(host, web, command):
    words = [word.format(directory=host.directory, uri=host.libvirt.uri) for word in command]
    status, said = host.libvirt.virsh(*words)
    assert status == 1
    assert REFUSED in said
    assert host.libvirt.check("domstate", "web").strip() == "running"
    web.check("vgpu-client PING")


def test_a_change_reaches_the_running_guest_and_the_next_start(host, web):
    host.good("set-priority", "web", "low")
    deadline = time.monotonic() + WAIT_S
    while registers(web)[1] != 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert "pool_id=B,priority=low" in host.libvirt.check("dumpxml", "--inactive", "web")
    assert host.libvirt.check("domstate", "web").strip() == "running"
    host.good("set-priority", "web", "high")


def test_stop_waits_for_the_guests_own_shutdown(host, web):
    """This guest has nothing that hears the power button: it goes by itself meanwhile."""
    web.spawn("sleep 1; poweroff -f")
    assert host.good("stop-vm", "web", "--timeout", "60") == "VM 7 (web) is off\n"
    assert host.good("stop-vm", "web") == "VM 7 (web) was off\n"
    assert host.libvirt.check("domstate", "web").strip() == "shut off"


def test_a_guest_that_does_not_hear_is_told_and_powered_off_with_force(host, web):
    status, _, problem = host.admin("stop-vm", "web", "--timeout", "1")
    assert status == 1
    assert "the VM was asked to shut down and still runs after 1000 ms" in problem
    web.check("true")
    host.good("stop-vm", "web", "--timeout", "1", "--force")
    assert host.libvirt.check("domstate", "web").strip() == "shut off"


def stop(host):
    host.good("stop-vm", "web", "--timeout", "1", "--force")


def test_a_definition_with_stale_values_does_not_start(host):
    stop(host)
    assert host.libvirt.probe("publish", "web", 7, "A", 0)[0] == 0  # behind vgpu-admin's back
    status, said = host.libvirt.virsh("start", "web")
    assert status == 1
    assert ("vgpu-vm-startup: 'web' does not start: its device says VM 7, pool A, low, and the "
            "registry VM 7, pool B, high: vgpu-admin publish 7, then start it again") in said
    assert host.libvirt.check("domstate", "web").strip() == "shut off"
    host.good("publish", "7")
    host.libvirt.check("start", "web")
    assert registers(host.libvirt.guest("web")) == ("B", 2, 7)


def test_a_device_for_another_qemu_is_refused_with_what_rebuilds_it(host):
    """As after an update of the distribution's QEMU: the device is of another version."""
    stop(host)
    right = host.device.read_bytes()
    mark = b"vgpu-stub for QEMU="
    at = right.index(mark) + len(mark)
    host.device.write_bytes(right[:at] + b"9" + right[at + 1:])
    try:
        status, _, problem = host.admin("start-vm", "web")
        assert status == 1
        assert f"{host.device} is for QEMU 9" in problem and "but installed is 1:" in problem
        assert "rebuild it with scripts/build-device" in problem
        assert host.libvirt.check("domstate", "web").strip() == "shut off"
    finally:
        host.device.write_bytes(right)
    host.good("start-vm", "web")
    host.libvirt.guest("web")


def test_a_domain_that_is_defined_anew_keeps_its_other_arguments(host):
    """Ours come and go; what an administrator has in <qemu:commandline> stays."""
    host.libvirt.define("other", more="""<qemu:commandline
        xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
        <qemu:arg value='-global'/><qemu:arg value='isa-debugcon.iobase=0x402'/>
      </qemu:commandline>""")
    assert host.libvirt.probe("publish", "other", 8, "A", 1)[0] == 0
    text = host.libvirt.check("dumpxml", "--inactive", "other")
    assert f"<emulator>{host.libvirt.wrapper}</emulator>" in text
    assert "isa-debugcon.iobase=0x402" in text and "vgpu-stub,vm_id=8" in text
    assert host.libvirt.probe("unpublish", "other")[0] == 0
    text = host.libvirt.check("dumpxml", "--inactive", "other")
    assert "<emulator>/usr/bin/qemu-system-x86_64</emulator>" in text
    assert "isa-debugcon.iobase=0x402" in text and "vgpu-stub" not in text
    host.libvirt.check("undefine", "other")


def test_a_wrapper_that_is_not_there_is_told_before_anything_is_written(host):
    before = host.libvirt.check("dumpxml", "--inactive", "web")
    right, host.libvirt.wrapper = host.libvirt.wrapper, pathlib.Path("/nonexistent/wrapper")
    try:
        status, answer = host.libvirt.probe("publish", "web", 7, "A", 0)
    finally:
        host.libvirt.wrapper = right
    assert (status, answer["code"]) == (1, "ENOENT")
    assert "'/nonexistent/wrapper': install it, or name it in VGPU_QEMU_WRAPPER" in answer["error"]
    assert host.libvirt.check("dumpxml", "--inactive", "web") == before


def test_what_is_not_there_is_told(host):
    for arguments in [("start", "nobody"), ("stop", "nobody", 1), ("publish", "nobody", 1, "A", 1)]:
        status, answer = host.libvirt.probe(*arguments)
        assert (status, answer["code"]) == (1, "ENOENT"), answer


# --- libvirt's own user, and namespaces ---------------------------------------------------


def qemu_of(name):
    """The id of the domain's QEMU."""
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"guest={name},debug-threads=on".encode() in words:
            return int(path.parent.name)
    raise AssertionError(f"no QEMU of {name}")


def namespace(pid):
    return pathlib.Path(f"/proc/{pid}/ns/mnt").readlink()


def test_it_works_with_libvirts_default_user_and_namespaces():
    try:
        user = pwd.getpwnam("libvirt-qemu")
    except KeyError:
        pytest.skip("there is no user libvirt-qemu here")
    if not all(place.stat().st_mode & stat.S_IXOTH for place in WRAPPER.parents):
        pytest.skip(f"user libvirt-qemu cannot reach {WRAPPER}: the checkout is its owner's alone")
    with LibvirtLab(default_user=True) as lab:
        lab.libvirt.define("db", append="vgpu.module")
        lab.good("register-vm", "db", "--owner", "libvirt-qemu")
        lab.good("start-vm", "db")
        guest = lab.libvirt.guest("db")
        qemu = qemu_of("db")
        assert pathlib.Path(f"/proc/{qemu}").stat().st_uid == user.pw_uid
        assert namespace(qemu) not in (namespace("self"), namespace(lab.libvirt.process.pid))
        assert registers(guest) == ("A", 1, 1)
        check_work(guest)
