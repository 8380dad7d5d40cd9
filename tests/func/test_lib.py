# SPDX-License-Identifier: Apache-2.0
"""libvgpu against the real mediator and worker, and as a program gets it: installed,
found by pkg-config, the documents' example compiled and run."""

import os
import re
import shutil
import signal
import subprocess

import pytest

import support
from support import wait_until

VMS = {1: ("A", 1), 2: ("A", 2)}
PROBE = support.BUILD / "tests/func/lib_probe"
DOCUMENT = support.REPOSITORY / "docs/window-api.md"


def socket_of(m, vm_id=1):
    return m.state / "run" / f"vm{vm_id}.sock"


def environment(m, vm_id=1):
    return {**os.environ, "VGPU_SOCKET": str(socket_of(m, vm_id))}


def run_probe(m, behaviour, vm_id=1, timeout=120):
    done = subprocess.run([PROBE, behaviour], env=environment(m, vm_id), capture_output=True,
                          text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Probe:
    """A probe that runs and tells its steps line by line."""

    def __init__(self, m, behaviour, vm_id=1):
        self.process = subprocess.Popen([PROBE, behaviour], env=environment(m, vm_id), text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def expect(self, line):
        assert self.process.stdout.readline() == line + "\n"

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self):
        out, _ = self.process.communicate(timeout=support.WAIT_S)
        assert self.process.returncode == 0, out
        return out


# --- operations ----------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", [
    "info", "ping", "text", "query", "memory", "set", "copies", "copy_overlap", "streams",
    "events", "launch", "launch_errors", "quiet_flood", "batch", "callbacks", "callbacks_that_poll",
    "cancel", "tickets", "module", "own_kernels", "bad_handles", "fork", "two_sessions",
    "sleep_and_wake",
    "event_loop"])
def test_the_library_does_what_it_says(mediator, behaviour):
    run_probe(mediator(VMS), behaviour)


def test_two_processes_of_one_vm_work_at_once(mediator):
    m = mediator(VMS)
    with Probe(m, "steps") as first, Probe(m, "steps") as second:
        for probe in (first, second, first, second):
            probe.expect("answered")
            probe.go_on()
        first.expect("answered")
        second.expect("answered")


def test_sessions_beyond_the_limit_are_told_that_all_are_taken(mediator):
    m = mediator(VMS, sessions_max=1)
    with Probe(m, "steps") as first:
        first.expect("answered")
        assert "1 session" in run_probe(m, "busy")


# --- what goes and comes back -----------------------------------------------------------


def test_a_session_outlives_its_mediator_and_finds_the_next_one(mediator):
    m = mediator(VMS)
    with Probe(m, "steps") as probe:
        probe.expect("answered")
        m.kill()
        probe.go_on()
        probe.expect("answered")  # the worker has its grant still
        after = m.mark()
        m.start()
        with Probe(m, "steps", vm_id=2) as other:
            for _ in range(3):
                probe.go_on()
                probe.expect("answered")
                other.expect("answered")
                other.go_on()

        def is_linked():
            probe.go_on()
            probe.expect("answered")
            return m.events("link", after=after, vm=1)

        wait_until(is_linked, "the session at the new mediator")


def test_a_wait_goes_on_while_the_mediator_is_restarted(mediator):
    m = mediator(VMS)
    with Probe(m, "long_wait") as probe:
        probe.expect("submitted")
        m.kill()
        m.start()
        assert "answered" in probe.end()


def test_a_dead_worker_is_told_once_and_a_reset_begins_anew(mediator):
    m = mediator(VMS, log_level="debug")
    with Probe(m, "lost") as probe:
        probe.expect("allocated")
        os.kill(m.wait_event("process", vm=1)["worker_pid"], signal.SIGKILL)
        probe.go_on()
        assert "reset" in probe.end()


def test_a_killed_program_leaves_no_worker(mediator):
    m = mediator(VMS, log_level="debug")
    with Probe(m, "steps") as probe:
        probe.expect("answered")
        pid = m.wait_event("process", vm=1)["worker_pid"]
        probe.process.kill()
        wait_until(lambda: not support.is_worker(pid), "the end of its worker")


