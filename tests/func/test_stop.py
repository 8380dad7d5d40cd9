# SPDX-License-Identifier: Apache-2.0
"""Starting and stopping: what runs is answered, what waits is kept, files are
emptied when asked, and two mediators never serve the same VMs.

Only files: --cleanup of files, the share, and what the journal brings back; what keeps a
mediator from starting asks no VM.  test_window.py has restarts and the end of sessions.
"""

import os
import resource
import signal
import subprocess
import time

import pytest
from support import MEDIATOR, READY, WAIT_S, both_channels, run, wait_until

pytestmark = pytest.mark.threads


# --- SIGTERM and SIGINT -----------------------------------------------------------


@both_channels
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_is_answered_and_waiting_is_kept_for_the_next_start(mediator, channel, number):
    m = mediator(vms={1: ("A", 1), 2: ("A", 0), 3: ("A", 2), 4: ("A", 0)})
    m.vm(1).put("SPIN 4000")
    m.wait_event("process", vm=1)
    m.queue(2, 3, 4)
    m.stop(number)
    assert m.vm(1).answer() == "1:Spun 4000 ms"
    assert m.order() == [1]
    assert [m.vm(i).answer() for i in (2, 3, 4)] == [None, None, None]
    after = m.mark()
    m.start()
    assert [m.vm(i).wait_answer() for i in (2, 3, 4)] == [f"1:PONG {i}" for i in (2, 3, 4)]
    if channel == "file":  # owners of windows come back one after the other
        assert m.order("queue", after) == [2, 3, 4]  # the order of arrival
        assert m.order(after=after) == [3, 2, 4]
    assert sorted(m.executions()) == [(i, 1) for i in (1, 2, 3, 4)]


def test_unregistered_vms_keep_their_order_of_arrival_over_a_restart(mediator):
    m = mediator(vms={1: ("A", 1)}, unregistered="accept")
    pid = m.occupy(1)
    strangers = [31, 7, 22, 15, 9, 40, 3, 18]
    for stranger in strangers:
        m.vm(stranger).directory.mkdir()
        m.queue(stranger)
    m.process.send_signal(signal.SIGTERM)
    m.wait_message("stopping")
    m.release(pid)
    assert m.wait() == 0
    after = m.mark()
    m.start()
    for stranger in strangers:
        assert m.vm(stranger).wait_answer() == f"1:PONG {stranger}"
    assert m.order("queue", after) == m.order(after=after) == strangers


def test_more_vms_than_files_may_be_open_are_refused_at_the_start(mediator):
    m = mediator(vms={i: ("A", 1) for i in range(1, 41)}, start=False)
    m.allow_error("open files")
    done = subprocess.run(["prlimit", "--nofile=128:128", MEDIATOR, "--config", m.config],
                          capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 1
    assert "40 VMs need 1144 open files, and the hard limit is 128: raise it" in done.stderr


@both_channels
def test_a_low_soft_limit_of_open_files_is_raised(mediator):
    m = mediator(vms={i: ("A", 1) for i in range(1, 41)}, start=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))  # it inherits that
    try:
        m.launch()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    m.wait_event("ready")
    for i in range(1, 41):
        m.vm(i).put(f"PING {i}")
    for i in range(1, 41):
        assert m.vm(i).wait_answer() == f"1:PONG {i}"


@both_channels
def test_request_put_while_nobody_runs_is_found_at_the_next_start(mediator):
    m = mediator()
    m.vm(1).ask("PING")
    m.stop()
    m.vm(1).ready()
    m.vm(1).put("PING later")
    m.start()
    assert m.vm(1).wait_answer() == "1:PONG later"


@both_channels
def test_answer_that_was_read_is_not_given_again_after_a_restart(mediator, channel):
    m = mediator()
    assert m.vm(1).ask("PING") == "1:PONG"
    m.vm(1).ready()
    m.stop()
    m.start()
    m.wait_looks()
    assert m.vm(1).answer() is None
    assert channel == "window" or m.vm(1).response.read_text() == READY + "\n"
    assert len(m.events("response")) == len(m.executions()) == 1


