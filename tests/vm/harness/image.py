# SPDX-License-Identifier: Apache-2.0
"""The guests' kernel and initramfs.

Kernel: the one that linux-image-cloud-amd64 depends on, taken out of Debian's
package without installing it and unpacked to a plain ELF file, because under
TCG the guest's own unpacking costs two seconds a boot.

Initramfs: busybox, the kernel modules that a guest needs here, and programs:
the agent and the other helpers of tests/vm/guest/ (each .c one static
program), vgpu-client, and on request lspci with its libraries (10 MB).  Its
name carries the hash of all that went in: a changed program makes a new one.

    .cache/guest-<kernel>/vmlinux
                          lib/modules/<kernel>/…     only what guests load
                          initramfs-<hash>.cpio      the newest few are kept
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import pathlib
import re
import shutil
import struct
import subprocess
import tempfile

from . import paths

META_PACKAGE = "linux-image-cloud-amd64"
EARLY_MODULES = ["virtio_pci", "virtio_console"]
LATE_MODULES = ["virtio_net", "nfs", "nfsv4"]
KEEP_INITRAMFS = 4
RECIPE = "2"  # to be raised when what _fetch_kernel() makes changes
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


@contextlib.contextmanager
def locked(name):
    paths.CACHE.mkdir(parents=True, exist_ok=True)
    with open(paths.CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _tool(argv, **options):
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, argv))}: status {done.returncode}: "
                           f"{done.stdout}{done.stderr}")
    return done.stdout


@functools.lru_cache(maxsize=None)
def get(client=None, progress=None, lspci=False):
    """Returns the Image, made or taken from the cache.

    `client` is the vgpu-client to put in; None takes the built one if there is
    one.  Tests that need it fail in the guest with a clear "not found".  One
    process asks once: what is built later is for the next one.
    """
    progress = progress or (lambda text: None)
    with locked("guest-image"):
        kernel, root = _kernel(progress)
        programs = _helpers(root)
        if client is None and (paths.BUILD / "src/client/vgpu-client").exists():
            client = paths.client()
        if client is not None:
            programs["vgpu-client"] = pathlib.Path(client)
        entries = _contents(kernel, root, programs)
        if lspci:
            entries.update(_lspci())
        return Image(kernel, root / "vmlinux", _initramfs(root, entries, progress))


# --- kernel -------------------------------------------------------------------


def _kernel(progress):
    """Which kernel, and its folder in the cache."""
    package = _resolve()
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


def _resolve():
    """The package with the kernel; its name carries a number that moves."""
    for attempt in range(2):
        done = subprocess.run(["apt-cache", "depends", META_PACKAGE], text=True,
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
        download = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package]
        try:
            _tool(download, cwd=work)
        except RuntimeError:
            _tool(["apt-get", "-q", "update"])
            _tool(download, cwd=work)
        _tool(["dpkg", "-x", next(work.glob("*.deb")), work / "package"])
        _tool(["depmod", "-b", work / "package", kernel])
        result = work / "result"
        _copy_modules(work / "package", result, kernel)
        image = (work / f"package/boot/vmlinuz-{kernel}").read_bytes()
        (result / "vmlinux").write_bytes(_unpack(image))
        (result / "complete").write_text(RECIPE)
        shutil.rmtree(root, ignore_errors=True)
        os.chmod(result, 0o755)
        result.rename(root)


def _unpack(image):
    """bzImage -> ELF, by the boot protocol's header (Documentation/x86/boot.rst)."""
    setup_sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    # The payload is the compressed kernel and four bytes with its size.
    payload = image[start:start + length - 4]
    for magic, tool in _UNPACKERS.items():
        if payload.startswith(magic):
            vmlinux = subprocess.run(tool, input=payload, stdout=subprocess.PIPE, check=True).stdout
            break
    else:
        raise RuntimeError(f"the kernel is compressed in an unknown way: {payload[:8].hex()}")
    if vmlinux[:4] != b"\x7fELF":
        raise RuntimeError("the kernel's payload is no ELF file")
    return vmlinux


def _module_files(base, kernel, modules):
    """Paths of `modules` and all that they need, in loading order."""
    files = []
    for module in modules:
        for line in _tool(["modprobe", "-d", base, "-S", kernel, "--show-depends",
                           module]).splitlines():
            word, _, path = line.strip().partition(" ")
            if word == "insmod" and path.split()[0] not in files:
                files.append(path.split()[0])
    return files


