# SPDX-License-Identifier: Apache-2.0
"""What Dom0 and its guests boot.

Dom0's initramfs: busybox, Xen's tools, our programs as far as they are built, and in
/guest/ the kernel and the initramfs of its guests.  The full one, for the mark `full`, has
what worker domains boot too; and what HVM guests need, once `scripts/build-qemu --xen` has
made their device model: Xen moves each byte, and Dom0 unpacks it.  The guests' initramfs: busybox,
xenstore's tools, vgpu-client, libvgpu, tests/xen/load.c and vchan.c, the helpers of
tests/xen/guest/ (each .c one static program) and of tests/vm/guest/agent.c.  All are
named by what is in them, so a changed program makes a new one.
"""

import functools
import lzma
import pathlib
import subprocess
import tempfile

from harness import image, paths
from harness.tool import locked

from . import packages

SOURCES = paths.REPOSITORY / "tests/xen/guest"
XEN_PROGRAMS = ["usr/lib/xen-4.17/bin/xl", "usr/lib/xen-4.17/bin/xenstored",
                "usr/lib/xen-4.17/bin/xenconsoled", "usr/lib/xen-4.17/bin/xen-init-dom0"]
SAVE_HELPER = "usr/lib/xen-4.17/bin/libxl-save-helper"  # xl starts it at this path
XENSTORE_PROGRAMS = [f"usr/bin/xenstore-{verb}" for verb in
                     ["chmod", "exists", "list", "ls", "read", "rm", "watch", "write"]]
OUR_PROGRAMS = ["src/mediator/vgpu-mediator", "src/exec/vgpu-worker", "tests/xen/vgpu-admin",
                "src/xen/vgpu-xen", "src/relay/vgpu-relay", "src/client/vgpu-client",
                "tests/xen/vgpu-vchan"]
WORKER_PROGRAMS = ["src/mediator/vgpu-mediator", "src/exec/vgpu-worker", "src/xen/vgpu-xen",
                   "src/relay/vgpu-relay"]
GUEST_PROGRAMS = ["src/client/vgpu-client", "tests/xen/vgpu-xen-load", "tests/xen/vgpu-vchan"]
LIBRARY = "lib/libvgpu.so.1"
# Opened at run time, so no list of libraries names it: threads end with its help.
UNWINDER = "lib/x86_64-linux-gnu/libgcc_s.so.1"
HVMLOADER = "usr/lib/xen-4.17/boot/hvmloader"
SEABIOS = "usr/share/seabios/bios-256k.bin"
KEEP = 2  # each of Dom0's is 100 MB


class Image:
    def __init__(self, taken, dom0):
        self.hypervisor = taken.hypervisor
        self.vmlinux = taken.vmlinux
        self.dom0 = dom0


@functools.lru_cache(maxsize=None)
def get(full, progress=lambda text: None):
    """Returns the Image, made or taken from the cache; PackagesMissing where it cannot be.
    One process asks once: what is built later is for the next one."""
    with locked("xen-image"):
        taken = packages.get(progress)
        helpers = image.helpers(taken.root, SOURCES)
        helpers["agent"] = image.helpers(taken.root)["agent"]
        guest = image.initramfs(taken.root, _guest_contents(taken, helpers), progress, "guest")
        dom0 = _dom0_contents(taken, helpers)
        dom0["guest/vmlinux"] = (0o644, taken.vmlinux.read_bytes())
        dom0["guest/initramfs.cpio"] = (0o644, guest.read_bytes())
        if full:
            worker = _worker_contents(taken, helpers)
            worker = image.initramfs(taken.root, worker, progress, "worker")
            dom0["guest/worker.cpio"] = (0o644, worker.read_bytes())
            dom0.update(_device_model(taken, guest))
        name = "dom0full" if full else "dom0"
        return Image(taken, image.initramfs(taken.root, dom0, progress, name, KEEP))


def has_device_model():
    """Whether HVM guests can be had: their QEMU with the device is built."""
    return _find_device_model() is not None