@both_channels
def test_answer_that_was_not_read_stands_after_a_restart(mediator):
    m = mediator()
    m.vm(1).put("PING")
    m.wait_event("response")
    m.stop()
    m.start()
    m.wait_looks()
    assert m.vm(1).answer() == "1:PONG"
    assert len(m.events("response")) == 1


def test_ready_returns_after_a_restart_too(mediator):
    m = mediator(response_hold_ms=100)
    m.vm(1).put("PING")
    m.wait_event("response")
    m.kill()
    m.vm(1).response.write_text("")  # whatever happened meanwhile
    m.vm(1).put("PING again")
    m.start()
    m.wait_event("response", count=2)
    wait_until(lambda: m.vm(1).response.read_text() == READY + "\n", "0:Ready")


def test_stop_with_nothing_to_do_leaves_files_alone(mediator):
    m = mediator(vms={1: ("A", 1), 2: ("A", 1)})
    m.vm(1).ask("PING")
    m.vm(2).put_raw(b"A:1:2:PI")  # half a line
    m.wait_looks()
    m.stop()
    assert m.vm(1).answer() == "1:PONG"
    assert m.vm(2).request.read_bytes() == b"A:1:2:PI"


@both_channels
def test_second_signal_while_it_stops_changes_nothing(mediator):
    m = mediator()
    m.vm(1).put("SPIN 2000")
    m.wait_event("process")
    m.process.send_signal(signal.SIGTERM)
    m.wait_message("stopping")
    ending = m.process
    while ending.poll() is None:  # to the very end
        ending.send_signal(signal.SIGINT)
        ending.send_signal(signal.SIGHUP)
        time.sleep(0.001)
    assert m.wait() == 0
    assert m.vm(1).answer() == "1:Spun 2000 ms"


def test_signal_while_an_earlier_mediators_worker_still_runs_keeps_everything(mediator):
    m = mediator(vms={1: ("A", 1), 2: ("A", 1)})
    pid = m.occupy(1)
    m.queue(2)
    m.kill()
    m.launch()
    m.wait_event("queue", count=2, vm=1)
    m.stop_but_keep_workers()
    assert m.vm(1).answer() is None and m.vm(2).answer() is None
    after = m.mark()
    m.launch()
    m.wait_event("queue", vm=2, after=after)
    m.release(pid)  # killed while it ran, both mediators and worker gone: it runs again
    pid = m.wait_event("process", vm=1, after=after)["worker_pid"]
    wait_until(lambda: m.executions().count((1, 1)) == 2, "its second begin")
    m.release(pid)
    assert m.vm(1).wait_answer().startswith("2:worker killed")
    assert m.vm(2).wait_answer() == "1:PONG 2"


# --- --cleanup -------------------------------------------------------------------------


def test_cleanup_answers_waiting_requests_and_empties_files_once_answers_were_read(mediator):
    m = mediator(vms={1: ("A", 1), 2: ("A", 0), 3: ("A", 2)}, arguments=["--cleanup"])
    m.vm(1).put("SPIN 4000")
    m.wait_event("process")
    m.queue(2, 3)
    m.process.send_signal(signal.SIGTERM)
    assert m.vm(1).wait_answer() == "1:Spun 4000 ms"
    for vm_id in (2, 3):
        assert m.vm(vm_id).wait_answer() == (
            "2:mediator is shutting down: send it again when it is back")
    for vm_id in (1, 2, 3):  # after the mediator began to watch for readers
        wait_until(lambda i=vm_id: not m.vm(i).read_answer(), f"vm{vm_id}'s files emptied")
    assert m.wait() == 0
    for vm_id in (1, 2, 3):
        assert m.vm(vm_id).request.read_bytes() == m.vm(vm_id).response.read_bytes() == b""
    m.start()
    m.wait_looks()
    assert m.order() == [1]  # nothing is left to run


