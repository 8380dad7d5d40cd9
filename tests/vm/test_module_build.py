# SPDX-License-Identifier: GPL-2.0-or-later
"""guest/: builds for the kernels that guests have, and what is packed for them."""

import os
import re
import subprocess

import pytest

from harness import image, module, paths, tool

SOURCE = paths.REPOSITORY / "guest/vgpu_guest.c"
DOCUMENT = paths.REPOSITORY / "docs/guest-module.md"


def modinfo(file, field):
    return tool.run(["modinfo", "-F", field, file]).splitlines()


@pytest.mark.parametrize("flavour", module.SUFFIXES)
def test_the_module_builds_without_a_warning_for_each_of_debians_kernels(flavour):
    kernel = image.kernel()
    built = module.build(kernel, flavour)
    release = kernel.replace("cloud-amd64", module.SUFFIXES[flavour])
    assert modinfo(built, "vermagic")[0].split()[0] == release
    assert modinfo(built, "alias") == ["pci:v00001AF4d000010F1sv*sd*bc12sc00i00*"]
    assert modinfo(built, "license") == ["GPL"]


@pytest.mark.parametrize("flavour", module.SUFFIXES)
def test_each_kernel_has_what_cached_mappings_need(flavour):
    config = (module.headers(image.kernel(), flavour) / ".config").read_text()
    assert "CONFIG_ZONE_DEVICE=y\n" in config


def test_a_second_build_does_nothing_and_a_warning_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "OUTPUT", tmp_path / "out")
    kernel = image.kernel()
    built = module.build(kernel)
    before = built.stat()
    assert module.build(kernel).stat().st_mtime_ns == before.st_mtime_ns
    copy = tmp_path / "guest"
    copy.mkdir()
    for file in (paths.REPOSITORY / "guest").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (tmp_path / "include").symlink_to(paths.REPOSITORY / "include")
    with (copy / "vgpu_guest.c").open("a") as source:
        source.write("static int unused_number;\n")
    monkeypatch.setattr(module, "SOURCES", copy)
    with pytest.raises(RuntimeError, match="unused_number"):
        module.build(kernel)


def test_the_build_needs_only_a_compiler_make_and_the_smallest_tools(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    names = ("make gcc-12 as ld ar nm objcopy objdump readelf sh bash awk sed grep find xargs cat "
             "cp rm mv ln mkdir touch tr cut head sort uniq wc uname dirname basename expr test "
             "install true false echo").split()
    for name in names:
        found = tool.run(["sh", "-c", f"PATH=/usr/bin:/bin; command -v {name}"]).strip()
        if found.startswith("/"):
            (tools / name).symlink_to(found)
    module.copy_sources(tmp_path / "source")
    done = subprocess.run(
        [tools / "make", "-C", tmp_path / "source", f"KERNEL_SOURCE={module.headers(image.kernel())}"],
        env={"PATH": str(tools)}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=360)
    assert done.returncode == 0, done.stdout
    assert "not found" not in done.stdout
    assert (tmp_path / "source/vgpu_guest.ko").exists()


def test_dkms_builds_it_from_the_folder_that_make_source_fills(tmp_path):
    kernel = image.kernel()
    trees = {name: tmp_path / name for name in ["sourcetree", "dkmstree", "installtree"]}
    for tree in trees.values():
        tree.mkdir()
    module.copy_sources(trees["sourcetree"] / "vgpu-guest-0.1.0")
    options = [word for name, tree in trees.items() for word in (f"--{name}", tree)]
    tool.run(["dkms", "build", "vgpu-guest/0.1.0", "-k", kernel, "-a", "x86_64",
              "--kernelsourcedir", module.headers(kernel), *options], stderr=subprocess.STDOUT)
    built = trees["dkmstree"] / f"vgpu-guest/0.1.0/{kernel}/x86_64/module/vgpu_guest.ko"
    assert modinfo(built, "version") == ["0.1.0"]


def test_all_versions_of_the_module_are_that_of_the_project():
    meson = (paths.REPOSITORY / "meson.build").read_text()
    version = re.search(r"version: '([^']+)'", meson)[1]
    assert f'MODULE_VERSION("{version}")' in SOURCE.read_text()
    assert f'PACKAGE_VERSION="{version}"' in (paths.REPOSITORY / "guest/dkms.conf").read_text()


def test_an_installation_brings_module_and_udev_rule(tmp_path):
    kernel = image.kernel()
    module.copy_sources(tmp_path / "source")
    make = ["make", "-C", tmp_path / "source", f"KERNEL_SOURCE={module.headers(kernel)}"]
    tool.run(make)
    tool.run([*make, "install", f"INSTALL_MOD_PATH={tmp_path}/root", f"DESTDIR={tmp_path}/root",
              "DEPMOD=true"])
    rule = (tmp_path / "root/lib/udev/rules.d/60-vgpu.rules").read_text()
    assert 'SUBSYSTEM=="vgpu", KERNEL=="vgpu[0-9]*", GROUP="vgpu", MODE="0660"' in rule
    found = list((tmp_path / f"root/lib/modules/{kernel}").rglob("vgpu_guest.ko*"))
    assert len(found) == 1


def test_every_parameter_is_described_in_the_module_and_its_document():
    source, document = SOURCE.read_text(), DOCUMENT.read_text()
    parameters = re.findall(r"^module_param\((\w+),", source, re.MULTILINE)
    assert set(parameters) == set(re.findall(r"^MODULE_PARM_DESC\((\w+),", source, re.MULTILINE))
    section = re.search(r"^## Parameters$(.*?)^## ", document, re.MULTILINE | re.DOTALL)[1]
    assert sorted(parameters) == sorted(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))


def test_every_message_of_the_module_is_in_its_document():
    source = re.sub(r'"\s*\n\s*"', "", SOURCE.read_text())
    calls = re.findall(r"dev_(?:err|warn|info|err_probe)\((?:[^\";]*?)\"([^\"]+)\\n\"", source)
    assert len(calls) >= 8
    document = re.sub(r"\s+", " ", DOCUMENT.read_text())
    for text in calls:
        for piece in re.split(r"%[0-9]*(?:ll)?[a-z]", text.removeprefix("vgpu%d: ")):
            assert piece.strip() in document, text


def test_a_wrong_option_of_build_guest_module_builds_nothing():
    done = subprocess.run([paths.REPOSITORY / "scripts/build-guest-module", "--flavour", "vanilla"],
                          env={**os.environ, "VGPU_CACHE_DIR": "/nowhere"}, text=True,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    assert done.returncode == 2
    assert "scripts/build-guest-module [--flavour cloud|generic]" in done.stdout
