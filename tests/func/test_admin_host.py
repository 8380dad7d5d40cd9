# SPDX-License-Identifier: Apache-2.0
"""vgpu-admin's commands of the group Host, on machines made of files (--root).

What each check finds is test_host_preflight.c's matter, what the kernel does
tests/vm/test_iommu.py's; here is what a person or a script sees.
"""

import json
import re
import shutil
import subprocess

import pytest

from admin_support import (ADMIN, CHECKS_FAILED, FAILED, NOT_FOUND, OK, REPOSITORY, USAGE, Host,
                           script)
from support import BUILD

GPU, AUDIO, PORT = "0000:01:00.0", "0000:01:00.1", "0000:00:01.0"
DEVICES = "sys/bus/pci/devices"
DOCUMENT = REPOSITORY / "docs/iommu.md"


class Machine:
    """A KVM host with Intel's IOMMU; its GPU shares group 14 with its audio function."""

    def __init__(self, root):
        self.root = root
        self.write("proc/cmdline", "quiet intel_iommu=on\n")
        self.write("proc/cpuinfo", "vendor_id : GenuineIntel\nflags : fpu vmx\n")
        self.write("proc/interrupts", " 24:  0  IR-PCI-MSI  0-edge  nvidia\n")
        self.write("dev/kmsg", "6,1,1,-;Linux version 6.1.0\n")
        self.write("etc/group", "vgpu:x:990:\n")
        self.write("etc/vgpu/mediator.conf", "[mediator]\nstate_dir = /var/lib/vgpu\n")
        self.write("sys/firmware/acpi/tables/DMAR", "")
        self.write("sys/kernel/iommu_groups/14/type", "DMA-FQ\n")
        self.write("sys/bus/pci/drivers_probe", "")
        (root / "sys/class/iommu/dmar0").mkdir(parents=True)
        self.device(PORT, "0x060400", "pcieport", 14)
        self.device(GPU, "0x030200", "nvidia", 14)
        self.write("sys/bus/pci/drivers/vfio-pci/bind", "")

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def device(self, address, class_code, driver, group):
        for name, text in [("vendor", "0x10de"), ("device", "0x2330"), ("class", class_code),
                           ("driver_override", "")]:
            self.write(f"{DEVICES}/{address}/{name}", f"{text}\n")
        (self.root / f"{DEVICES}/{address}/iommu_group").symlink_to(
            f"../../../kernel/iommu_groups/{group}")
        self.write(f"sys/bus/pci/drivers/{driver}/unbind", "")
        self.bind(address, driver)

    def bind(self, address, driver):
        link = self.root / f"{DEVICES}/{address}/driver"
        link.unlink(missing_ok=True)
        link.symlink_to(f"../../drivers/{driver}")

    def run(self, command, *words):
        return subprocess.run([str(ADMIN), command, "--root", str(self.root), *map(str, words)],
                              text=True, stdin=subprocess.DEVNULL, capture_output=True,
                              timeout=180, check=False)

    def json(self, command, *words, exit_code=OK):
        done = self.run(command, "--json", *words)
        assert (done.returncode, done.stderr) == (exit_code, "")
        return json.loads(done.stdout)

    def bad(self, exit_code, command, *words):
        done = self.run(command, *words)
        assert (done.returncode, done.stdout) == (exit_code, ""), done
        assert done.stderr.startswith("vgpu-admin: ") and done.stderr.count("\n") == 1
        return done.stderr


@pytest.fixture
def machine(place):
    return Machine(place / "root")


def check_names(machine):
    return machine.run("preflight", "--list").stdout.split()


# --- preflight --------------------------------------------------------------------------


def test_preflight_tells_each_check_with_verdict_and_remedy(machine):
    answer = machine.json("preflight", exit_code=CHECKS_FAILED)
    assert answer["mode"] == "kvm-gpu-in-host"
    verdicts = {check["name"]: check["verdict"] for check in answer["checks"]}
    assert list(verdicts) == check_names(machine)
    assert verdicts["iommu-enabled"] == verdicts["gpu-driver"] == verdicts["group-vgpu"] == "pass"
    assert verdicts["nvidia-driver"] == "fail" and verdicts["mediator"] == "warn"
    for check in answer["checks"]:
        assert check["found"]
        assert (check["remedy"] is not None) >= (check["verdict"] in ("warn", "fail"))
    assert [answer[count] for count in ("passed", "warned", "failed", "skipped")] == [
        list(verdicts.values()).count(name) for name in ("pass", "warn", "fail", "skip")]


def test_preflight_prints_a_line_a_check_and_a_sum(machine):
    done = machine.run("preflight")
    assert (done.returncode, done.stderr) == (CHECKS_FAILED, "")
    shown = re.findall(r"^(pass|warn|fail|skip)  +([a-z-]+) +\S", done.stdout, re.MULTILINE)
    assert [name for _, name in shown] == check_names(machine)
    assert re.search(r"^\d+ passed, \d+ to think about, \d+ failed, \d+ do not apply$",
                     done.stdout, re.MULTILINE)