def test_cleanup_waits_for_readers_but_not_for_ever(mediator):
    m = mediator(vms={1: ("A", 1), 2: ("A", 1)}, arguments=["--cleanup"])
    m.vm(1).put("PING")
    m.wait_event("response")
    begin = time.monotonic()
    m.process.send_signal(signal.SIGTERM)
    m.wait_message("stopping")
    for _ in range(50):  # others look, the answer stays
        m.vm(2).read_answer()
    assert m.vm(1).response.stat().st_size == len("1:PONG\n")
    assert m.wait() == 0
    assert time.monotonic() - begin > 4
    assert m.messages("not all answers were read within 5 s")
    assert m.vm(1).response.read_bytes() == b""


def test_cleanup_with_all_answers_taken_does_not_wait(mediator):
    m = mediator(arguments=["--cleanup"])
    m.vm(1).ask("PING")
    m.vm(1).ready()
    m.stop()
    assert not m.messages("not all answers were read")
    assert m.vm(1).response.read_bytes() == m.vm(1).request.read_bytes() == b""


def test_cleanup_harms_nothing_that_a_guest_put_there(mediator):
    m = mediator(arguments=["--cleanup"])
    vm = m.vm(1)
    secret = m.directory / "secret"
    secret.write_text("secret")
    ready = vm.directory / "ready"  # an empty one would be removed
    ready.mkdir()
    (ready / "leaf").write_text("leaf")
    ready.rename(vm.command)
    assert vm.wait_answer() == "2:command.txt is a directory: put a plain file there"
    vm.response.unlink()
    vm.response.symlink_to(secret)
    m.stop()
    assert secret.read_text() == "secret"
    assert (vm.command / "leaf").read_text() == "leaf"


# --- the log -------------------------------------------------------------------------------


@both_channels
def test_sighup_opens_the_log_again(mediator, channel):
    m = mediator()
    m.vm(1).ask("PING")
    old = m.directory / "log.1"
    m.mark()
    m.log.rename(old)
    m.process.send_signal(signal.SIGHUP)
    wait_until(m.log.exists, "the new log")
    before = old.stat().st_size
    assert m.vm(1).ask("PING after") == "1:PONG after"
    word = {"file": "1:PONG after", "window": '"event":"returned"'}[channel]
    wait_until(lambda: word in m.log.read_text(), "the answer in the new log")
    assert old.stat().st_size == before


@both_channels
def test_sighup_with_a_log_that_cannot_be_opened_keeps_the_old_one(mediator):
    m = mediator()
    m.mark()
    old = m.directory / "log.1"
    m.log.rename(old)
    m.log.mkdir()
    m.process.send_signal(signal.SIGHUP)
    wait_until(lambda: "cannot open log file" in old.read_text(), "the complaint")
    assert m.vm(1).ask("PING") == "1:PONG"
    m.log.rmdir()
    old.rename(m.log)
    m.allow_error("cannot open log file")


# --- one mediator a share and a state directory ------------------------------------------------


def refused_start(m):
    """Starts a mediator that must not start; returns what it says."""
    m.allow_error(".")
    done = run("--config", m.config)
    assert done.returncode == 1, done
    return done.stderr


@both_channels
def test_second_mediator_on_the_same_state_directory_is_refused(mediator):
    m = mediator()
    other = mediator(start=False, state_dir=m.state)
    assert "another vgpu-mediator uses the state directory" in refused_start(other)
    assert m.vm(1).ask("PING") == "1:PONG"


@both_channels
def test_second_mediator_on_the_same_share_is_refused(mediator):
    m = mediator()
    other = mediator(start=False, share=m.share)
    assert "another vgpu-mediator serves the share" in refused_start(other)
    assert m.vm(1).ask("PING") == "1:PONG"


@both_channels
def test_another_mediator_elsewhere_is_no_trouble(mediator):
    first, second = mediator(), mediator()
    assert first.vm(1).ask("PING a") == "1:PONG a"
    assert second.vm(1).ask("PING b") == "1:PONG b"


def test_lock_is_free_as_soon_as_a_killed_mediator_is_gone(mediator):
    m = mediator()
    pid = m.occupy(1)
    m.kill()
    m.launch()  # though its worker lives
    m.wait_event("queue", count=2)
    m.release(pid)
    pid = m.wait_event("process", count=2)["worker_pid"]
    wait_until(lambda: len(m.executions()) == 2, "its second begin")
    m.release(pid)
    m.vm(1).wait_answer()


