# SPDX-License-Identifier: GPL-2.0-or-later
"""A real guest that means harm, next to a real guest that works.

VM 1 runs the scribbler (guest/scribbler.c): over sessions of the module, then,
without it, over its whole window and all registers.  VM 2 runs window-load, which
knows what each answer must be.  With VGPU_ASAN_BUILD_DIR mediator and workers are
that build's, made with AddressSanitizer; scripts/check sets it.
"""

import os
import pathlib
import re
import time

import pytest

from harness.windows import WindowLab

SEED = int(os.environ.get("VGPU_TEST_SEED", "20240607"))
SCRIBBLE_S = int(os.environ.get("VGPU_SCRIBBLE_S", "8"))
ASAN = os.environ.get("VGPU_ASAN_BUILD_DIR")
GROWTH_KIB = 8192 if not ASAN else 65536  # ASan keeps what is freed for a while
SESSIONS_MAX = 4

VMS = {1: ("A", "low"), 2: ("A", "low")}


@pytest.fixture(scope="module")
def lab():
    with WindowLab(VMS, build=pathlib.Path(ASAN) if ASAN else None, operation_limit_ms=2000,
                   device_memory_mib=16, sessions_max=SESSIONS_MAX) as made:
        made.start()
        made.boot()
        yield made


@pytest.fixture
def guests(lab):
    """Both with the module; no sessions."""
    booted = lab.boot()
    for guest in booted:
        guest.run("killall window-load scribbler")  # of a test that failed
        guest.check("test -c /dev/vgpu0 || modprobe vgpu_guest")
        wait_until(lambda guest=guest: "open 0" in guest.run("session open close")[1], "a session")
    wait_until(lambda: not lab.workers(), "no session")
    return booted


def wait_until(condition, what, timeout=360):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what() if callable(what) else what}"
        time.sleep(0.01)


def address_of(guest):
    return guest.check("for d in /sys/bus/pci/devices/*; do "
                       "if grep -q 0x120000 $d/class; then basename $d; fi; done").strip()


def held(lab):
    """Memory in KiB, descriptors, and session files of the mediator."""
    process = pathlib.Path(f"/proc/{lab.mediator.process.pid}")
    rss_kib = int(re.search(r"VmRSS:\s+(\d+)", (process / "status").read_text())[1])
    return rss_kib, len(list((process / "fd").iterdir())), lab.session_files(1)


def scribble(lab, guest, seed, *words, seconds=SCRIBBLE_S):
    """Runs it to its end; returns what it did, and the most workers that VM 1 had."""
    job = guest.spawn(f"scribbler {words[0]} {seed} {seconds} {words[1]}")
    most = 0
    deadline = time.monotonic() + seconds + 60
    while not job.done():
        assert time.monotonic() < deadline, job.output
        assert lab.mediator.running(), lab.mediator.log_tail()
        most = max(most, len(lab.workers(1)))
        time.sleep(0.05)
    status, output = job.wait()
    assert status == 0, output
    return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", output)}, most


def check_sanitizers(lab):
    text = (lab.mediator.directory / "mediator.out").read_text(errors="replace")
    assert "Sanitizer" not in text and "runtime error" not in text, text[:4000]


def test_a_mad_guest_harms_nobody_else(lab, guests, summary):
    mad, victim = guests
    job = victim.spawn("exec window-load --seed 41 --sessions 2 --think-us 5000 --steady /dev/vgpu0 "
                       "/tmp/account")
    wait_until(lambda: "progress" in job.output, "the victim's work")
    scribble(lab, mad, SEED, "node", "/dev/vgpu0", seconds=2)  # warms the mediator up
    wait_until(lambda: not lab.session_files(1), "the end of its sessions")
    before = held(lab)
    by_module, most = scribble(lab, mad, SEED + 1, "node", "/dev/vgpu0")
    mad.check("rmmod vgpu_guest")
    raw, most_raw = scribble(lab, mad, SEED + 2, "raw", address_of(mad))
    assert not job.done(), job.output[-400:]
    mad.check("modprobe vgpu_guest")
    wait_until(lambda: "open 0" in mad.run("session open close")[1], "its own sessions, again")
    wait_until(lambda: held(lab)[1:] == before[1:], lambda: f"{before} again, not {held(lab)}")
    assert held(lab)[0] <= before[0] + GROWTH_KIB
    job.kill()
    status, output = job.wait(180)
    assert status == 0, output[-400:]
    answered, lost, _ = map(int, re.search(r"^done (\d+) (\d+) (\d+)", output,
                                           re.MULTILINE).groups())
    assert answered > 0 and lost == 0
    check_sanitizers(lab)
    assert max(most, most_raw) <= SESSIONS_MAX
    assert by_module["completions"] > 0 and by_module["opened"] > 10
    assert raw["completions"] > 0 and raw["registers"] > 0
    summary(f"{'ASan' if ASAN else 'plain'} build: {by_module}, {raw}, next to "
            f"{answered} answers of the victim")


def test_what_a_guest_writes_into_its_registers_changes_no_identity(lab, guests):
    mad, _ = guests
    mad.check("rmmod vgpu_guest")
    address = address_of(mad)
    for offset, value in [(0x08, ord("B")), (0x0C, 2), (0x10, 2)]:
        before = mad.check(f"regs read {address} {offset} 4")
        mad.check(f"regs write {address} {offset} 4 {value}")
        assert mad.check(f"regs read {address} {offset} 4") == before
    mad.check("modprobe vgpu_guest && vgpu-client --channel window PING")
    assert " vm=1 " in lab.mediator.executions()[-1]


def test_a_window_is_seen_by_its_own_guest_only(lab, guests):
    first, second = guests
    for guest in guests:
        guest.check("rmmod vgpu_guest")
    marks = {1: "this-belongs-to-the-first-VM", 2: "and-this-to-the-second-VM"}
    counts = {}
    for vm_id, guest in zip(marks, guests):
        assert int(guest.check(f"scribbler mark {address_of(guest)} {marks[vm_id]}")) > 1000
    for vm_id, guest in zip(marks, guests):
        for other in marks:
            counts[vm_id, other] = int(guest.check(
                f"scribbler search {address_of(guest)} {marks[other]}"))
    assert counts[1, 2] == counts[2, 1] == 0
    assert counts[1, 1] > 1000 and counts[2, 2] > 1000
