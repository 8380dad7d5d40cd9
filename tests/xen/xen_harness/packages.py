# SPDX-License-Identifier: Apache-2.0
"""Xen, its tools and a kernel, out of Debian's packages; nothing is installed.

    .cache/xen-<version>-<kernel>/xen               the hypervisor, an ELF file
                                  vmlinux, vmlinuz  Dom0's kernel and its guests'
                                  lib/modules/…     what they load
                                  packages/…        the tools and their libraries

Which packages: `scripts/deps list xen-image`.
"""

import gzip
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

from harness import image, paths, tool

KERNEL_PACKAGE = "linux-image-amd64"  # the cloud kernel cannot be a Dom0
HYPERVISOR_PACKAGE = "xen-hypervisor-4.17-amd64"
DOM0_MODULES = ["virtio_pci", "virtio_console", "xen-privcmd", "xen-evtchn", "xen-gntdev",
                "xen-gntalloc", "xenfs"]
GUEST_MODULES = ["xen-evtchn", "xen-gntalloc"]
WORKER_MODULES = ["xen-evtchn", "xen-gntdev"]  # of Dom0's
RECIPE = "1"  # to be raised when what _fetch() makes changes


class PackagesMissing(RuntimeError):
    """Xen's packages cannot be fetched here."""


class Packages:
    def __init__(self, root, kernel):
        self.root = root
        self.kernel = kernel  # its release, as uname -r says it

    @property
    def hypervisor(self):
        return self.root / "xen"

    @property
    def vmlinux(self):
        return self.root / "vmlinux"

    def file(self, path):
        """A file of the packages."""
        return self.root / "packages" / path

    def environment(self):
        """In which ldd(1) finds the tools' libraries."""
        return {**os.environ, "LD_LIBRARY_PATH": str(self.file("usr/lib/x86_64-linux-gnu"))}


def get(progress=lambda text: None):
    """Returns the Packages, fetched or taken from the cache; the caller holds a lock."""
    version, kernel_package = _candidate(), image.resolve(KERNEL_PACKAGE)
    if version is None or kernel_package is None:
        return _newest_cached()
    kernel = kernel_package[len("linux-image-"):]
    root = paths.CACHE / f"xen-{version}-{kernel}"
    complete = root / "complete"
    if not complete.exists() or complete.read_text() != RECIPE:
        try:
            _fetch(kernel_package, kernel, root, progress)
        except RuntimeError as error:
            raise PackagesMissing(f"Xen's packages cannot be fetched: {error}") from error
    return Packages(root, kernel)


def _candidate():
    """The version of Xen that apt offers; None where it knows none."""
    done = subprocess.run(["apt-cache", "policy", HYPERVISOR_PACKAGE], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                          env={**os.environ, "LC_ALL": "C"})
    found = re.search(r"Candidate: (\d\S*)", done.stdout)
    return found.group(1) if found else None


def _newest_cached():
    cached = sorted(paths.CACHE.glob("xen-*/complete"), key=lambda path: path.stat().st_mtime)
    if not cached:
        raise PackagesMissing(f"apt knows no {HYPERVISOR_PACKAGE} or no {KERNEL_PACKAGE}: "
                              "run apt-get update, on Debian 12 (amd64)")
    root = cached[-1].parent
    return Packages(root, next((root / "lib/modules").iterdir()).name)


def _fetch(kernel_package, kernel, root, progress):
    progress("fetching Xen and its kernel (80 MB)")
    names = tool.run([paths.REPOSITORY / "scripts/deps", "list", "xen-image"]).split()
    with tempfile.TemporaryDirectory(dir=paths.CACHE, prefix="xen-new-") as name:
        work = pathlib.Path(name)
        tool.apt_download([kernel_package, *names], work)
        result = work / "result"
        _take_kernel(work, result, kernel)
        _take_tools(work, result)
        (result / "complete").write_text(RECIPE)
        shutil.rmtree(root, ignore_errors=True)
        os.chmod(result, 0o755)
        result.rename(root)


def _take_kernel(work, result, kernel):
    package = next(work.glob("linux-image-*.deb"))
    tool.run(["dpkg", "-x", package, work / "kernel"])
    package.unlink()
    tool.run(["depmod", "-b", work / "kernel", kernel])
    image.copy_modules(work / "kernel", result, kernel, sorted({*DOM0_MODULES, *GUEST_MODULES}))
    bzimage = work / f"kernel/boot/vmlinuz-{kernel}"
    shutil.copyfile(bzimage, result / "vmlinuz")
    (result / "vmlinux").write_bytes(image.unpack(bzimage.read_bytes()))
    tool.run(["strip", "--strip-debug", result / "vmlinux"])


def _take_tools(work, result):
    for package in sorted(work.glob("*.deb")):
        tool.run(["dpkg", "-x", package, result / "packages"])
    shutil.rmtree(result / "packages/usr/share")  # documents
    hypervisor, = (result / "packages/boot").glob("xen-*.gz")
    (result / "xen").write_bytes(gzip.decompress(hypervisor.read_bytes()))
    shutil.rmtree(result / "packages/boot")
