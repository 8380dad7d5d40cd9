# SPDX-License-Identifier: GPL-2.0-or-later
"""Windows of real guests while mediator, workers, and QEMU itself are killed.

The guests' programs are window-load (guest/window-load.c), which checks every
answer and keeps an account; the workers' execution log says what really ran.
tests/func/test_window_kill.py has the same on the host, hundreds of times.
"""

import os
import random
import signal
import time

import pytest

from harness.accounts import Account, check_account, wait_until
from harness.windows import WindowLab

SEED = int(os.environ.get("VGPU_TEST_SEED", "20240607"))
KILLS = int(os.environ.get("VGPU_VM_KILLS", "50"))
RESETTING = 4  # of the device's status register

VMS = {1: ("A", "low"), 2: ("B", "low")}


@pytest.fixture(scope="module")
def lab():
    with WindowLab(VMS, pools={"A": "cpu:0", "B": "cpu:1"}, operation_limit_ms=120000) as made:
        made.start()
        yield made


@pytest.fixture(autouse=True)
def guests(lab):
    """Both up, both linked, nothing at work."""
    booted = lab.boot()
    for guest in booted:
        wait_until(lambda guest=guest: guest.run("usleep 1; test -c /dev/vgpu0")[0] == 0, "module")
        wait_until(lambda guest=guest: opens(guest), "a mediator that opens sessions")
    wait_until(lambda: not lab.workers(), "no worker left")
    return booted


def opens(guest):
    return "open 0" in guest.run("session open close")[1]


def test_operations_of_guests_end_once_whoever_is_killed(lab, guests, summary):
    rng = random.Random(SEED)
    loads = [Account(guest, number, "--sessions 2 --think-us 20000")
             for number, guest in enumerate(guests, 11)]
    for one in loads:
        one.wait_progress()
    mediators = workers = 0
    for number in range(KILLS):
        kind = rng.choice(["mediator", "worker", "worker", "both"])
        living = lab.workers()
        if kind != "mediator" and living:
            os.kill(rng.choice(living), signal.SIGKILL)
            workers += 1
        if kind != "worker":
            lab.mediator.kill()
            time.sleep(0.2 * rng.random())
            lab.mediator.start()
            mediators += 1
        time.sleep(0.3 * rng.random())
        if number % 6 == 5:
            for one in loads:
                one.wait_progress(1)
    total = 0
    for one in loads:
        one.wait_progress()
        answered, lost, account = one.end()
        check_account(lab.mediator, one.number, account)
        total += answered
    summary(f"mediator killed {mediators} times, workers {workers} times, over "
            f"{total} answers in two real guests")


def test_when_qemu_is_killed_all_of_its_vm_returns_and_others_are_undisturbed(lab, guests,
                                                                             summary):
    first, second = guests
    steady = Account(second, 21, "--sessions 2 --think-us 3000 --steady")
    busy = Account(first, 22, "--sessions 2 --think-us 3000")
    for one in [steady, busy]:
        one.wait_progress()
    spin = first.spawn("vgpu-client --channel window 'SPIN 60000'")
    wait_until(lambda: len(lab.workers(1)) == 3, "a third session of VM 1")
    first.ended = True
    first.process.kill()
    died = time.monotonic()
    wait_until(lambda: not lab.workers(1) and not lab.session_files(1), "all of VM 1", 50)
    summary(f"all of a VM whose QEMU was killed returned in {time.monotonic() - died:.1f} s")
    steady.wait_progress(50)
    _, lost, account = steady.end()
    assert lost == 0
    check_account(lab.mediator, 21, account)
    assert not spin.done() or spin.status != 0
    first.stop()


def test_a_guest_that_reboots_gets_its_slots_when_the_old_workers_have_stopped(lab, guests):
    guest = guests[0]
    guest.spawn("vgpu-client --channel window 'SPIN 60000'")
    wait_until(lambda: len(lab.workers(1)) == 1, "its worker")
    old, = lab.workers(1)
    os.kill(lab.mediator.process.pid, signal.SIGSTOP)
    try:
        reboot(guest)
        # Nobody has ended the worker, so nothing can be opened.
        opening = guest.spawn("session open close")
        assert status_of(guest) & RESETTING
        assert not opening.done()
        assert lab.workers(1) == [old]
    finally:
        os.kill(lab.mediator.process.pid, signal.SIGCONT)
    status, output = opening.wait(120)
    assert (status, "open 0" in output) == (0, True), output
    assert old not in lab.workers(1), "a slot was given while its old worker lived"


def status_of(guest):
    """The device's status register."""
    words = guest.check("od -An -v -t x4 /sys/class/vgpu/vgpu0/device/vgpu_registers").split()
    return int(words[1], 16)


def reboot(guest):
    guest._said_hello = False
    guest.spawn("reboot -f")
    guest.wait_ready()


def test_a_guest_that_reboots_again_and_again_keeps_no_worker(lab, guests):
    guest = guests[0]
    for number in range(3):
        Account(guest, 30 + number, "--sessions 3").wait_progress(5)
        reboot(guest)
    wait_until(lambda: opens(guest), "a session")
    wait_until(lambda: not lab.workers(1) and not lab.session_files(1), "no worker")
