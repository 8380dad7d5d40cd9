# SPDX-License-Identifier: GPL-2.0-or-later
"""The device for XCP-ng's QEMU 4.2.1, as far as it can be shown without its source.

No package source that this project uses has that source, so the device is compiled
against declarations of our own (tests/qemu-4.2), which are as good as our reading of
that version.  docs/support.md calls it so: not built against the real tree.
"""

import pathlib
import re
import shutil
import subprocess

import pytest

from support import REPOSITORY

DEVICE = ["vgpu_stub.c", "vgpu_window.c", "vgpu_link.c", "vgpu_irqfd.c"]
HEADERS_OF_4_2 = """
chardev/char-fe.h hw/pci/msi.h hw/pci/msix.h hw/pci/pci.h hw/qdev-properties.h
migration/blocker.h migration/vmstate.h qapi/error.h qapi/visitor.h qemu/error-report.h
qemu/event_notifier.h qemu/log.h qemu/main-loop.h qemu/module.h qemu/osdep.h
sysemu/hostmem.h sysemu/kvm.h""".split()
# QEMU 4.2's own set, as its configure script asks for it.
WARNINGS = """-D_GNU_SOURCE -std=gnu99 -Wall -Werror -Wstrict-prototypes -Wredundant-decls -Wundef
-Wwrite-strings -Wmissing-prototypes -fno-strict-aliasing -fno-common -Wold-style-declaration
-Wold-style-definition -Wtype-limits -Wformat-security -Wformat-y2k -Winit-self
-Wignored-qualifiers -Wempty-body -Wnested-externs -Wendif-labels
-Wno-missing-include-dirs""".split()

# Where the patch finds its place, as in 4.2's file, between lines of other versions.
MAKEFILE = """common-obj-$(CONFIG_{above}) += above.o
common-obj-$(CONFIG_PCI_TESTDEV) += pci-testdev.o
common-obj-$(CONFIG_EDU) += edu.o
common-obj-$(CONFIG_PCA9552) += pca9552.o

common-obj-$(CONFIG_UNIMP) += unimp.o
"""

SPEC = """Name: qemu
Version: 4.2.1
Release: %{?xsrel}.2%{?dist}
Source0: qemu-4.2.1.tar.gz
Patch0: 0001-first.patch
Patch86: build-configuration.patch

# XCP-ng patches
Patch1000: qemu-4.2.1-CVE-2023-3354.backport.patch

BuildRequires: gcc

%prep
%autosetup -p1
"""


def glib_flags():
    if not shutil.which("gcc") or not shutil.which("pkg-config"):
        pytest.skip("there is no gcc or no pkg-config here")
    done = subprocess.run(["pkg-config", "--cflags", "glib-2.0"], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True)
    if done.returncode != 0:
        pytest.skip("there is no libglib2.0-dev here (scripts/deps install device)")
    return done.stdout.split()