def test_one_check_alone_decides_the_exit_code(machine):
    assert machine.run("preflight", "--only", "iommu-enabled").returncode == OK
    assert machine.run("preflight", "--only", "mediator").returncode == OK  # a warning
    done = machine.run("preflight", "--only", "nvidia-driver")
    assert done.returncode == CHECKS_FAILED
    assert done.stdout.startswith("fail  nvidia-driver") and "remedy:" in done.stdout


def test_quiet_shows_what_is_to_be_mended_alone(machine):
    shown = machine.run("preflight", "--quiet").stdout
    assert "fail  nvidia-driver" in shown
    assert "pass" not in shown.split() and "skip" not in shown.split()
    assert machine.run("preflight", "--quiet", "--only", "iommu-enabled").stdout == ""


def test_a_check_that_does_not_exist_is_a_usage_error(machine):
    assert "there is no check 'iommu'" in machine.bad(USAGE, "preflight", "--only", "iommu")
    assert machine.json("preflight", "--list") == {"checks": check_names(machine)}


def test_the_configuration_below_the_root_says_where_things_are(machine):
    machine.write("etc/vgpu/mediator.conf", "[mediator]\nshare = /srv/gpu\n")
    machine.write("etc/exports", "/srv/gpu *(rw,no_root_squash)\n")
    answer = machine.json("preflight", "--only", "kernel-exports", exit_code=CHECKS_FAILED)
    found = answer["checks"][0]["found"]
    assert "open to everybody" in found and "all VMs" in found and "root of a guest" in found


def test_what_is_no_utf8_can_be_told_all_the_same(machine):
    path = machine.root / "etc/exports"
    path.write_bytes(b"/var/vgpu/vm\xff *(rw)\n")
    check = machine.json("preflight", "--only", "kernel-exports",
                         exit_code=CHECKS_FAILED)["checks"][0]
    assert "\\xff" in check["found"]


def test_a_dom0_is_asked_through_xl_and_named(machine):
    machine.write("sys/hypervisor/type", "xen\n")
    machine.write("sys/hypervisor/guest_type", "PV\n")
    machine.write("proc/xen/capabilities", "control_d\n")
    (machine.root / "usr/sbin").mkdir(parents=True)
    script(machine.root / "usr/sbin/xl",
           "echo 'virt_caps              : pv hvm hvm_directio'\n")
    answer = machine.json("preflight", exit_code=CHECKS_FAILED)
    checks = {check["name"]: check for check in answer["checks"]}
    assert answer["mode"] == "xen-pv-dom0"
    assert "CUDA cannot work" in checks["host-mode"]["found"]
    assert checks["xen-virt-caps"]["verdict"] == "pass"


def test_this_very_machine_can_be_looked_at(place):
    """Whatever it is: each check comes to a verdict, and nothing is changed."""
    host = Host(place)
    done = host.run("preflight", "--json")
    assert done.returncode in (OK, CHECKS_FAILED) and done.stderr == ""
    assert len(json.loads(done.stdout)["checks"]) > 20
    assert not host.database.exists()


def test_preflight_computes_with_the_library_that_the_configuration_names(machine):
    library = machine.root / "opt/driver/libcuda.so.1"
    library.parent.mkdir(parents=True)
    shutil.copy(BUILD / "tests/doubles/fake_cuda.so", library)
    machine.write("opt/driver/libcuda.so.1.conf", "bus 1\n")
    assert machine.run("preflight", "--only", "gpu-compute").stdout.startswith("skip")
    machine.write("etc/vgpu/mediator.conf", "[mediator]\ncuda_library = /opt/driver/libcuda.so.1\n")
    check = machine.json("preflight", "--only", "gpu-compute")["checks"][0]
    assert (check["verdict"], check["found"]) == ("pass", f"{GPU}: NVIDIA Fake computes")
    machine.write("opt/driver/libcuda.so.1.conf", "bus 1\nfail cuInit * 803\n")
    check = machine.json("preflight", "--only", "gpu-compute", exit_code=CHECKS_FAILED)["checks"][0]
    assert "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" in check["found"]
    assert "of different versions" in check["remedy"]


# --- show-iommu-status --------------------------------------------------------------------


