# SPDX-License-Identifier: Apache-2.0
"""The whole window channel for real: guest, kernel module, device, mediator, worker.

test_clients.py has what a client asks and is told, on both channels.
"""

import json
import os
import pathlib
import re
import signal
import time

import pytest

from harness.load import answer_fits, requests_of, spawn_loop, sum_command

VMS = {1: ("A", "low"), 2: ("A", "high")}
CHANNELS = ["window"]
WAIT_S = 90


@pytest.fixture(scope="module")
def guests(lab):
    return dict(zip(VMS, lab.boot()))


def wait_until(condition, what):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S} s: {what}"
        time.sleep(0.02)


def lives(pid):
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rsplit(")", 1)[1].split()[0] not in "ZX"


def registers_of(guest):
    device, = json.loads(guest.check("vgpu-client --json info"))["devices"]
    return {register["name"]: register["value"] for register in device["registers"]}


def test_no_wake_up_is_lost_in_thousands_of_sleeps(lab, guests):
    """Guests without room for a second vCPU fail here under TCG: see harness/accel.py."""
    lab.start_mediator().wait_event("link", vm=1)
    values = json.loads(guests[1].check("vgpu-client --json bench --mode sleep --seconds 4"))
    assert values["ping_sleep_p50_us"] > 0
    assert "barriers" not in guests[1].check("vgpu-client --json doctor")


@pytest.mark.parametrize("name", ["saxpy", "matrix", "digits"])
def test_an_example_runs_in_a_guest_or_says_that_there_are_no_modules(lab, guests, name):
    """VGPU_TEST_BACKEND=cuda: for real.  The session is that of the guest's kernel module."""
    device = os.environ.get("VGPU_TEST_BACKEND", "cpu")
    lab.start_mediator(pools={"A": device}).wait_event("link", vm=1)
    status, output = guests[1].run(f"vgpu-example-{name} 2>&1", timeout=360)
    if device == "cpu":
        assert status == 77 and "takes no modules" in output
    else:
        assert status == 0, output
        assert output.startswith(f"{name}: ")


def test_the_client_takes_files_where_the_window_is_off_and_says_why(lab, guests):
    lab.start_mediator(channels="file", channel="file")
    record = json.loads(guests[1].check("vgpu-client --json 3 4"))
    assert record["channel"]["kind"] == "file"
    assert record["channel"]["reason"]
    assert record["answer"]["message"] == "3 + 4 = 7"


def test_without_the_module_root_can_use_the_window_slowly(lab, guests):
    lab.start_mediator()
    guests[1].check("rmmod vgpu_guest")
    try:
        record = json.loads(guests[1].check("vgpu-client --json --channel window 3 4"))
        assert record["channel"]["transport"] == "sysfs"
        assert record["answer"]["message"] == "3 + 4 = 7"
    finally:
        guests[1].check("modprobe vgpu_guest")


def test_two_processes_of_one_guest_work_at_once(lab, guests):
    mediator = lab.start_mediator()
    jobs = [spawn_loop(guests[1], [sum_command(1, 100 * part + n) for n in range(20)])
            for part in (1, 2)]
    for job in jobs:
        status, output = job.wait(180)
        assert status == 0
        requests = requests_of(output)
        assert len(requests) == 20
        assert all(answer_fits(request.command, request.answer) for request in requests)
    # A third one too, when a slot was wanted whose last worker was still ending.
    assert {event["slot"] for event in mediator.events("process", vm=1)} >= {0, 1}


def test_a_killed_process_is_cleaned_up_on_both_sides(lab, guests):
    mediator = lab.start_mediator()
    job = guests[1].spawn("vgpu-client --json --channel window SPIN 60000")
    pid = mediator.wait_event("process", vm=1)["worker_pid"]
    job.kill(signal.SIGKILL)
    wait_until(lambda: not lives(pid), "the worker's end")
    # vgpu-client would take the slot itself.
    guests[1].check("while [ $(od -An -tu4 -j128 -N4 /sys/bus/pci/devices/*/vgpu_registers) != 0 ];"
                    " do usleep 20000; done")
    assert requests_of(guests[1].check("vgpu-client --json 3 4"))[0].answer == "1:3 + 4 = 7"


def test_a_change_of_pool_and_priority_reaches_the_guest_live(lab, guests):
    mediator = lab.start_mediator(pools={"A": "cpu", "B": "cpu"})
    before = guests[1].check("cat /proc/interrupts")
    text = mediator.config.read_text()
    changed = re.sub(r"\[vm 1\]\npool=A\npriority=low", "[vm 1]\npool=B\npriority=high", text)
    assert changed != text
    mediator.config.write_text(changed)
    mediator.process.send_signal(signal.SIGHUP)
    mediator.wait_event("config", vm=1, pool="B", priority=2)
    wait_until(lambda: registers_of(guests[1])["pool_id"] == ord("B"), "the new pool")
    assert registers_of(guests[1])["priority"] == 2
    assert guests[1].check("cat /proc/interrupts") != before
    assert requests_of(guests[1].check("vgpu-client --json 3 4"))[0].answer == "1:3 + 4 = 7"


def test_the_registry_wins_over_what_a_device_was_started_with(lab, guests):
    mediator = lab.start_mediator({1: ("A", "high"), 2: ("A", "low")})
    for vm in (1, 2):
        guests[vm].check("vgpu-client --channel window PING")
    assert [(event["vm"], event["priority"]) for event in mediator.events("process")] == [
        (1, 2), (2, 0)]
    assert registers_of(guests[2])["priority"] == 0
