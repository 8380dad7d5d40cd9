# SPDX-License-Identifier: Apache-2.0
"""The window channel from its socket to its workers: sessions, grants, ends.

The peer is tests/func/window_peer.py, not libvgpu.
"""

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import stat
import time

import pytest

import window_peer
from support import WORKER, is_worker, wait_until
from window_peer import COMMAND_FAILED, DEVICE_LOST, OK, OP_PING, OP_RESET, TIME_LIMIT

PTRACE_SEIZE = 0x4206  # of <sys/ptrace.h>
VMS = {1: ("A", 1), 2: ("A", 2), 3: ("B", 0)}


def socket_of(m, vm_id):
    return m.state / "run" / f"vm{vm_id}.sock"


@pytest.fixture
def peer():
    """peer(mediator, vm_id) is connected and welcome."""
    with contextlib.ExitStack() as stack:
        def make(m, vm_id=1, **options):
            one = stack.enter_context(window_peer.Peer(socket_of(m, vm_id), **options))
            return one.connect().hello()
        yield make


def spin(session, milliseconds):
    """Submits it and does not wait."""
    data = f"SPIN {milliseconds}".encode()
    session.put(window_peer.ARENA + 8192, data)
    return session.submit(window_peer.OP_TEXT, [window_peer.ARENA + 8192, window_peer.ARENA + 12288,
                                                len(data) | 1024 << 32])


# --- sessions -----------------------------------------------------------------------


def test_a_session_answers_pings_and_text_commands(mediator, peer):
    m = mediator(VMS)
    session = peer(m).open()
    session.ping()
    assert session.text("3:4") == (OK, "3 + 4 = 7")
    status, answer = session.text("NO_SUCH_COMMAND")
    assert status == COMMAND_FAILED
    assert "VECTOR_ADD" in answer


def test_the_socket_has_the_owner_and_mode_of_the_vm(mediator):
    m = mediator(VMS)
    info = socket_of(m, 1).stat()
    assert stat.S_ISSOCK(info.st_mode)
    assert stat.S_IMODE(info.st_mode) == 0o600
    assert info.st_uid == os.geteuid()


def test_the_welcome_tells_what_the_registry_says(mediator, peer):
    m = mediator(VMS)
    vm_id, pool, priority, sessions_max = peer(m, 3).welcome
    assert (vm_id, chr(pool), priority, sessions_max) == (3, "B", 0, 8)


def test_a_vm_gets_no_more_sessions_than_sessions_max(mediator, peer):
    m = mediator(VMS, sessions_max=2)
    p = peer(m, slots=3, window_bytes=4 << 20)
    p.open(0).ping()
    p.open(1).ping()
    with pytest.raises(window_peer.Refused, match="2 sessions"):
        p.open(2)
    p.close_session(0)
    p.open(2).ping()


def test_sessions_of_one_vm_take_turns(mediator, peer):
    m = mediator(VMS, log_level="debug")
    p = peer(m, slots=2, window_bytes=4 << 20)
    first, second = p.open(0), p.open(1)
    for _ in range(20):
        first.ping()
        second.ping()
    assert m.events("returned", vm=1, slot=0), "the first kept its long grant"


def test_a_closed_slot_can_be_opened_again_and_is_empty(mediator, peer):
    m = mediator(VMS)
    p = peer(m)
    session = p.open()
    session.put(window_peer.HEAP, b"secret")
    session.ping()
    p.close_session()
    again = p.open()
    assert again.get(window_peer.HEAP, 6) == bytes(6)
    again.ping()


def test_a_missing_worker_program_refuses_the_session_until_it_is_back(mediator, peer, place):
    worker = place / "vgpu-worker"
    shutil.copy(WORKER, worker)
    m = mediator(VMS, worker=worker)
    worker.rename(place / "away")
    m.allow_error("cannot run worker program")
    p = peer(m)
    with pytest.raises(window_peer.Refused, match="no worker could be started") as refused:
        p.open()
    assert str(place) not in str(refused.value)  # the guest learns no paths of the host
    (place / "away").rename(worker)
    p.open().ping()