# --- what keeps it from starting -----------------------------------------------------------------


def test_state_directory_inside_the_share_is_refused(mediator):
    m = mediator(start=False)
    m.settings["state_dir"] = m.share / "state"
    m.write_config()
    assert "lies inside share" in refused_start(m)


@pytest.mark.parametrize("path", ["share/../share/vm1/state", "link/state", "share//state"])
def test_state_directory_inside_the_share_by_another_path_is_refused(mediator, path):
    m = mediator(start=False)
    (m.share / "vm1").mkdir(parents=True)
    (m.directory / "link").symlink_to(m.share)
    m.settings["state_dir"] = f"{m.directory}/{path}"
    m.write_config()
    assert "lies inside share" in refused_start(m)


def test_share_with_a_slash_at_its_end_is_the_same_share(mediator):
    m = mediator(start=False)
    m.settings["share"] = f"{m.share}/"
    m.settings["state_dir"] = m.share / "state"
    m.write_config()
    done = run("--check-config", "--config", m.config)
    assert done.returncode == 1 and "lies inside share" in done.stderr


def test_share_that_cannot_be_made_is_an_error_with_its_path(mediator):
    m = mediator(start=False, share="/proc/vgpu-share")
    assert "cannot make directory '/proc/vgpu-share'" in refused_start(m)


def test_share_that_is_a_file_is_an_error_with_its_path(mediator):
    m = mediator(start=False)
    m.share.write_text("")
    assert f"'{m.share}'" in refused_start(m)


def test_vm_directory_that_is_a_link_at_start_is_an_error(mediator):
    m = mediator(start=False)
    m.share.mkdir()
    (m.directory / "elsewhere").mkdir()
    (m.share / "vm1").symlink_to(m.directory / "elsewhere")
    assert "'vm1'" in refused_start(m)
    assert not os.listdir(m.directory / "elsewhere")


def test_log_that_cannot_be_opened_is_an_error_with_its_path(mediator):
    m = mediator(start=False)
    m.settings["log"] = m.directory / "no" / "log"
    m.write_config()
    done = run("--config", m.config)
    assert done.returncode == 1 and str(m.settings["log"]) in done.stderr


def test_missing_worker_program_keeps_it_from_starting(mediator):
    m = mediator(start=False, worker="/nowhere/vgpu-worker")
    assert "worker = /nowhere/vgpu-worker cannot be run" in refused_start(m)


# --- the share goes away --------------------------------------------------------------------------


def test_share_that_was_removed_is_told_once_and_works_when_it_is_back(mediator):
    m = mediator(vms={1: ("A", 1), 2: ("A", 1)})
    m.vm(1).ask("PING")
    m.allow_error("is gone")
    pid = m.occupy(2)
    m.queue(1, command="PING kept")
    away = m.directory / "away"
    m.share.rename(away)
    m.wait_message(f"share '{m.share}' is gone")
    for vm in (m.vm(1), m.vm(2)):  # and now removed
        for name in ("request.txt", "response.txt"):
            (away / vm.directory.name / name).unlink()
        (away / vm.directory.name).rmdir()
    away.rmdir()
    m.share.mkdir()
    m.wait_message("works again")
    m.release(pid)
    assert m.vm(1).wait_answer() == "1:PONG kept"
    assert m.vm(2).wait_answer().startswith("2:worker killed")
    assert m.vm(2).ask("PING") == "1:PONG"
    assert len(m.messages("is gone")) == 1


def test_share_that_was_exchanged_is_served_at_its_new_place(mediator):
    m = mediator()
    m.vm(1).ask("PING")
    new = m.directory / "new"
    (new / "vm1").mkdir(parents=True)
    (new / "vm1" / "request.txt").write_text("A:1:1:PING new\n")
    m.share.rename(m.directory / "old")
    new.rename(m.share)
    assert m.vm(1).wait_answer() == "1:PONG new"
    m.wait_message("is another directory now")
    assert m.vm(1).ask("SPIN 1") == "1:Spun 1 ms"