def compile_device(place, source, *options):
    for name in HEADERS_OF_4_2:
        header = place / "headers" / name
        header.parent.mkdir(parents=True, exist_ok=True)
        header.write_text('#include "declarations.h"\n')
    return subprocess.run(
        ["gcc", "-O2", *WARNINGS, *glib_flags(), *options, "-I", place / "headers",
         "-I", REPOSITORY / "tests/qemu-4.2", "-I", REPOSITORY / "include",
         "-c", REPOSITORY / "device" / source, "-o", place / "device.o"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("source", DEVICE)
def test_the_device_compiles_against_what_qemu_4_2_declares(tmp_path, source):
    done = compile_device(tmp_path, source)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_later_versions_have_does_not_compile_here(tmp_path):
    """So the test above can fail."""
    done = compile_device(tmp_path, "vgpu_stub.c", "-DQEMU_VERSION_MAJOR=5")
    assert done.returncode != 0 and "hw/qdev-properties-system.h" in done.stdout
    done = compile_device(tmp_path, "vgpu_stub.c", "-DQEMU_VERSION_MAJOR=8")
    assert done.returncode != 0 and "hw/pci/pci_device.h" in done.stdout


# --- the patch ---------------------------------------------------------------------------


def device_patch(*arguments):
    return subprocess.run([REPOSITORY / "scripts/device-patch", *arguments],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def make_tree(place):
    makefile = place / "qemu/hw/misc/Makefile.objs"
    makefile.parent.mkdir(parents=True)
    makefile.write_text(MAKEFILE.format(above="ISA_TESTDEV"))
    return place / "qemu"


@pytest.mark.skipif(not shutil.which("patch"), reason="there is no patch here")
def test_the_patch_puts_the_whole_device_into_the_source(tmp_path):
    tree, patch = make_tree(tmp_path), tmp_path / "vgpu-stub-4.2.patch"
    assert device_patch("4.2", patch).returncode == 0
    done = subprocess.run(["patch", "-d", tree, "-p1", "--fuzz=0", "-i", patch],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    lines = (tree / "hw/misc/Makefile.objs").read_text().splitlines()
    assert lines[lines.index("common-obj-$(CONFIG_EDU) += edu.o") + 1] == \
        "common-obj-$(CONFIG_PCI) += vgpu/"
    objects = (tree / "hw/misc/vgpu/Makefile.objs").read_text()
    assert sorted(re.findall(r"(\w+)\.o", objects)) == sorted(name[:-2] for name in DEVICE)
    for path in (tree / "hw/misc/vgpu").glob("*.[ch]"):
        assert path.read_text() == (REPOSITORY / "device" / path.name).read_text()
    for name in ["link.h", "regs.h", "window.h"]:
        assert (tree / "include/vgpu" / name).read_text() == \
            (REPOSITORY / "include/vgpu" / name).read_text()


@pytest.mark.skipif(not shutil.which("patch"), reason="there is no patch here")
def test_what_the_device_includes_is_in_the_patched_source(tmp_path):
    """So nothing of ours was forgotten in the list of files."""
    tree, patch = make_tree(tmp_path), tmp_path / "device.patch"
    device_patch("4.2", patch)
    subprocess.run(["patch", "-s", "-d", tree, "-p1", "-i", patch], check=True)
    for path in (tree / "hw/misc/vgpu").glob("*.[ch]"):
        for name in re.findall(r'#include "(.*)"', path.read_text()):
            ours = (path.parent / name).exists() or (tree / "include" / name).exists()
            later = "pci_device.h" in name or name.startswith(("system/", "hw/qdev-properties-"))
            assert ours or later or name in HEADERS_OF_4_2, name


def test_the_patch_is_the_same_each_time_and_knows_its_series():
    assert device_patch("4.2").stdout == device_patch("4.2").stdout
    done = device_patch("6.1")
    assert done.returncode == 1 and "there are qemu-4.2.patch qemu-7.2.patch" in done.stderr
    assert device_patch("newest").returncode == 2


# --- the platform's package ----------------------------------------------------------------


def add_device(*arguments):
    done = subprocess.run([REPOSITORY / "packaging/rpm/add-device-to-qemu", *arguments],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def test_the_platforms_spec_gets_one_patch_and_a_release_of_its_own(tmp_path):
    spec, patch = tmp_path / "SPECS/qemu.spec", tmp_path / "vgpu-stub-4.2.patch"
    spec.parent.mkdir()
    spec.write_text(SPEC)
    device_patch("4.2", patch)
    assert add_device(spec, patch)[0] == 0
    assert spec.read_text() == SPEC.replace("%{?dist}", ".vgpu1%{?dist}").replace(
        "backport.patch\n", "backport.patch\n# vgpu-mediator: the device vgpu-stub\n"
        "Patch9000: vgpu-stub-4.2.patch\n")
    assert (tmp_path / "SOURCES" / patch.name).read_text() == patch.read_text()
    changed = spec.read_text()
    status, said = add_device(spec, patch)
    assert status == 0 and "already" in said and spec.read_text() == changed


@pytest.mark.parametrize("old,new,words", [
    ("%autosetup -p1", "%setup -q", "the patch would not be applied"),
    (r"Patch\d+:.*\n", "", "names no patch"),
    ("%{.dist}", "", "has no 'Release:"),
])
def test_a_spec_of_another_kind_stays_as_it_is(tmp_path, old, new, words):
    spec, patch = tmp_path / "qemu.spec", tmp_path / "device.patch"
    spec.write_text(re.sub(re.escape(old) if old.startswith("%a") else old, new, SPEC))
    before = spec.read_text()
    device_patch("4.2", patch)
    status, said = add_device(spec, patch)
    assert status == 1 and words in said and spec.read_text() == before


def test_a_patch_without_the_device_is_refused(tmp_path):
    spec = tmp_path / "qemu.spec"
    spec.write_text(SPEC)
    assert "is no patch with the device" in add_device(spec, pathlib.Path("/dev/null"))[1]
    assert "there is no " in add_device(tmp_path / "other.spec", spec)[1]
