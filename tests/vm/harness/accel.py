# SPDX-License-Identifier: Apache-2.0
"""Does KVM really work here?  The file /dev/kvm does not tell.

Some hosts offer a /dev/kvm that cannot run an ordinary kernel.  So a guest is
booted under it once, with a deadline; the answer is kept for this boot of this
machine, this kernel and this QEMU.  Without KVM: TCG, QEMU's own translator,
which boots these guests in about two seconds.

VGPU_ACCEL=kvm or VGPU_ACCEL=tcg decides without asking.

Where only one vCPU can ever be, TCG of this QEMU (7.2) leaves a guest's memory
barriers out and makes its locked instructions plain ones: what shares memory with
another process then loses wake-ups, about once in ten thousand sleeps.  Room for a
second vCPU brings them back.
"""

import json
import os
import pathlib
import platform
import subprocess

from . import image, paths
from .process import Process, remove_directory, run_directory

TCG = "tcg,tb-size=32"
ONE_CPU = "1,maxcpus=2"  # with barriers, also under TCG
DEADLINE_S = 6


def accelerator():
    """What QEMU's -accel gets."""
    wish = os.environ.get("VGPU_ACCEL")
    if wish:
        return TCG if wish == "tcg" else wish
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return TCG
    with image.locked("accel"):
        answers = paths.CACHE / "accel.json"
        try:
            known = json.loads(answers.read_text())
        except (OSError, ValueError):
            known = {}
        key = _key()
        if known.get("key") != key:
            known = {"key": key, "kvm": _probe()}
            answers.write_text(json.dumps(known) + "\n")
        return "kvm" if known["kvm"] else TCG


def _key():
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], stdout=subprocess.PIPE,
                          text=True).stdout.splitlines()[0]
    return f"{boot} {platform.release()} {qemu}"


def _probe():
    """Boots a guest under KVM up to the line that its init prints."""
    guest = image.get()
    directory = run_directory("kvm-probe")
    console = directory / "console"
    qemu = Process("kvm probe", [
        "qemu-system-x86_64", "-accel", "kvm", "-M", "q35", "-m", "128", "-nodefaults",
        "-display", "none", "-no-reboot", "-serial", f"file:{console}",
        "-kernel", guest.vmlinux, "-initrd", guest.initramfs,
        "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent",
        "-chardev", "null,id=agent",
        "-append", "console=ttyS0 panic=-1 quiet vgpu.name=probe"], log=directory / "qemu.log")
    try:
        for _ in range(DEADLINE_S * 20):
            if console.exists() and b"guest: up" in console.read_bytes():
                return True
            try:
                qemu.wait(0.05)
                return False
            except subprocess.TimeoutExpired:
                pass
        return False
    finally:
        qemu.kill()
        remove_directory(directory)
