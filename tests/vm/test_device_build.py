# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/build-device and scripts/build-qemu: what they refuse, and that they
do no more than what is needed.

The tests that fetch nothing put programs of their own before the system's:
an apt that offers what the test wants, a dpkg that has installed it.
"""

import os
import pathlib
import shutil
import subprocess

import pytest

from harness import paths

INSTALLED = "9:9.9+dfsg-1"
REAL_DPKG_QUERY = shutil.which("dpkg-query", path="/usr/bin:/bin")


def run(script, *arguments, root=paths.REPOSITORY, **environment):
    return subprocess.run([root / "scripts" / script, *arguments], text=True, timeout=300,
                          env={**os.environ, **{k: str(v) for k, v in environment.items()}},
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)


def installed_version():
    return subprocess.run(["dpkg-query", "-W", "-f", "${source:Version}", "qemu-system-x86"],
                          stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.fixture
def fakes(tmp_path):
    """Returns the environment in which QEMU 9.9 is installed and apt offers nothing."""
    tools = tmp_path / "tools"
    tools.mkdir()

    def put(name, text):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)

    put("dpkg-query", f"case \"$*\" in *source:Version*) echo 'installed {INSTALLED}' ;; "
                      f"*) exec {REAL_DPKG_QUERY} \"$@\" ;; esac")
    put("apt-get", "exit 100")
    put("apt-cache", "exit 0")
    return {"put": put, "environment": {"PATH": f"{tools}:{os.environ['PATH']}",
                                        "VGPU_CACHE_DIR": tmp_path / "cache"}}


@pytest.mark.parametrize("script", ["build-device", "build-qemu"])
def test_a_source_of_another_version_is_refused_with_the_remedy(fakes, script):
    fakes["put"]("apt-cache", "echo 'Version: 1:7.2+dfsg-7'; echo 'Version: 9:9.9+dfsg-10'")
    done = run(script, **fakes["environment"])
    assert done.returncode == 1
    assert (f"{script}: QEMU {INSTALLED} is installed, but the package sources offer the source "
            "of: 1:7.2+dfsg-7 9:9.9+dfsg-10. Bring both to one version: apt-get update && "
            "apt-get install --only-upgrade qemu-system-x86") in done.stdout


def test_package_sources_without_qemu_are_named_as_the_cause(fakes):
    done = run("build-device", **fakes["environment"])
    assert done.returncode == 1
    assert "this machine's package sources gave no source package of qemu" in done.stdout


@pytest.mark.parametrize("script,arguments", [("build-device", []), ("build-qemu", ["--find"])])
def test_a_machine_without_qemu_is_told_what_to_install(fakes, script, arguments):
    fakes["put"]("dpkg-query", f"case \"$*\" in *source:Version*) exit 1 ;; "
                               f"*) exec {REAL_DPKG_QUERY} \"$@\" ;; esac")
    done = run(script, *arguments, **fakes["environment"])
    assert done.returncode == 1
    assert "qemu-system-x86 is not installed: run scripts/deps install vm device" in done.stdout


def test_both_formats_of_package_sources_become_sources_of_source_packages(fakes, tmp_path):
    parts = tmp_path / "etc/sources.list.d"
    parts.mkdir(parents=True)
    (tmp_path / "etc/sources.list").write_text(
        "# deb http://comment.example one main\n"
        "deb [signed-by=/k.gpg] http://line.example two main\n"
        "deb-src [signed-by=/k.gpg] http://line.example two main\n")
    (parts / "more.list").write_text("deb http://more.example three main contrib\n")
    (parts / "new.sources").write_text(
        "Types: deb deb-src\nURIs: http://new.example\nSuites: four\nComponents: main\n\n"
        "Enabled: no\ntypes: deb\nURIs: http://off.example\nSuites: five\nComponents: main\n")
    config = tmp_path / "apt.conf"
    config.write_text(f'Dir::Etc "{tmp_path}/etc";\n')
    copy = tmp_path / "copy"
    fakes["put"]("apt-get", "for word; do case $word in Dir::Etc::sourceparts=*) "
                            f"cp -r \"${{word#*=}}\" {copy} ;; esac; done; exit 100")
    run("build-device", APT_CONFIG=config, **fakes["environment"])
    written = {file.name: file.read_text() for file in copy.iterdir()}
    assert written == {
        "line-sources.list": "deb-src [signed-by=/k.gpg] http://line.example two main\n",
        "line-more.list": "deb-src http://more.example three main contrib\n",
        "new.sources":
            "Types: deb-src\nURIs: http://new.example\nSuites: four\nComponents: main\n\n"
            "Enabled: no\nTypes: deb-src\nURIs: http://off.example\nSuites: five\n"
            "Components: main\n"}


def test_a_second_build_does_nothing(tmp_path):
    output = tmp_path / "vgpu-stub.so"
    assert run("build-device", output).returncode == 0
    before = output.stat()
    again = run("build-device", output)
    assert (again.returncode, again.stdout) == (0, "")
    after = output.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.fixture
def tree(tmp_path):
    """A copy of what the device is built from; QEMU's headers are those of the real cache."""
    assert run("build-device", tmp_path / "warm.so").returncode == 0
    copy = tmp_path / "tree"
    for name in ["scripts", "device", "include"]:
        shutil.copytree(paths.REPOSITORY / name, copy / name)
    name = f"qemu-{installed_version().partition(':')[2]}"
    cache = copy / ".cache" / name
    cache.mkdir(parents=True)
    for part in ["headers", "flags", "source"]:
        (cache / part).symlink_to(paths.CACHE / name / part)
    return copy


