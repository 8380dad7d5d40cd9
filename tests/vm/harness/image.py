# SPDX-License-Identifier: Apache-2.0
"""The guests' kernel and initramfs.

Kernel: the one that linux-image-cloud-amd64 depends on, taken out of Debian's
package without installing it and unpacked to a plain ELF file, because under
TCG the guest's own unpacking costs two seconds a boot.

Initramfs: busybox, the kernel modules that a guest needs here, and programs:
the agent and the other helpers of tests/vm/guest/ (each .c one static
program), vgpu-client, the examples, tests/gpu's load, and on request lspci with its libraries (10 MB); our own
kernel module (module.py), which is loaded when the kernel's command line says
vgpu.module.  Its name carries the hash of all that went in: a changed program
makes a new one.

VGPU_GUEST_IMAGE names a folder with a vmlinux and an initramfs.cpio that were made
elsewhere (scripts/gpu-bundle): where none can be made, they are taken as they are.

    .cache/guest-<kernel>/vmlinux
                          lib/modules/<kernel>/…     only what guests load
                          initramfs-<hash>.cpio      the newest few are kept
"""

import functools
import hashlib
import os
import pathlib
import re
import shutil
import struct
import subprocess
import tempfile

from . import module, paths, tool
from .tool import locked

META_PACKAGE = "linux-image-cloud-amd64"
EARLY_MODULES = ["virtio_pci", "virtio_console"]
LATE_MODULES = ["virtio_net", "nfs", "nfsv4", "vfio_pci", "vfio_iommu_type1",
                "virtio_blk", "ext4", "button", "evdev"]
KEEP_INITRAMFS = 6
RECIPE = "5"  # to be raised when what _fetch_kernel() makes changes
_UNPACKERS = {
    b"\x02\x21\x4c\x18": ["lz4", "-dc"],
    b"\xfd7zXZ": ["xz", "-dc"],
    b"\x28\xb5\x2f\xfd": ["zstd", "-dc"],
}
GUEST_SOURCES = paths.REPOSITORY / "tests/vm/guest"


class Image:
    def __init__(self, kernel, vmlinux, initramfs):
        self.kernel = kernel
        self.vmlinux = vmlinux
        self.initramfs = initramfs


@functools.lru_cache(maxsize=None)
def get(client=None, progress=None, lspci=False, programs=()):
    """Returns the Image, made or taken from the cache.

    The examples and the load for GPUs are in it when they are built.

    `programs`: more of the host's, put in with the libraries that they need.

    `client` is the vgpu-client to put in; None takes the built one if there is
    one.  Tests that need it fail in the guest with a clear "not found".  One
    process asks once: what is built later is for the next one.
    """
    ready = os.environ.get("VGPU_GUEST_IMAGE")
    if ready:
        return _made_elsewhere(pathlib.Path(ready))
    progress = progress or (lambda text: None)
    with locked("guest-image"):
        kernel, root = _kernel(progress)
        ours = helpers(root)
        if client is None and (paths.BUILD / "src/client/vgpu-client").exists():
            client = paths.client()
        if client is not None:
            ours["vgpu-client"] = pathlib.Path(client)
        ours.update({program.name: program for program in paths.examples() + paths.gpu_load()})
        entries = _contents(kernel, root, ours)
        entries.update(_guest_module(entries, kernel, progress))
        if lspci:
            entries.update(with_libraries("/usr/bin/lspci", "/usr/share/misc/pci.ids"))
        for program in programs:
            entries.update(with_libraries(program))
        return Image(kernel, root / "vmlinux", initramfs(root, entries, progress))


def _made_elsewhere(folder):
    files = [folder / "vmlinux", folder / "initramfs.cpio"]
    missing = [str(file) for file in files if not file.exists()]
    if missing:
        raise RuntimeError(f"VGPU_GUEST_IMAGE: there is no {' and no '.join(missing)}: it names a "
                           "folder that has both, as scripts/gpu-bundle makes it")
    return Image("", *files)


# --- kernel -------------------------------------------------------------------


def kernel(progress=None):
    """The release of the guests' kernel, as uname -r will say it."""
    with locked("guest-image"):
        return _kernel(progress or (lambda text: None))[0]