def test_the_status_names_groups_types_and_drivers(machine):
    status = machine.json("show-iommu-status")
    assert status["mode"] == "kvm-gpu-in-host"
    assert status["iommu"]["kind"] == "intel" and status["iommu"]["faults"] == 0
    assert [(device["address"], device["group"], device["type"], device["driver"])
            for device in status["devices"]] == [(PORT, 14, "DMA-FQ", "pcieport"),
                                                 (GPU, 14, "DMA-FQ", "nvidia")]
    text = machine.run("show-iommu-status").stdout
    assert re.search(rf"^ +14  DMA-FQ  {GPU}  10de:2330  nvidia +NVIDIA GPU$", text, re.MULTILINE)
    assert "Faults               none" in text


def test_a_fault_is_shown_with_its_device(machine):
    machine.write("dev/kmsg", "4,1,1,-;DMAR: [DMA Write] Request device [01:00.0] fault addr 0\n")
    iommu = machine.json("show-iommu-status")["iommu"]
    assert (iommu["faults"], iommu["last_fault_device"]) == (1, GPU)
    assert "Request device [01:00.0]" in machine.run("show-iommu-status").stdout


@pytest.mark.parametrize("how", [["web1"], ["7"], ["--vm-id", "7"]], ids=" ".join)
def test_a_vms_protection_is_told_by_its_channels(place, machine, how):
    host = Host(place)
    host.good("init")
    host.good("register-vm", "web1", "--vm-id", "7", "--channels", "window")
    status = machine.json("show-iommu-status", "--database", host.database, *how)
    assert status["vm"]["vm_id"] == 7
    by = {one["subject"]: one["by"] for one in status["protection"]}
    assert by == {"gpu": "iommu", "device": "no-dma", "window": "host-checks"}
    text = machine.run("show-iommu-status", "--database", host.database, *how).stdout
    assert "What protects VM 7 (web1), which may use: window:" in text
    assert "QEMU and the workers are processes, not devices" in text


def test_a_vm_that_is_not_there_is_said_to_be_so(place, machine):
    host = Host(place)
    host.good("init")
    words = ["--database", host.database]
    assert "7" in machine.bad(NOT_FOUND, "show-iommu-status", *words, "7")
    assert "name the VM once" in machine.bad(USAGE, "show-iommu-status", *words, "7", "--vm-id",
                                             "8")


# --- bind-vfio, unbind-vfio -------------------------------------------------------------------


def test_what_cannot_move_is_refused_in_words(machine):
    assert "is no PCI address" in machine.bad(USAGE, "bind-vfio", "gpu0")
    assert "there is no PCI device" in machine.bad(NOT_FOUND, "bind-vfio", "0000:7f:00.0")
    assert "is a bridge" in machine.bad(USAGE, "bind-vfio", PORT)
    assert "not bound to vfio-pci: it has nvidia" in machine.bad(USAGE, "unbind-vfio", GPU)
    machine.device(AUDIO, "0x040300", "snd_hda_intel", 14)
    message = machine.bad(FAILED, "bind-vfio", GPU)
    assert f"{AUDIO} (driver snd_hda_intel)" in message and "--group" in message
    assert not (machine.root / "run/vgpu").exists()


def test_a_device_with_a_program_on_it_is_refused(machine):
    machine.bind(GPU, "vfio-pci")
    machine.write("proc/99/comm", "qemu-system-x86\n")
    (machine.root / "proc/99/fd").mkdir()
    (machine.root / "proc/99/fd/20").symlink_to("/dev/vfio/14")
    assert "qemu-system-x86 (process 99) has /dev/vfio/14 open" in machine.bad(
        FAILED, "unbind-vfio", GPU)


def test_a_device_that_is_there_already_is_a_success(machine):
    machine.bind(GPU, "vfio-pci")
    assert machine.json("bind-vfio", GPU) == {"group": 14, "moved": []}
    assert machine.run("bind-vfio", GPU).stdout == f"{GPU} is bound to vfio-pci already\n"


def test_a_kernel_that_binds_nothing_is_told_and_undone(machine):
    message = machine.bad(FAILED, "bind-vfio", GPU)
    assert "the kernel did not bind it to vfio-pci" in message
    assert "all is as it was before" in message
    assert (machine.root / "sys/bus/pci/drivers/nvidia/unbind").read_text() == GPU
    assert not list((machine.root / "run/vgpu/vfio").iterdir())


# --- the document ----------------------------------------------------------------------------


def test_every_check_is_explained_and_no_other(machine):
    table = re.search(r"^## The checks$(.*?)^## ", DOCUMENT.read_text(),
                      re.MULTILINE | re.DOTALL)[1]
    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE) == check_names(machine)


def test_every_mode_is_explained():
    source = (REPOSITORY / "src/host/mode.c").read_text()
    names = re.findall(r'\[HOST_MODE_\w+\] = \{"([a-z0-9-]+)"', source)
    assert len(names) == 6
    section = re.search(r"^## The modes$(.*?)^### ", DOCUMENT.read_text(),
                        re.MULTILINE | re.DOTALL)[1]
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", section, re.MULTILINE)) == set(names)