def _copy_modules(base, target, kernel):
    for file in _module_files(base, kernel, EARLY_MODULES + LATE_MODULES):
        copy = target / pathlib.Path(file).relative_to(base)
        copy.parent.mkdir(parents=True, exist_ok=True)
        # Without symbols, signature and trace events: NFS brings 300 of them,
        # and to register them takes a guest under TCG a second.
        _tool(["strip", "--strip-unneeded", "-R", "_ftrace_events", "-R", "_ftrace_eval_map",
               "-o", copy, file])
    for name in ["modules.order", "modules.builtin"]:
        shutil.copyfile(base / f"lib/modules/{kernel}/{name}",
                        target / f"lib/modules/{kernel}/{name}")
    _tool(["depmod", "-b", target, kernel])


# --- programs -----------------------------------------------------------------


def _helpers(root):
    """Compiles tests/vm/guest/*.c, one static program each, when they changed."""
    programs = {}
    headers = sorted((paths.REPOSITORY / "include/vgpu").glob("*.h"))
    for source in sorted(GUEST_SOURCES.glob("*.c")):
        digest = hashlib.sha256()
        for file in [source, *headers]:
            digest.update(file.read_bytes())
        binary = root / f"programs/{source.stem}-{digest.hexdigest()[:12]}"
        if not binary.exists():
            binary.parent.mkdir(exist_ok=True)
            for old in binary.parent.glob(f"{source.stem}-*"):
                old.unlink()
            fresh = binary.with_suffix(".new")
            _tool(["gcc", "-std=gnu11", "-D_GNU_SOURCE", "-static", "-O2", "-s", "-Wall",
                   "-Wextra", "-Werror", f"-I{paths.REPOSITORY}/include", "-o", fresh, source])
            fresh.rename(binary)
        programs[source.stem] = binary
    return programs


def _libraries(program):
    """Shared libraries of a program of this machine, as ldd(1) names them."""
    found = []
    for line in _tool(["ldd", program]).splitlines():
        match = re.search(r"(?:=> )?(/\S+) \(0x", line)
        if match:
            found.append(match.group(1))
    return found


def _contents(kernel, root, programs):
    """Everything in the initramfs: {path in the guest: (mode, bytes)}."""
    base = f"lib/modules/{kernel}"
    entries = {
        "init": (0o755, (GUEST_SOURCES / "init").read_bytes()),
        "bin/busybox": (0o755, pathlib.Path("/bin/busybox").read_bytes()),
        "etc/modules": (0o644, "".join(
            f"/{pathlib.Path(file).relative_to(root)}\n"
            for file in _module_files(root, kernel, EARLY_MODULES)).encode()),
    }
    for file in sorted((root / base).rglob("*")):
        if file.is_file():
            entries[str(file.relative_to(root))] = (0o644, file.read_bytes())
    for name, file in programs.items():
        entries[f"usr/bin/{name}"] = (0o755, file.read_bytes())
    for script in sorted(GUEST_SOURCES.glob("*.sh")):
        entries[f"usr/bin/{script.stem}"] = (0o755, script.read_bytes())
    return entries


def _lspci():
    entries = {}
    for file in ["/usr/bin/lspci", "/usr/share/misc/pci.ids", *_libraries("/usr/bin/lspci")]:
        entries[file.lstrip("/")] = (0o755, pathlib.Path(file).read_bytes())
    return entries


# --- initramfs ----------------------------------------------------------------


def _cpio(entries):
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


def _initramfs(root, entries, progress):
    digest = hashlib.sha256()
    for name, (mode, data) in sorted(entries.items()):
        digest.update(f"{name}\0{mode}\0{len(data)}\0".encode() + data)
    target = root / f"initramfs-{digest.hexdigest()[:16]}.cpio"
    if target.exists():
        os.utime(target)
        return target
    progress("making the guests' initramfs")
    fresh = target.with_suffix(".new")
    fresh.write_bytes(_cpio(entries))
    fresh.rename(target)
    by_age = sorted(root.glob("initramfs-*.cpio"), key=lambda path: path.stat().st_mtime)
    for old in by_age[:-KEEP_INITRAMFS]:
        old.unlink()
    return target