def _kernel(progress):
    """Which kernel, and its folder in the cache."""
    package = resolve()
    cached = sorted(paths.CACHE.glob("guest-*/complete"), key=lambda path: path.stat().st_mtime)
    if package is None:
        if not cached:
            raise RuntimeError(f"apt knows no {META_PACKAGE}; run: apt-get update")
        root = cached[-1].parent
        return root.name[len("guest-"):], root
    kernel = package[len("linux-image-"):]
    root = paths.CACHE / f"guest-{kernel}"
    if not (root / "complete").exists() or (root / "complete").read_text() != RECIPE:
        _fetch_kernel(package, kernel, root, progress)
    return kernel, root


def resolve(meta_package=META_PACKAGE):
    """The package with the kernel; its name carries a number that moves."""
    for attempt in range(2):
        done = subprocess.run(["apt-cache", "depends", meta_package], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        found = re.search(r"Depends: (linux-image-\S+)", done.stdout)
        if found:
            return found.group(1)
        if attempt == 0:
            subprocess.run(["apt-get", "-q", "update"], stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
    return None


def _fetch_kernel(package, kernel, root, progress):
    progress(f"fetching {package} for the guests (27 MB)")
    with tempfile.TemporaryDirectory(dir=paths.CACHE, prefix="guest-new-") as name:
        work = pathlib.Path(name)
        tool.apt_download([package], work)
        tool.run(["dpkg", "-x", next(work.glob("*.deb")), work / "package"])
        tool.run(["depmod", "-b", work / "package", kernel])
        result = work / "result"
        copy_modules(work / "package", result, kernel, EARLY_MODULES + LATE_MODULES)
        image = (work / f"package/boot/vmlinuz-{kernel}").read_bytes()
        (result / "vmlinux").write_bytes(unpack(image))
        (result / "complete").write_text(RECIPE)
        shutil.rmtree(root, ignore_errors=True)
        os.chmod(result, 0o755)
        result.rename(root)


def unpack(image):
    """bzImage -> ELF, by the boot protocol's header (Documentation/x86/boot.rst)."""
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    # The payload is the compressed kernel and four bytes with its size.
    payload = image[start:start + length - 4]
    for magic, unpacker in _UNPACKERS.items():
        if payload.startswith(magic):
            vmlinux = subprocess.run(unpacker, input=payload, stdout=subprocess.PIPE,
                                     check=True).stdout
            break
    else:
        raise RuntimeError(f"the kernel is compressed in an unknown way: {payload[:8].hex()}")
    if vmlinux[:4] != b"\x7fELF":
        raise RuntimeError("the kernel's payload is no ELF file")
    return vmlinux


def module_files(base, kernel, modules):
    """Paths of `modules` and all that they need, in loading order."""
    files = []
    for name in modules:
        for line in tool.run(["modprobe", "-d", base, "-S", kernel, "--show-depends",
                              name]).splitlines():
            word, _, path = line.strip().partition(" ")
            if word == "insmod" and path.split()[0] not in files:
                files.append(path.split()[0])
    return files


def copy_modules(base, target, kernel, modules):
    for file in module_files(base, kernel, modules):
        copy = target / pathlib.Path(file).relative_to(base)
        copy.parent.mkdir(parents=True, exist_ok=True)
        # Without symbols, signature and trace events: NFS brings 300 of them,
        # and to register them takes a guest under TCG a second.
        tool.run(["strip", "--strip-unneeded", "-R", "_ftrace_events", "-R", "_ftrace_eval_map",
               "-o", copy, file])
    for name in ["modules.order", "modules.builtin"]:
        shutil.copyfile(base / f"lib/modules/{kernel}/{name}",
                        target / f"lib/modules/{kernel}/{name}")
    tool.run(["depmod", "-b", target, kernel])


# --- programs -----------------------------------------------------------------


def helpers(root, sources=GUEST_SOURCES):
    """Compiles the folder's *.c, one static program each, when they changed."""
    programs = {}
    headers = sorted((paths.REPOSITORY / "include/vgpu").glob("*.h"))
    for source in sorted(sources.glob("*.c")):
        digest = hashlib.sha256()
        for file in [source, *headers]:
            digest.update(file.read_bytes())
        binary = root / f"programs/{source.stem}-{digest.hexdigest()[:12]}"
        if not binary.exists():
            binary.parent.mkdir(exist_ok=True)
            for old in binary.parent.glob(f"{source.stem}-*"):
                old.unlink()
            fresh = binary.with_suffix(".new")
            tool.run(["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-static", "-O2", "-s", "-Wall",
                   "-Wextra", "-Werror", f"-I{paths.REPOSITORY}/include", "-o", fresh, source])
            fresh.rename(binary)
        programs[source.stem] = binary
    return programs


def _libraries(program, environment=None):
    """Shared libraries of a program, as ldd(1) names them."""
    found = []
    try:
        text = tool.run(["ldd", program], env=environment)
    except RuntimeError as error:
        if "not a dynamic executable" in str(error):
            return []
        raise
    if "not found" in text:
        raise RuntimeError(f"{program} lacks libraries:\n{text}")
    for line in text.splitlines():
        match = re.search(r"(?:=> )?(/\S+) \(0x", line)
        if match:
            found.append(match.group(1))
    return found


def _contents(kernel, root, programs):
    """Everything in the initramfs: {path in the guest: (mode, bytes)}."""
    base = f"lib/modules/{kernel}"
    entries = {
        "init": (0o755, (GUEST_SOURCES / "init").read_bytes()),
        "etc/passwd": (0o644, b"root:x:0:0::/root:/bin/sh\n"),
        "etc/group": (0o644, b"root:x:0:\nvgpu:x:990:\n"),
        "bin/busybox": (0o755, pathlib.Path("/bin/busybox").read_bytes()),
        "etc/modules": (0o644, "".join(
            f"/{pathlib.Path(file).relative_to(root)}\n"
            for file in module_files(root, kernel, EARLY_MODULES)).encode()),
    }
    for file in sorted((root / base).rglob("*")):
        if file.is_file():
            entries[str(file.relative_to(root))] = (0o644, file.read_bytes())
    for name, file in programs.items():
        entries[f"usr/bin/{name}"] = (0o755, file.read_bytes())
    for script in sorted(GUEST_SOURCES.glob("*.sh")):
        entries[f"usr/bin/{script.stem}"] = (0o755, script.read_bytes())
    return entries


def _guest_module(entries, kernel, progress):
    """Our module, where modprobe finds it."""
    base = f"lib/modules/{kernel}"
    mode, dependencies = entries[f"{base}/modules.dep"]
    return {
        f"{base}/extra/vgpu_guest.ko":
            (0o644, module.build(kernel, progress=progress).read_bytes()),
        f"{base}/modules.dep": (mode, dependencies + b"extra/vgpu_guest.ko:\n"),
    }


def with_libraries(program, *files, environment=None):
    """Entries of a program in usr/bin, and of its libraries at the places that ldd(1)
    names; `environment` is for ldd."""
    entries = {f"usr/bin/{pathlib.Path(program).name}":
               (0o755, pathlib.Path(program).read_bytes())}
    for file in [*files, *_libraries(program, environment)]:
        entries[file.lstrip("/")] = (0o755, pathlib.Path(file).read_bytes())
    return entries


# --- initramfs ----------------------------------------------------------------


def cpio(entries):
    """The `newc` archive that the kernel unpacks; not compressed, as under TCG
    unpacking costs more than reading."""
    directories = {"proc", "sys", "dev", "tmp", "run", "mnt", "mnt/vgpu", "etc", "root"}
    for name in entries:
        directories.update(str(parent) for parent in pathlib.PurePath(name).parents)
    directories.discard(".")
    members = [(name, 0o040755, b"") for name in sorted(directories)]
    members += [(name, 0o100000 | mode, data) for name, (mode, data) in sorted(entries.items())]
    members.append(("TRAILER!!!", 0, b""))
    out = bytearray()
    for number, (name, mode, data) in enumerate(members, 1):
        raw = name.encode() + b"\0"
        fields = [number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0]
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + raw
        out += b"\0" * (-len(out) % 4) + data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


def initramfs(root, entries, progress, name="initramfs", keep=KEEP_INITRAMFS):
    """The archive of `entries` in the folder `root`, made or found there; the newest
    `keep` of that name stay."""
    digest = hashlib.sha256()
    for path, (mode, data) in sorted(entries.items()):
        digest.update(f"{path}\0{mode}\0{len(data)}\0".encode() + data)
    target = root / f"{name}-{digest.hexdigest()[:16]}.cpio"
    if target.exists():
        os.utime(target)
        return target
    progress(f"making {target.name}")
    fresh = target.with_suffix(".new")
    fresh.write_bytes(cpio(entries))
    fresh.rename(target)
    by_age = sorted(root.glob(f"{name}-*.cpio"), key=lambda path: path.stat().st_mtime)
    for old in by_age[:-keep]:
        old.unlink()
    return target
