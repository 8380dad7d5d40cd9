# SPDX-License-Identifier: Apache-2.0
"""Workers that die, overstay, are missing or idle: it costs their VM one error
answer at most, and nobody else anything.

Only files: a worker that goes idle or is missing; a window's lives as long as its
session, whose loss or refusal test_window.py has.
"""

import os
import shutil
import signal

import pytest
from support import FOREVER_MS, WORKER, both_channels, is_worker, wait_until

pytestmark = pytest.mark.threads


@both_channels
def test_worker_killed_while_it_runs_is_one_error_answer(mediator, channel):
    m = mediator(vms={1: ("A", 1), 2: ("B", 1)}, pools={"A": "cpu:0", "B": "cpu:1"})
    pid = m.occupy(1)
    assert m.vm(2).ask("PING") == "1:PONG"
    os.kill(pid, signal.SIGKILL)
    answer = m.vm(1).wait_answer()
    assert answer.startswith(m.killed_answer())
    if channel == "file":
        assert answer.startswith(
            "2:worker killed by signal 9 (SIGKILL) while it ran this request")
    assert m.vm(2).ask("PING") == "1:PONG"
    assert m.vm(1).ask("PING next") == "1:PONG next"
    m.wait_event("response", count=2, vm=1)
    assert m.begun(1) == 2  # not run again
    assert channel == "window" or len(m.events("response", vm=1)) == 2


def test_worker_killed_while_idle_costs_nothing(mediator):
    m = mediator()
    assert m.vm(1).ask("PING") == "1:PONG"
    for i in range(10):
        pid = m.events("process")[-1]["worker_pid"]
        os.kill(pid, signal.SIGKILL)
        assert m.vm(1).ask(f"PING {i}") == f"1:PONG {i}"
    assert len(m.worker_pids()) == 11


def test_worker_that_ended_for_being_idle_costs_nothing(mediator):
    m = mediator(worker_idle_ms=0)
    for i in range(50):
        assert m.vm(1).ask(f"PING {i}") == f"1:PONG {i}"
    assert sorted(m.executions()) == [(1, i) for i in range(1, 51)]


def test_worker_is_kept_for_the_next_request_and_ends_when_idle_for_long_enough(mediator):
    m = mediator(worker_idle_ms=300)
    m.vm(1).ask("PING")
    m.vm(1).ask("PING")
    assert len(m.worker_pids()) == 1
    pid = m.events("process")[0]["worker_pid"]
    wait_until(lambda: not is_worker(pid), "the idle worker's end")
    assert m.vm(1).ask("PING") == "1:PONG"
    assert len(m.worker_pids()) == 2


@both_channels
def test_each_vm_has_a_worker_of_its_own(mediator):
    m = mediator(vms={1: ("A", 1), 2: ("A", 1)})
    m.vm(1).ask("PING")
    m.vm(2).ask("PING")
    assert len(m.worker_pids()) == 2


def test_missing_worker_program_is_an_error_answer_and_works_when_it_is_back(mediator, place):
    worker = place / "vgpu-worker"
    shutil.copy(WORKER, worker)
    m = mediator(worker=worker)
    worker.rename(place / "away")
    m.allow_error("no worker could be started")
    assert m.vm(1).ask("PING").startswith("2:no worker could be started")
    assert str(place) not in m.vm(1).answer()  # the guest learns no paths of the host
    (place / "away").rename(worker)
    assert m.vm(1).ask("PING") == "1:PONG"


def test_worker_program_that_does_nothing_is_an_error_answer(mediator, place):
    worker = place / "vgpu-worker"
    worker.write_text("#!/bin/sh\nexit 3\n")
    worker.chmod(0o755)
    m = mediator(worker=worker)
    m.allow_error("no worker could be started")
    for _ in range(2):
        answer = m.vm(1).ask("PING")
        assert answer.startswith("2:no worker could be started for this VM")
    assert m.executions() == []


@both_channels
def test_operation_beyond_its_limit_is_ended_and_the_next_one_works(mediator, channel):
    m = mediator(vms={1: ("A", 1), 2: ("A", 1)}, operation_limit_ms=500)
    vm = m.vm(1)
    vm.put(f"SPIN {FOREVER_MS}")
    m.wait_event("process")
    m.queue(2)
    assert vm.wait_answer() == {
        "file": "2:operation ran longer than its limit of 500 ms and was ended; "
                "the next request works",
        "window": "2:time limit"}[channel]
    assert m.vm(2).wait_answer() == "1:PONG 2"
    assert vm.ask("PING") == "1:PONG"


@both_channels
def test_operation_within_its_limit_is_left_alone(mediator):
    assert mediator(operation_limit_ms=20000).vm(1).ask("SPIN 50") == "1:Spun 50 ms"


@both_channels
def test_operation_that_outlived_its_mediator_has_the_same_limit(mediator, channel):
    m = mediator(operation_limit_ms=1000)
    pid = m.occupy(1)
    m.kill()
    m.start()
    answer = m.vm(1).wait_answer()
    assert channel == "window" or answer.startswith(
        "2:operation ran longer than its limit of 1000 ms")
    assert answer.startswith("2:")
    assert not is_worker(pid)
    assert m.vm(1).ask("PING") == "1:PONG"
    assert len(m.executions()) == 2  # each once


@both_channels
def test_worker_gets_nothing_of_the_mediators_environment(mediator, monkeypatch):
    monkeypatch.setenv("VGPU_TEST_SECRET", "s3cret")
    m = mediator()
    pid = m.occupy(1)
    try:
        environment = open(f"/proc/{pid}/environ", "rb").read()
    except PermissionError:
        pytest.skip("only root may look into a worker")
    finally:
        m.release(pid)
    assert b"PATH=" in environment and b"s3cret" not in environment


def test_worker_holds_no_descriptor_of_share_or_journal(mediator):
    m = mediator()
    pid = m.occupy(1)
    try:
        names = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    except PermissionError:
        pytest.skip("only root may look into a worker")
    finally:
        m.release(pid)
    mine = {name for name in names if name.startswith(str(m.directory))}
    assert mine == {str(m.state / "vm1.session"), str(m.execution_log), str(m.stderr)}