# --- as programs get it --------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The environment in which pkg-config finds what `meson install` has installed."""
    place = tmp_path_factory.mktemp("installed")
    done = subprocess.run(["meson", "install", "-C", support.BUILD, "--no-rebuild", "--destdir",
                           place, "--tags", "devel,runtime"], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    file, = place.rglob("libvgpu.pc")
    return {**os.environ, "PKG_CONFIG_PATH": str(file.parent),
            "PKG_CONFIG_SYSROOT_DIR": str(place),
            "LD_LIBRARY_PATH": str(file.parent.parent)}


@pytest.mark.parametrize("static", [False, True], ids=["shared", "static"])
def test_the_example_of_the_documents_compiles_and_runs(mediator, installed, tmp_path, static):
    if not shutil.which("pkg-config"):
        pytest.skip("there is no pkg-config here")
    if support.is_sanitized():
        pytest.skip("a program without the sanitizer cannot load the library")
    source = re.search(r"^```c\n(#include <err\.h>.*?)^```$", DOCUMENT.read_text(),
                       re.MULTILINE | re.DOTALL)[1]
    (tmp_path / "sum.c").write_text(source)
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", *(["--static"] if static else []),
                            "libvgpu"], env=installed, capture_output=True, text=True,
                           check=True).stdout.split()
    subprocess.run(["cc", "-Wall", "-Wextra", "-Werror", *(["-static"] if static else []),
                    tmp_path / "sum.c", *flags, "-o", tmp_path / "sum"], check=True, env=installed)
    done = subprocess.run([tmp_path / "sum"], capture_output=True, text=True, check=False,
                          env={**installed, "VGPU_SOCKET": str(socket_of(mediator(VMS)))})
    assert (done.returncode, done.stdout) == (0, "999 + 999 = 1998\n"), done.stderr


def test_the_shared_library_exports_its_interface_and_nothing_else():
    names = subprocess.run(["nm", "-D", "--defined-only", support.BUILD / "lib/libvgpu.so"],
                           capture_output=True, text=True, check=True).stdout
    exported = {line.split()[2].split("@")[0] for line in names.splitlines()}
    header = (support.REPOSITORY / "include/vgpu/vgpu.h").read_text()
    declared = set(re.findall(r"VGPU_API [^;(]*?\b(vgpu_\w+)\(", header))
    assert len(declared) > 40
    assert exported - {"VGPU_1"} == declared


def declarations(header):
    """What stands in front of each public function, and its name."""
    return re.findall(r"([^\n]*)\nVGPU_API [^;(]*?\b(vgpu_\w+)\(", header)


def test_each_function_of_the_header_has_its_words():
    header = (support.REPOSITORY / "include/vgpu/vgpu.h").read_text()
    found = declarations(header)
    assert len(found) == header.count("\nVGPU_API ")
    assert [name for before, name in found if not before.endswith("*/")] == []


def test_the_header_names_no_function_that_is_none():
    header = (support.REPOSITORY / "include/vgpu/vgpu.h").read_text()
    functions = {name for _, name in declarations(header)}
    assert set(re.findall(r"\b(vgpu_\w+)\(\)", header)) - functions == set()


def test_each_function_is_in_the_manual_page_and_no_other():
    header = (support.REPOSITORY / "include/vgpu/vgpu.h").read_text()
    page = (support.REPOSITORY / "man/libvgpu.3.scd").read_text()
    assert set(re.findall(r"\*(vgpu_\w+)\*\(\)", page)) == {n for _, n in declarations(header)}


def test_each_problem_is_in_the_documents_table():
    header = (support.REPOSITORY / "include/vgpu/vgpu.h").read_text()
    problems = set(re.findall(r"#define (VGPU_PROBLEM_\w+) \d", header))
    problems.discard("VGPU_PROBLEM_TEXT_BYTES")
    assert len(problems) == 10
    table = re.findall(r"^\| (.*?) \|", DOCUMENT.read_text(), re.MULTILINE)
    assert problems - set(re.findall(r"VGPU_PROBLEM_\w+", "\n".join(table))) == set()


def test_the_header_is_c_plus_plus_too(tmp_path):
    compiler = shutil.which("c++")
    if not compiler:
        pytest.skip("there is no C++ compiler here")
    (tmp_path / "t.cpp").write_text('#include "vgpu/vgpu.h"\n'
                                    "int main() { return vgpu_version() == nullptr; }\n")
    done = subprocess.run([compiler, "-std=c++17", "-Wall", "-Wextra", "-fsyntax-only", "-I",
                           support.REPOSITORY / "include", tmp_path / "t.cpp"],
                          capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_header_needs_no_other_first(tmp_path):
    (tmp_path / "t.c").write_text('#include "vgpu/vgpu.h"\n')
    for standard in ("c11", "gnu11", "c17"):
        done = subprocess.run(["cc", f"-std={standard}", "-Wall", "-Wextra", "-pedantic",
                               "-fsyntax-only", "-I", support.REPOSITORY / "include",
                               tmp_path / "t.c"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