def test_a_worker_program_that_does_nothing_refuses_the_session(mediator, peer, place):
    worker = place / "vgpu-worker"
    worker.write_text("#!/bin/sh\nexit 3\n")
    worker.chmod(0o755)
    m = mediator(VMS, worker=worker)
    m.allow_error("before it was ready")
    with pytest.raises(window_peer.Refused, match="could not start"):
        peer(m).open()


def test_a_worker_holds_only_what_its_slot_needs(mediator, peer):
    m = mediator(VMS, log_level="debug")
    peer(m).open().ping()
    pid = m.events("process", vm=1)[-1]["worker_pid"]
    try:
        names = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    except PermissionError:
        pytest.skip("only root may look into a worker")
    assert not any("memfd" in name for name in names), "the window is still open"
    mine = {name for name in names if name.startswith(str(m.directory))}
    memory, = (m.state / "run/sessions").glob("*.session")
    assert mine == {str(memory), str(m.execution_log), str(m.stderr)}


def test_a_reset_ends_all_sessions_before_it_is_done(mediator, peer):
    m = mediator(VMS)
    p = peer(m, slots=2, window_bytes=4 << 20)
    p.open(0).ping()
    p.open(1).ping()
    p.reset()
    p.open(0).ping()


def test_channels_window_makes_no_share(mediator, peer):
    m = mediator(VMS, channels="window")
    peer(m).open().ping()
    assert not m.share.exists()


def test_channels_file_makes_no_socket(mediator):
    m = mediator(VMS, channels="file")
    assert not socket_of(m, 1).exists()
    assert m.vm(1).ask("PING") == "1:PONG"


def test_both_channels_of_a_vm_work_side_by_side(mediator, peer):
    m = mediator(VMS)
    session = peer(m).open()
    session.ping()  # holds a long grant
    for number in range(5):
        assert m.vm(1).ask(f"PING {number}") == f"1:PONG {number}"
        session.ping()


# --- grants -------------------------------------------------------------------------


def test_a_vm_that_is_alone_keeps_its_grant(mediator, peer):
    m = mediator(VMS, log_level="debug")
    session = peer(m).open()
    for _ in range(50):
        session.ping()
    assert len(m.events("process", vm=1)) == 1
    assert not m.events("returned", vm=1)


def test_a_long_grant_ends_when_another_vm_comes(mediator, peer):
    m = mediator(VMS, log_level="debug")
    first, second = peer(m, 1).open(), peer(m, 2).open()
    first.ping()
    second.ping()
    assert m.wait_event("returned", vm=1)
    first.ping()
    second.ping()


def test_higher_priorities_go_first(mediator, peer):
    m = mediator({1: ("A", 0), 2: ("A", 1), 3: ("A", 2)}, arguments=["--hold-until", "3"])
    sessions = [peer(m, vm).open() for vm in (1, 2, 3)]
    for session in sessions:
        session.submit(OP_PING)
        m.wait_event("queue", vm=sessions.index(session) + 1)
    for session in sessions:
        assert session.wait()[0][2] == OK
    assert m.order() == [3, 2, 1]


def test_a_long_operation_of_another_device_delays_nobody(mediator, peer):
    m = mediator({1: ("A", 1), 2: ("B", 1)}, pools={"A": "cpu:0", "B": "cpu:1"})
    busy, other = peer(m, 1).open(), peer(m, 2).open()
    spin(busy, 60000)
    other.ping()