def files_of(tree):
    return {str(path.relative_to(tree)) for path in tree.rglob("*")}


def test_two_builds_at_once_both_end_well_and_leave_the_tree_clean(tree):
    before = files_of(tree)
    environment = {key: value for key, value in os.environ.items() if key != "VGPU_CACHE_DIR"}
    builds = [subprocess.Popen([tree / "scripts/build-device"], env=environment, text=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT) for _ in range(2)]
    outputs = [build.communicate(timeout=360)[0] for build in builds]
    assert [build.returncode for build in builds] == [0, 0], outputs
    assert "".join(outputs).count("compiling") == 1
    new = {path for path in files_of(tree) - before if not path.startswith(".cache/")}
    assert new == {"build", "build/device", "build/device/vgpu-stub.so"}


def test_a_changed_source_is_compiled_and_a_broken_one_keeps_the_old_object(tree):
    cache = {"VGPU_CACHE_DIR": tree / ".cache"}
    output = tree / "build/device/vgpu-stub.so"
    assert run("build-device", root=tree, **cache).returncode == 0
    first = output.read_bytes()

    header = tree / "include/vgpu/regs.h"
    good = header.read_text()
    header.write_text(good.replace("#define VGPU_VERSION_MINOR 1", "#define VGPU_VERSION_MINOR 7"))
    assert run("build-device", root=tree, **cache).returncode == 0
    second = output.read_bytes()
    assert second != first

    header.write_text(good.replace("#define VGPU_VERSION_MINOR 1", "#define VGPU_VERSION_MINOR ?"))
    done = run("build-device", root=tree, **cache)
    assert done.returncode != 0
    assert "error: expected expression" in done.stdout
    assert output.read_bytes() == second


def test_the_built_in_qemu_is_found_only_when_it_is_there_and_current(tree):
    cache = tree / ".cache"
    found = run("build-qemu", "--find", root=tree, VGPU_CACHE_DIR=cache)
    assert (found.returncode, found.stdout) == (
        1, "build-qemu: there is no QEMU with the device built in yet: run make qemu\n")

    place = next(cache.iterdir())
    (place / "bin").mkdir()
    (place / "bin/qemu-system-x86_64").write_text("#!/bin/sh\n")
    (place / "bin/qemu-system-x86_64").chmod(0o755)
    (place / "intree.inputs").write_text("the sources of last week\n")
    found = run("build-qemu", "--find", root=tree, VGPU_CACHE_DIR=cache)
    assert (found.returncode, found.stdout) == (
        1, "build-qemu: the QEMU with the device built in is older than its sources: "
           "run make qemu\n")


def test_an_unknown_option_of_build_qemu_builds_nothing(tree):
    done = run("build-qemu", "--fidn", root=tree, VGPU_CACHE_DIR=tree / ".cache")
    assert done.returncode == 2
    assert "scripts/build-qemu --find" in done.stdout


def test_the_patch_fits_the_source_that_is_installed(tree):
    source = next((tree / ".cache").iterdir()) / "source"
    series = ".".join((source / "VERSION").read_text().strip().split(".")[:2])
    done = subprocess.run(["patch", "-p1", "--fuzz=0", "--dry-run", "-d", source, "-i",
                           pathlib.Path(tree / f"device/qemu-{series}.patch")], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    assert "offset" not in done.stdout
