# SPDX-License-Identifier: Apache-2.0
"""vgpu-admin's host commands in a real guest that has an IOMMU.

QEMU emulates Intel's, with interrupt remapping.  In the guest are: a vgpu-stub with
our module, a random-number device with virtio's driver, and behind an old PCI bridge
two devices that share its group.  The `edu` device does the DMA that is stopped.
"""

import base64
import gzip
import json
import subprocess

import pytest

from harness import Guest, paths
from harness.guest import window_options
from harness.mediator import Mediator
from harness.process import remove_directory, run_directory

STUB, RNG, EDU = "0000:00:10.0", "0000:00:11.0", "0000:00:12.0"
BRIDGE_EDU, BRIDGE_RNG = "0000:01:01.0", "0000:01:02.0"
FAILED = 1
ADMIN = "vgpu-admin-host"


@pytest.fixture(scope="module")
def guest():
    directory = run_directory("iommu")
    mediator = Mediator(directory, directory / "share", {7: {"pool": "A"}}, channels="window",
                        run_dir=directory / "run")
    window, properties = window_options(directory / "run/vm7.sock", window_mib=8)
    one = Guest("iommu", directory, append="intel_iommu=on vgpu.module", memory_mib=192,
                programs=[paths.admin_host()], options=[
                    "-M", "q35,kernel-irqchip=split",
                    "-device", "intel-iommu,intremap=on",
                    *window,
                    "-device", f"vgpu-stub,pool_id=A,priority=2,vm_id=7,addr=0x10{properties}",
                    "-device", "virtio-rng-pci,addr=0x11",
                    "-device", "edu,addr=0x12",
                    "-device", "pci-bridge,id=old,chassis_nr=1,addr=0x13",
                    "-device", "edu,bus=old,addr=1",
                    "-device", "virtio-rng-pci,bus=old,addr=2"], preload=paths.device())
    try:
        mediator.start()
        one.boot()
        yield one
    finally:
        one.stop()
        mediator.kill()
        remove_directory(directory)


def admin(guest, command):
    return json.loads(guest.check(f"{ADMIN} --json {command}"))


def refused(guest, command):
    """The message of a command that must fail, exit code 1."""
    status, output = guest.run(f"{ADMIN} {command}")
    assert status == FAILED, output
    return output


def driver_of(guest, address):
    return guest.check(f"basename $(readlink /sys/bus/pci/devices/{address}/driver || echo none)"
                       ).strip()


def group_of(guest, address):
    return int(guest.check(f"basename $(readlink /sys/bus/pci/devices/{address}/iommu_group)"))


def check(guest, name):
    """(verdict, found) of one check of preflight."""
    status, output = guest.run(f"{ADMIN} --json preflight --only {name}")
    answer = json.loads(output)
    assert status == (8 if answer["failed"] else 0)
    return answer["checks"][0]["verdict"], answer["checks"][0]["found"]


def test_preflight_finds_the_iommu_on_with_its_groups_and_remapping(guest):
    verdict, found = check(guest, "iommu-enabled")
    assert (verdict, "intel_iommu=on" in found) == ("pass", True), found
    assert check(guest, "interrupt-remapping") == ("pass", "on")
    count = int(guest.check("ls /sys/kernel/iommu_groups | wc -l"))
    assert check(guest, "iommu-groups") == ("pass", str(count))
    assert check(guest, "host-mode")[0] == "warn"
    assert check(guest, "kvm")[0] == "warn"


def test_the_status_shows_each_device_with_the_group_that_sysfs_says(guest):
    status = admin(guest, "show-iommu-status")
    assert status["iommu"]["enabled"] and status["iommu"]["kind"] == "intel"
    shown = {device["address"]: device for device in status["devices"]}
    listed = guest.check("cd /sys/bus/pci/devices; for d in *; do "
                         "echo $d $(basename $(readlink $d/iommu_group)); done")
    assert {address: str(device["group"]) for address, device in shown.items()} == dict(
        line.split() for line in listed.splitlines())
    assert shown[STUB]["kind"] == "vgpu-stub"
    assert shown[RNG]["type"].startswith("DMA")
    assert shown[BRIDGE_EDU]["group"] == shown[BRIDGE_RNG]["group"]
    assert "GROUP  TYPE" in guest.check(f"{ADMIN} show-iommu-status")


def test_a_device_goes_to_vfio_and_back_to_its_driver(guest):
    assert driver_of(guest, RNG) == "virtio-pci"
    moved = admin(guest, f"bind-vfio {RNG}")
    assert moved == {"group": group_of(guest, RNG), "moved": [
        {"address": RNG, "before": "virtio-pci", "after": "vfio-pci"}]}
    assert driver_of(guest, RNG) == "vfio-pci"
    assert check(guest, "vfio-nodes") == ("pass", "1 device, for root or one user alone")
    assert "already" in guest.check(f"{ADMIN} bind-vfio {RNG[5:]}")
    admin(guest, f"unbind-vfio {RNG}")
    assert driver_of(guest, RNG) == "virtio-pci"
    assert guest.check(f"cat /sys/bus/pci/devices/{RNG}/driver_override").strip() == "(null)"
    assert guest.check("ls /run/vgpu/vfio") == ""