def test_others_wait_little_longer_than_the_limit_of_an_operation(mediator, peer):
    m = mediator({vm_id: ("A", 1) for vm_id in (1, 2, 3)}, operation_limit_ms=10000,
                 grant_us=50000, log_level="debug")
    first, busy, other = [peer(m, vm_id).open() for vm_id in (1, 2, 3)]
    spin(first, 500)
    m.wait_event("process", vm=1)
    cookie = spin(busy, 60000)
    m.wait_event("queue", vm=2)
    begun = time.monotonic()
    other.submit(OP_PING)  # waits too: VM 2's grant has an end
    assert other.wait(1)[0][2] == OK
    assert time.monotonic() - begun < 50  # not until that operation's end
    assert busy.wait(1) == [(cookie, 0, TIME_LIMIT)]


@contextlib.contextmanager
def kept_from_dying(pid):
    """Nobody sees the end of a process before its tracer has: as if a driver held it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if libc.ptrace(PTRACE_SEIZE, pid, None, None) < 0:
        pytest.skip(f"needs ptrace(2): {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        os.waitpid(pid, 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to hold another user's process")
def test_a_worker_that_takes_long_to_die_is_told_of_once(mediator, peer):
    m = mediator(VMS, operation_limit_ms=300, log_level="debug")
    busy = peer(m, 1).open()
    busy.ping()
    with kept_from_dying(m.events("process", vm=1)[-1]["worker_pid"]):
        cookie = spin(busy, 60000)
        m.wait_message("longer than operation_limit_ms")
        time.sleep(0.5)
        assert len(m.messages("ending its worker")) == 1
    assert busy.wait(1) == [(cookie, 0, TIME_LIMIT)]


def test_an_operation_beyond_its_limit_ends_its_worker_only(mediator, peer):
    m = mediator(VMS, operation_limit_ms=300)
    busy, other = peer(m, 1).open(), peer(m, 2).open()
    cookie = spin(busy, 60000)
    after = busy.submit(OP_PING)
    assert busy.wait(2) == [(cookie, 0, TIME_LIMIT), (after, 0, DEVICE_LOST)]
    m.wait_message("longer than operation_limit_ms")
    other.ping()
    assert busy.run(OP_PING)[1] == DEVICE_LOST
    assert busy.run(OP_RESET)[1] == OK
    busy.ping()


# --- ends ---------------------------------------------------------------------------


def test_a_killed_worker_costs_what_it_had_and_no_more(mediator, peer):
    m = mediator(VMS, log_level="debug")
    session = peer(m).open()
    session.ping()
    cookies = [spin(session, 60000), session.submit(OP_PING)]
    pid = m.events("process", vm=1)[-1]["worker_pid"]
    os.kill(pid, signal.SIGKILL)
    assert session.wait(2) == [(cookie, 0, DEVICE_LOST) for cookie in cookies]
    m.wait_event("lost", vm=1)
    assert session.run(OP_RESET)[1] == OK
    session.ping()


def test_workers_end_with_their_owner(mediator, peer):
    m = mediator(VMS, log_level="debug", sessions_max=1)
    p = peer(m)
    p.open().ping()
    pid = m.events("process", vm=1)[-1]["worker_pid"]
    p.close()
    wait_until(lambda: not is_worker(pid), "the worker's end")
    other = peer(m)

    def opened():
        try:
            return other.open()
        except window_peer.Refused:
            return None
    wait_until(opened, "a free session").ping()


def test_workers_end_with_their_owner_while_no_mediator_runs(mediator, peer):
    m = mediator(VMS, log_level="debug")
    p = peer(m)
    p.open().ping()
    pid = m.events("process", vm=1)[-1]["worker_pid"]
    m.kill()
    assert is_worker(pid)
    p.close()
    wait_until(lambda: not is_worker(pid), "the worker's end")


def test_a_session_survives_the_mediator(mediator, peer):
    m = mediator(VMS, log_level="debug")
    p = peer(m)
    session = p.open()
    session.ping()
    pid = m.events("process", vm=1)[-1]["worker_pid"]
    m.kill()
    for _ in range(10):
        session.ping()  # on the grant that it has
    m.start()
    p.reconnect()
    for _ in range(10):
        session.ping()
    assert m.events("process", vm=1)[-1]["worker_pid"] == pid
    assert session.word(window_peer.HOST + 0xC4) == 1  # its generation


def test_a_session_survives_an_orderly_restart(mediator, peer):
    m = mediator(VMS)
    p = peer(m)
    session = p.open()
    session.ping()
    m.stop_but_keep_workers()
    cookie = session.submit(OP_PING)  # nobody grants it now
    m.start()
    p.reconnect()
    assert session.wait() == [(cookie, 0, OK)]


def test_nothing_runs_before_the_workers_of_the_last_mediator_gave_back(mediator, peer):
    m = mediator(VMS, log_level="debug", operation_limit_ms=20000)
    busy, other = peer(m, 1), peer(m, 2)
    one, two = busy.open(), other.open()
    one.ping()
    spin(one, 700)
    m.kill()
    m.start()
    other.reconnect()
    busy.reconnect()
    two.ping()
    assert m.messages("its worker lives")
    assert [status for _, _, status in one.take()] == [OK], "the spin was still running"


def test_a_worker_that_died_with_the_mediator_has_a_successor(mediator, peer):
    m = mediator(VMS, log_level="debug")
    p = peer(m)
    session = p.open()
    session.ping()
    pid = m.events("process", vm=1)[-1]["worker_pid"]
    m.kill()
    cookie = spin(session, 60000)
    os.kill(pid, signal.SIGKILL)
    m.start()
    p.reconnect()
    assert session.wait() == [(cookie, 0, DEVICE_LOST)]
    assert session.run(OP_RESET)[1] == OK
    session.ping()


def test_a_busy_worker_outlives_many_mediators(mediator, peer):
    """It accepts nobody meanwhile; who could not connect must not take it for dead."""
    m = mediator(VMS, log_level="debug")
    p, other = peer(m, 1), peer(m, 2)
    busy, idle = p.open(), other.open()
    idle.ping()
    busy.ping()
    pid = m.events("process", vm=1)[-1]["worker_pid"]
    cookie = spin(busy, 2500)
    for _ in range(12):
        after = m.mark()
        m.kill()
        m.launch()
        wait_until(lambda: m.messages("vm1: slot 0: its worker lives: going on", after=after),
                   "the worker adopted")
    m.kill()
    m.start()
    p.reconnect()
    other.reconnect()
    assert busy.wait() == [(cookie, len("Spun 2500 ms"), OK)], "one answer, not cut off"
    assert is_worker(pid)
    idle.ping()


def test_a_worker_that_cannot_be_adopted_is_ended_before_anything_runs(mediator, peer):
    m = mediator(VMS, log_level="debug")
    p = peer(m)
    session = p.open()
    session.ping()
    pid = m.events("process", vm=1)[-1]["worker_pid"]
    cookie = spin(session, 60000)
    m.kill()
    socket, = (m.state / "run" / "sessions").glob("vm1-*.sock")
    socket.unlink()
    m.start()
    assert not is_worker(pid)
    p.reconnect()
    assert session.wait() == [(cookie, 0, DEVICE_LOST)]
    assert session.run(OP_RESET)[1] == OK
    session.ping()


def test_a_worker_of_a_vm_that_is_gone_is_ended(mediator, peer):
    m = mediator(VMS, log_level="debug")
    p = peer(m)
    session = p.open()
    session.ping()
    pid = m.events("process", vm=1)[-1]["worker_pid"]
    m.kill()
    del m.vms[1]
    m.write_config()
    m.start()
    assert not is_worker(pid)
    assert not list((m.state / "run" / "sessions").glob("vm1-*"))
    assert m.messages("vm1 is not registered any more: its session")


def kill_both(m, session):
    """Mediator and worker; returns the session's files."""
    session.ping()
    pid = m.events("process", vm=1)[-1]["worker_pid"]
    m.kill()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_worker(pid), "the worker's end")
    files = sorted((m.state / "run" / "sessions").glob("vm1-*"))
    with open(files[0], "rb") as held:  # its threads let go one after the other
        wait_until(lambda: try_lock(held), "the lock")
    return files


