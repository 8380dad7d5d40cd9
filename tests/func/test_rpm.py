# SPDX-License-Identifier: Apache-2.0
"""Packages for XCP-ng: the spec file makes them here, from programs that are built
already; what they ask of the C library is told, and what their unit asks of systemd.

That they install and run on XCP-ng is not shown by anything here.
"""

import os
import re
import shutil
import subprocess

import pytest

from support import BUILD, REPOSITORY, is_sanitized

SPEC = REPOSITORY / "packaging/rpm/vgpu-mediator.spec"
UNITS = ["vgpu-mediator", "vgpu-relay", "vgpu-xen"]
PROGRAMS = ["src/mediator/vgpu-mediator", "src/exec/vgpu-worker", "src/admin/vgpu-admin",
            "src/gpu/vgpu-gpu-check", "src/xen/vgpu-xen", "src/relay/vgpu-relay"]


def needs(program):
    return pytest.mark.skipif(not shutil.which(program), reason=f"there is no {program} here")


def run(*argv, **options):
    return subprocess.run([str(word) for word in argv], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


# --- the packages ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """{name without version: the package's file}"""
    if not shutil.which("rpmbuild"):
        pytest.skip("there is no rpmbuild here (scripts/deps install test)")
    top = tmp_path_factory.mktemp("rpm")
    (top / "BUILD").mkdir()
    defines = {"_topdir": top, "_tmppath": top, "_dbpath": top / "db", "vgpu_built": BUILD,
               "vgpu_python": "/usr/bin/python2",
               "_prefix": "/usr/local", "_sysconfdir": "/usr/local/etc",
               "debug_package": "%{nil}", "__os_install_post": "%{nil}",
               "_binary_payload": "w0.gzdio"}
    words = [word for name, value in defines.items()
             for word in ("--define", f"{name} {value}")]
    done = run("rpmbuild", "-bb", "--nodeps", *words, SPEC)
    assert done.returncode == 0, done.stdout[-4000:]
    found = {re.sub(r"-\d.*", "", path.name): path for path in top.glob("RPMS/*/*.rpm")}
    yield found
    shutil.rmtree(top)


def query(package, *words):
    return subprocess.run(["rpm", "-qp", *words, str(package)], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True, check=True).stdout


def files_of(package):
    return set(query(package, "-l").split())


def test_each_file_is_in_one_package_and_each_package_has_its_own(packages):
    contents = {name: files_of(path) for name, path in packages.items()}
    expected = {
        "vgpu-mediator": ["sbin/vgpu-mediator", "libexec/vgpu-mediator/vgpu-worker",
                          "sbin/vgpu-xen", "sbin/vgpu-relay",
                          *[f"lib/systemd/system/{unit}.service" for unit in UNITS]],
        "vgpu-mediator-admin": ["sbin/vgpu-admin"],
        "vgpu-mediator-client": ["bin/vgpu-client"],
        "vgpu-mediator-xcp-ng": ["libexec/vgpu-mediator/qemu-wrapper-vgpu",
                                 "libexec/vgpu-mediator/vgpu_qemu_wrapper.py",
                                 "libexec/vgpu-mediator/vgpu-vm-startup",
                                 "share/vgpu-mediator/xapi-plugin-vgpu",
                                 "share/vgpu-mediator/xenopsd-vgpu.conf"],
    }
    assert set(contents) == set(expected)
    for name, paths in expected.items():
        assert {f"/usr/local/{path}" for path in paths} <= contents[name], name
    everything = [path for paths in contents.values() for path in paths]
    assert len(everything) == len(set(everything))
    assert not any("qemu-with-vgpu" in path or "apparmor" in path for path in everything)


def test_installing_puts_nothing_where_the_platform_would_find_it(packages):
    for path in packages.values():
        assert not any(name.startswith(("/etc", "/usr/lib64/xen")) for name in files_of(path))


def test_the_plugin_is_for_the_python_that_was_named(packages):
    """XAPI's library is for one Python, which differs from release to release."""
    needed = query(packages["vgpu-mediator-xcp-ng"], "--requires").split()
    assert "/usr/bin/python2" in needed and "/usr/bin/python3" not in needed


def test_an_update_of_the_platform_runs_the_check_and_a_removal_is_guarded(packages):
    scripts = query(packages["vgpu-mediator-xcp-ng"], "--scripts", "--triggers")
    assert "xenopsd" in scripts and "qemu" in scripts
    assert "preflight --quiet --only xen-device-model" in scripts
    guard = re.search(r"^preuninstall scriptlet.*?:\n(.*?)(?=^\w+ scriptlet|^trigger|\Z)", scripts,
                      re.MULTILINE | re.DOTALL)[1]
    assert "exit 1" in guard and "/etc/xenopsd.conf.d/*" in guard


def test_a_removal_stops_what_was_started(packages):
    scripts = query(packages["vgpu-mediator"], "--scripts")
    stopped = re.search(r"for unit in (.*); do", scripts)[1].split()
    assert sorted(stopped) == UNITS
    assert stopped[-1] == "vgpu-mediator"  # the others need it


@pytest.mark.parametrize("unit", UNITS)
def test_the_installed_units_are_those_for_systemd_219(packages, tmp_path, unit):
    name = f"./usr/local/lib/systemd/system/{unit}.service"
    subprocess.run(f"rpm2cpio {packages['vgpu-mediator']} | cpio -id --quiet {name}", shell=True,
                   cwd=tmp_path, check=True)
    assert (tmp_path / name).read_text() == unit_for_219(unit).read_text()


def test_the_packages_version_is_the_projects():
    version = re.search(r"version: '([\d.]+)'", (REPOSITORY / "meson.build").read_text())[1]
    assert f"%global vgpu_version {version}" in SPEC.read_text()


def test_xenopsds_line_names_the_wrapper_that_is_installed(packages):
    line = (BUILD / "packaging/xenopsd-vgpu.conf").read_text().splitlines()[-1]
    key, path = line.split("=")
    assert key == "upstream-compat-qemu-dm-wrapper"
    assert os.path.basename(path) in {os.path.basename(name)
                                      for name in files_of(packages["vgpu-mediator-xcp-ng"])}


# --- the units for systemd 219 ---------------------------------------------------------------

# What systemd.unit(5), service(5), exec(5), kill(5) and resource-control(5) of 219 have.
KNOWN_TO_219 = """Description Documentation RequiresMountsFor After Before Wants
ConditionPathExists Type ExecStart ExecReload Restart RestartSec KillMode TimeoutStopSec LimitNOFILE CapabilityBoundingSet Delegate
NoNewPrivileges ReadOnlyDirectories ReadWriteDirectories PrivateNetwork RestrictAddressFamilies
ProtectHome PrivateTmp DevicePolicy DeviceAllow SystemCallArchitectures WantedBy""".split()


def unit_lines(path):
    return dict(line.split("=", 1) for line in path.read_text().splitlines()
                if re.match(r"[A-Z]\w+=", line))


def unit_for_219(unit):
    return BUILD / f"packaging/{unit}-219.service"


@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_for_systemd_219_asks_for_nothing_newer(unit):
    lines = unit_lines(unit_for_219(unit))
    assert set(lines) <= set(KNOWN_TO_219)
    assert lines.get("Delegate", "yes") == "yes"  # a list since 236


@pytest.mark.parametrize("unit", UNITS)
def test_both_units_say_the_same_where_both_can(unit):
    new, old = unit_lines(BUILD / f"packaging/{unit}.service"), unit_lines(unit_for_219(unit))
    assert old["ReadWriteDirectories"] == new["ReadWritePaths"]
    assert set(new) & set(KNOWN_TO_219) <= set(old)
    for key in set(new) & set(old) - {"Delegate"}:
        assert old[key] == new[key], key


# --- the C library -----------------------------------------------------------------------------


def glibc_floor(*words):
    return run(REPOSITORY / "scripts/glibc-floor", *words)


@needs("objdump")
def test_what_dom0s_c_library_lacks_is_reported_and_provided(record_property):
    """What was built here does not run there, and support.md says so.  The sources, built
    there, lack nothing that src/base/old_libc.h does not have."""
    if is_sanitized():
        pytest.skip("sanitizers ask for more than the program")
    done = glibc_floor(*[BUILD / name for name in PROGRAMS])
    record_property("glibc", done.stdout)
    found = [re.fullmatch(r"(.*): newest GLIBC_([0-9.]+); lacking in 2[.]17: (.*)", line)
             for line in done.stdout.splitlines()]
    assert len(found) == len(PROGRAMS) and all(found), done.stdout
    lacking = {name for match in found for name in match[3].split()} - {"nothing"}
    provided = re.findall(r"#ifdef VGPU_LACKS_(\w+)",
                          (REPOSITORY / "src/base/old_libc.h").read_text())
    assert lacking <= {name.lower() for name in provided}


OLD_LIBC_PROBE = """
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#define reallocarray old_reallocarray
#define memfd_create old_memfd_create
#define renameat2 old_renameat2
#include "base/old_libc.h"

int main(void)
{
    void *memory = reallocarray(NULL, 3, 5);
    int fd = memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (!memory || reallocarray(memory, SIZE_MAX / 2, 3) || errno != ENOMEM)
        return 1;
    free(memory);
    if (ftruncate(fd, 4096) || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) ||
        fcntl(fd, F_GET_SEALS) != F_SEAL_SHRINK)
        return 2;
    if (!renameat2(AT_FDCWD, "a", AT_FDCWD, "b", RENAME_NOREPLACE) || errno != EEXIST)
        return 3;
    return renameat2(AT_FDCWD, "a", AT_FDCWD, "c", RENAME_NOREPLACE) ? 4 : 0;
}
"""


def test_what_stands_in_for_newer_functions_does_the_same(tmp_path):
    source = tmp_path / "probe.c"
    source.write_text(OLD_LIBC_PROBE)
    for name in "ab":
        (tmp_path / name).write_text(name)
    done = run("gcc", "-Wall", "-Wextra", "-Werror", "-DVGPU_LACKS_REALLOCARRAY",
               "-DVGPU_LACKS_MEMFD_CREATE", "-DVGPU_LACKS_RENAMEAT2", "-I", REPOSITORY / "src",
               source, "-o", tmp_path / "probe")
    assert (done.returncode, done.stdout) == (0, "")
    assert run(tmp_path / "probe", cwd=tmp_path).returncode == 0
    assert (tmp_path / "c").read_text() == "a" and (tmp_path / "b").read_text() == "b"


def test_the_build_asks_for_each_function_that_is_stood_in_for():
    asked = re.search(r"foreach function : \[(.*?)\]", (REPOSITORY / "meson.build").read_text())[1]
    provided = re.findall(r"#ifdef VGPU_LACKS_(\w+)",
                          (REPOSITORY / "src/base/old_libc.h").read_text())
    assert {name.lower() for name in provided} == set(re.findall(r"'(\w+)'", asked))


@needs("objdump")
def test_a_function_that_the_old_library_lacks_is_named(tmp_path):
    """So the test above can fail; and one that has another name there is not."""
    source = tmp_path / "new.c"
    source.write_text("#define _GNU_SOURCE\n#include <sys/mman.h>\n#include <sys/stat.h>\n"
                      "int main(void) { struct stat s; return stat(\"/\", &s) + "
                      "memfd_create(\"x\", 0); }\n")
    subprocess.run(["gcc", source, "-o", tmp_path / "new"], check=True)
    done = glibc_floor(tmp_path / "new")
    assert done.returncode == 1
    assert done.stdout.endswith("; lacking in 2.17: memfd_create\n"), done.stdout
    done = glibc_floor("--floor", "2.27", tmp_path / "new")
    assert (done.returncode, done.stdout.split("; ")[1]) == (0, "lacking in 2.27: nothing\n")


def test_the_documents_claim_no_more_about_the_floor_than_is_shown():
    row = next(line for line in (REPOSITORY / "docs/support.md").read_text().splitlines()
               if "GLIBC_2.17" in line)
    assert "not shown" in row