def test_our_device_is_refused_while_a_program_has_it_open(guest):
    assert driver_of(guest, STUB) == "vgpu_guest"
    program = guest.spawn("exec 3<>/dev/vgpu0 && echo open && exec sleep 1000")
    program.wait_output("open")
    message = refused(guest, f"bind-vfio {STUB}")
    assert "sleep (process" in message and "has /dev/vgpu0 open" in message
    assert driver_of(guest, STUB) == "vgpu_guest"
    program.kill()
    program.wait()
    admin(guest, f"bind-vfio {STUB}")
    admin(guest, f"unbind-vfio {STUB}")
    assert driver_of(guest, STUB) == "vgpu_guest"
    guest.check("test -c /dev/vgpu0")


def test_a_shared_group_moves_as_a_whole_or_not_at_all(guest):
    message = refused(guest, f"bind-vfio {BRIDGE_EDU}")
    assert f"{BRIDGE_RNG} (driver virtio-pci)" in message and "--group" in message
    assert driver_of(guest, BRIDGE_EDU) == "none"
    moved = admin(guest, f"bind-vfio --group {BRIDGE_EDU}")["moved"]
    assert {one["address"] for one in moved} == {BRIDGE_EDU, BRIDGE_RNG}
    assert driver_of(guest, BRIDGE_RNG) == "vfio-pci"
    admin(guest, f"unbind-vfio --group {BRIDGE_EDU}")
    assert driver_of(guest, BRIDGE_RNG) == "virtio-pci"
    assert driver_of(guest, BRIDGE_EDU) == "none"


def test_a_bind_that_the_kernel_does_not_do_is_undone(guest):
    guest.check("touch /tmp/nothing && mount --bind /tmp/nothing /sys/bus/pci/drivers_probe")
    message = refused(guest, f"bind-vfio {RNG}")
    guest.check("umount /sys/bus/pci/drivers_probe")
    assert "all is as it was before" in message
    assert driver_of(guest, RNG) == "virtio-pci"
    assert guest.check(f"cat /sys/bus/pci/devices/{RNG}/driver_override").strip() == "(null)"


def test_dma_where_it_may_not_go_is_stopped_and_reported(guest):
    assert check(guest, "iommu-faults")[0] == "pass"
    admin(guest, f"bind-vfio {EDU}")
    guest.check("modprobe vfio_iommu_type1")  # as modprobe(8), but not busybox's, does by itself
    program = guest.spawn(f"exec vfio-dma {group_of(guest, EDU)} {EDU}")
    program.wait_output("unmapped: done")
    assert "mapped: the same" in program.output
    assert "vfio-dma (process" in refused(guest, f"unbind-vfio {EDU}")
    assert "DMAR: [DMA Read" in guest.check("dmesg | grep DMAR")
    verdict, found = check(guest, "iommu-faults")
    assert verdict == "warn" and "00:12.0" in found and "0x900000" in found
    iommu = admin(guest, "show-iommu-status")["iommu"]
    assert iommu["faults"] >= 1 and iommu["last_fault_device"] == EDU
    program.kill()
    program.wait()
    admin(guest, f"unbind-vfio {EDU}")
    assert driver_of(guest, EDU) == "none"


def put_database(guest, database):
    """VM 7, web1, registered on the host of the test, in the place where the guest looks."""
    program = paths.BUILD / "src/admin/vgpu-admin"
    for words in [["init"], ["register-vm", "web1", "--vm-id", "7"]]:
        subprocess.run([program, "--database", database, "--toolstack", "none", *words], check=True,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    packed = base64.b64encode(gzip.compress(database.read_bytes())).decode()
    guest.check("mkdir -p /var/lib/vgpu && base64 -d <<END | gunzip >/var/lib/vgpu/vgpu.db\n"
                f"{packed}\nEND\n")


def test_moves_are_in_the_audit(guest, tmp_path):
    put_database(guest, tmp_path / "vgpu.db")
    admin(guest, f"bind-vfio {RNG}")
    admin(guest, f"unbind-vfio {RNG}")
    copy = tmp_path / "copy.db"
    copy.write_bytes(gzip.decompress(base64.b64decode(
        guest.check("gzip -c /var/lib/vgpu/vgpu.db | base64"))))
    done = subprocess.run([paths.BUILD / "src/admin/vgpu-admin", "--database", copy, "--json",
                           "events"], check=True, stdout=subprocess.PIPE)
    moves = [event for event in json.loads(done.stdout)["events"]
             if event["action"].endswith("bind-vfio")]
    assert [(event["actor"], event["action"], event["before"]["driver"], event["after"]["driver"])
            for event in moves] == [("root", "bind-vfio", "virtio-pci", "vfio-pci"),
                                    ("root", "unbind-vfio", "vfio-pci", "virtio-pci")]


def test_a_vms_protection_is_told_without_claiming_the_iommus_merit(guest, tmp_path):
    put_database(guest, tmp_path / "vgpu.db")
    status = admin(guest, "show-iommu-status --vm-id 7")
    assert status["vm"]["name"] == "web1"
    by = {one["subject"]: one["by"] for one in status["protection"]}
    assert by == {"gpu": "processes", "device": "no-dma", "file": "nothing",
                  "window": "host-checks"}
    text = guest.check(f"{ADMIN} show-iommu-status web1")
    assert "VM 7 (web1)" in text and "The IOMMU has no part in it" in text