def make_old(path, seconds=3600):
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))


def test_an_old_session_whose_worker_died_waits_for_its_owner(mediator, peer):
    m = mediator(VMS, log_level="debug")
    p = peer(m)
    session = p.open()
    for path in kill_both(m, session):
        make_old(path)  # as if it had been open for an hour
    m.start()
    p.reconnect()
    p.until(lambda: session.state == window_peer.LOST)
    assert session.run(OP_RESET)[1] == OK
    session.ping()


def test_what_nobody_asked_for_is_removed_in_time(mediator, peer):
    m = mediator(VMS, log_level="debug")
    p = peer(m)
    memory, socket = kill_both(m, p.open())
    account = socket.with_name("vm1.account")
    assert account.exists()
    socket.with_name("vm1-abc-0.sock").touch()
    m.start()
    for path in (memory, socket, socket.with_name("vm1-abc-0.sock"), account):
        make_old(path)
    wait_until(lambda: not list((m.state / "run" / "sessions").glob("vm1*")), "files removed")


def test_a_successor_waits_for_a_dying_worker_to_let_go(mediator, peer):
    m = mediator(VMS, log_level="debug")
    m.allow_error("is held by a living worker")
    p = peer(m)
    session = p.open()
    session.ping()
    pid = m.events("process", vm=1)[-1]["worker_pid"]
    memory, = (m.state / "run" / "sessions").glob("vm1-*.session")
    m.kill()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_worker(pid), "the worker's end")
    with open(memory, "rb") as held:
        m.start()
        wait_until(lambda: try_lock(held), "the lock")
        p.reconnect()
        m.wait_message("is held by a living worker")
        p.pending()
        assert session.state == window_peer.READY, "nothing else was said"
    p.until(lambda: session.state == window_peer.LOST)
    assert session.run(OP_RESET)[1] == OK
    session.ping()