def _find_device_model():
    done = subprocess.run([paths.REPOSITORY / "scripts/build-qemu", "--xen", "--find"], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return pathlib.Path(done.stdout.strip()) if done.returncode == 0 else None


def _device_model(taken, guest):
    """QEMU with its firmware, and what Xen itself loads into an HVM guest.  The guest reads
    each byte of its initramfs through a port, which costs more than to unpack it."""
    program = _find_device_model()
    if program is None:
        return {}
    entries = image.with_libraries(program)
    for file in sorted((program.parents[1] / "share/qemu").iterdir()):
        entries[f"usr/share/qemu/{file.name}"] = (0o644, file.read_bytes())
    entries[HVMLOADER] = (0o755, taken.file(HVMLOADER).read_bytes())
    entries[SEABIOS] = (0o644, pathlib.Path("/", SEABIOS).read_bytes())
    entries["guest/vmlinuz"] = (0o644, (taken.root / "vmlinuz").read_bytes())
    packed = lzma.compress(guest.read_bytes(), check=lzma.CHECK_CRC32)  # as the kernel reads it
    entries["guest/initramfs.cpio.xz"] = (0o644, packed)
    return entries


def _guest_contents(taken, helpers):
    entries = _base(taken, helpers, "guest-init", packages.GUEST_MODULES)
    entries.update(_tools(taken, XENSTORE_PROGRAMS))
    entries.update(_ours(GUEST_PROGRAMS))
    library = paths.BUILD / LIBRARY
    if library.exists():
        entries[f"usr/{LIBRARY}"] = (0o755, library.read_bytes())
    return entries


def _worker_contents(taken, helpers):
    entries = _base(taken, helpers, "guest-init", packages.WORKER_MODULES)
    entries.update(_tools(taken, XENSTORE_PROGRAMS))
    entries.update(_ours(WORKER_PROGRAMS))
    entries[UNWINDER] = (0o755, pathlib.Path("/", UNWINDER).read_bytes())
    return entries


def _dom0_contents(taken, helpers):
    entries = _base(taken, helpers, "dom0-init", packages.DOM0_MODULES)
    entries.update(_tools(taken, XEN_PROGRAMS + XENSTORE_PROGRAMS))
    entries.update(_ours(OUR_PROGRAMS))
    entries[SAVE_HELPER] = (0o755, taken.file(SAVE_HELPER).read_bytes())
    entries[UNWINDER] = (0o755, pathlib.Path("/", UNWINDER).read_bytes())
    entries["etc/xen/xl.conf"] = (0o644, b"autoballoon=0\n")
    return entries


def _base(taken, helpers, init, modules):
    entries = {
        "init": (0o755, (SOURCES / init).read_bytes()),
        "etc/passwd": (0o644, b"root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n"),
        "etc/group": (0o644, b"root:x:0:\nnogroup:x:65534:\n"),
        "bin/busybox": (0o755, pathlib.Path("/bin/busybox").read_bytes()),
    }
    loaded = image.module_files(taken.root, taken.kernel, modules)
    names = [str(pathlib.Path(file).relative_to(taken.root)) for file in loaded]
    entries["etc/modules"] = (0o644, "".join(f"/{name}\n" for name in names).encode())
    for name in names:
        entries[name] = (0o644, (taken.root / name).read_bytes())
    for name, file in helpers.items():
        entries[f"usr/bin/{name}"] = (0o755, file.read_bytes())
    return entries


def _tools(taken, programs):
    """Xen's own, with their libraries where the packages put them."""
    entries = {}
    prefix = f"{taken.file('')}/".lstrip("/")
    for program in programs:
        for name, entry in image.with_libraries(taken.file(program),
                                                environment=taken.environment()).items():
            entries[name.removeprefix(prefix)] = entry
    return entries


def _ours(programs):
    """Those that are built, without their symbols."""
    entries = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in programs:
            program = paths.BUILD / name
            if program.exists():
                bare = pathlib.Path(folder, program.name)
                subprocess.run(["strip", "-o", bare, program], check=True)
                entries.update(image.with_libraries(bare))
    return entries
