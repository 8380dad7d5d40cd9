# SPDX-License-Identifier: Apache-2.0
"""vgpu_guest.ko for a Debian kernel that is not installed here.

The kernel's headers are taken out of Debian's packages, as its image is (see
image.py), and made to find each other where they lie.  A build takes two
seconds, so it happens whenever a source has changed, in a copy of guest/.

    .cache/headers-<abi>/usr/src/linux-headers-<abi>-cloud-amd64/     flavour `cloud`
                         usr/src/linux-headers-<abi>-amd64/           flavour `generic`
                         usr/src/linux-headers-<abi>-common/
                         usr/lib/linux-kbuild-<series>/
    build/guest/<kernel>/vgpu_guest.ko
                         inputs             hash of all that it was built from

Building needs gcc-12, make and libelf1, nothing else that a minimal system has
not.
"""

import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import tempfile

from . import paths, tool

SUFFIXES = {"cloud": "cloud-amd64", "generic": "amd64"}
RECIPE = "1"  # to be raised when what _fetch_headers() makes changes
SOURCES = paths.REPOSITORY / "guest"
OUTPUT = paths.REPOSITORY / "build/guest"


def build(cloud_kernel, flavour="cloud", progress=None):
    """Returns the .ko for the kernel, or its generic sister; made or as it was.

    Any warning, also one of modpost, is an error.
    """
    progress = progress or (lambda text: None)
    abi = cloud_kernel[:-len("-cloud-amd64")]
    kernel = f"{abi}-{SUFFIXES[flavour]}"
    with tool.locked("guest-module"):
        digest = _inputs(kernel)
        target = OUTPUT / kernel / "vgpu_guest.ko"
        noted = target.with_name("inputs")
        if target.exists() and noted.exists() and noted.read_text() == digest:
            return target
        headers = _headers(abi, progress) / f"usr/src/linux-headers-{kernel}"
        progress(f"compiling vgpu_guest.ko for {kernel}")
        target.parent.mkdir(parents=True, exist_ok=True)
        noted.unlink(missing_ok=True)
        _compile(headers, target)
        noted.write_text(digest)
        return target


def _inputs(kernel):
    digest = hashlib.sha256(f"{RECIPE} {kernel}\0".encode())
    headers = [paths.REPOSITORY / f"include/vgpu/{name}.h" for name in ("guest", "regs", "window")]
    for file in [SOURCES / "vgpu_guest.c", SOURCES / "Kbuild", SOURCES / "Makefile", *headers]:
        digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def copy_sources(target):
    """guest/ as it is packed for guests: with the shared headers inside."""
    tool.run(["make", "-C", SOURCES, "source", f"TARGET={target}"])


def _compile(headers, target):
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="work-") as name:
        work = pathlib.Path(name)
        copy_sources(work / "source")
        printed = tool.run(["make", "-C", work / "source", f"KERNEL_SOURCE={headers}", "W=1",
                            "KCFLAGS=-Werror"], stderr=subprocess.STDOUT)
        if re.search(r"warning", printed, re.IGNORECASE):
            raise RuntimeError(f"vgpu_guest.ko was built with warnings:\n{printed}")
        tool.run(["strip", "--strip-debug", "-o", work / "result.ko",
                  work / "source/vgpu_guest.ko"])
        (work / "result.ko").rename(target)


# --- headers --------------------------------------------------------------------


def headers(cloud_kernel, flavour="cloud", progress=None):
    """The folder that a module is built against: KERNEL_SOURCE."""
    abi = cloud_kernel[:-len("-cloud-amd64")]
    with tool.locked("guest-module"):
        root = _headers(abi, progress or (lambda text: None))
    return root / f"usr/src/linux-headers-{abi}-{SUFFIXES[flavour]}"


def _headers(abi, progress):
    root = paths.CACHE / f"headers-{abi}"
    if not (root / "complete").exists() or (root / "complete").read_text() != RECIPE:
        _fetch_headers(abi, root, progress)
    return root


def _fetch_headers(abi, root, progress):
    progress(f"fetching the headers of kernel {abi} (16 MB)")
    series = ".".join(abi.split(".")[:2])
    packages = [f"linux-headers-{abi}-{suffix}" for suffix in (*SUFFIXES.values(), "common")]
    with tempfile.TemporaryDirectory(dir=paths.CACHE, prefix="headers-new-") as name:
        work = pathlib.Path(name)
        (work / "packages").mkdir()
        tool.apt_download([*packages, f"linux-kbuild-{series}"], work / "packages")
        for package in sorted((work / "packages").glob("*.deb")):
            tool.run(["dpkg", "-x", package, work / "result"])
        for suffix in SUFFIXES.values():
            _relocate(work / f"result/usr/src/linux-headers-{abi}-{suffix}/Makefile", abi)
        (work / "result/complete").write_text(RECIPE)
        shutil.rmtree(root, ignore_errors=True)
        os.chmod(work / "result", 0o755)
        (work / "result").rename(root)


def _relocate(makefile, abi):
    """Debian's names the common headers by their installed place."""
    text = makefile.read_text()
    installed = f"include /usr/src/linux-headers-{abi}-common/Makefile"
    if installed not in text:
        raise RuntimeError(f"{makefile} is not as expected: {text!r}")
    makefile.write_text(text.replace(
        installed,
        f"include $(dir $(lastword $(MAKEFILE_LIST)))../linux-headers-{abi}-common/Makefile"))