def test_a_mediator_does_not_start_beside_a_worker_that_it_cannot_end(mediator, peer):
    m = mediator(VMS, log_level="debug")
    memory, _ = kill_both(m, peer(m).open())
    with open(memory, "rb") as held:
        wait_until(lambda: try_lock(held), "the lock")
        m.launch()
        assert m.wait() == 1
    assert "cannot be ended" in m.stderr.read_text() + m.tail()
    m.allow_error("cannot be ended")
    m.start()


def try_lock(file):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def test_a_broken_link_keeps_the_session_of_a_living_owner(mediator, peer):
    m = mediator(VMS)
    p = peer(m)
    session = p.open()
    session.ping()
    p.hang_up()
    m.wait_event("unlink", vm=1)
    session.ping()
    p.reconnect()
    session.ping()


def test_cleanup_ends_window_sessions(mediator, peer):
    m = mediator(VMS, arguments=["--cleanup"], log_level="debug")
    session = peer(m).open()
    session.ping()
    pid = m.events("process", vm=1)[-1]["worker_pid"]
    m.stop()
    wait_until(lambda: not is_worker(pid), "the worker's end")


# --- live changes ---------------------------------------------------------------------


def test_a_reload_changes_pool_and_priority_live(mediator, peer):
    m = mediator(VMS)
    p = peer(m)
    m.vms[1] = ("B", 2)
    m.write_config()
    m.process.send_signal(signal.SIGHUP)
    p.until(lambda: p.config[1:3] == (ord("B"), 2))
    m.wait_event("config", vm=1, pool="B", priority=2)
    assert m.vm(1).ask("PING") == "1:PONG"


def test_a_wrong_configuration_changes_nothing(mediator, peer):
    m = mediator(VMS)
    m.allow_error("not read again")
    m.vms[1] = ("Z", 2)
    m.write_config()
    m.process.send_signal(signal.SIGHUP)
    m.wait_message("nothing changes")
    peer(m).open().ping()
