# SPDX-License-Identifier: Apache-2.0
"""What a VM may do at a time holds on both channels together, over all its sessions, on a long
grant too; others are served meanwhile, and it changes live."""

import os
import re
import signal
import time

import pytest

import cuda_support
from control_support import admin, control, make_registered
from cuda_support import launch_spin, workers_of
from support import wait_until
from window_peer import ARENA, DEVICE_LOST, OK, OP_PING, OP_TEXT, TIME_LIMIT, Peer

VMS = {1: ("A", 1), 2: ("A", 1)}
PCI = "0000:65:00.0"  # of the double's first GPU
LIMIT_MS = 2000 if cuda_support.ON_GPU else 400  # longer than a context takes to be made
TOO_MUCH_TIME = "too much device time: VM 1 may use 1 percent of a device"


@pytest.fixture
def registered(mediator):
    """registered(device=..., **options): a mediator with VMS in pool A on this device."""
    def make(device="cpu", **options):
        m = make_registered(mediator, VMS, start=False, **options)
        if device != "cpu":
            admin(m, "bind-device", "A", device)
        return m.start()
    return make


def peer_of(m, vm_id, slots=1):
    return Peer(m.state / "run" / f"vm{vm_id}.sock", slots=slots,
                window_bytes=(2 << 20) * slots).connect().hello()


def limit(m, vm_id, **limits):
    admin(m, "set-limit", vm_id, *[word for name, value in limits.items()
                                   for word in (f"--{name.replace('_', '-')}", value)])


def flood(session, count):
    for _ in range(count):
        session.submit(OP_PING)


def check_all(session, count):
    assert [status for _, _, status in session.wait(count)] == [OK] * count


def spin(session, ms):
    """The words of a text operation."""
    command = f"SPIN {ms}".encode()
    session.put(ARENA, command)
    return [ARENA, ARENA + 4096, len(command) | 1024 << 32]


def known(m, vm_id):
    with control(m) as client:
        return client.vm(vm_id)


# --- windows: what is too much waits in its ring -------------------------------------------------


def test_a_window_that_floods_has_its_rate_and_another_vm_is_served(registered):
    m = registered()
    limit(m, 1, request_rate=200, request_burst=10)
    with peer_of(m, 1) as peer, peer_of(m, 2) as other:
        session, calm = peer.open(), other.open()
        begin = time.monotonic()
        flood(session, 160)
        for _ in range(20):
            calm.ping()
        check_all(session, 160)
        assert time.monotonic() - begin >= 150 / 200
    assert known(m, 1)["refusals"] == 0


def test_many_sessions_of_a_vm_share_its_rate(registered):
    m = registered()
    limit(m, 1, request_rate=100, request_burst=10)
    with peer_of(m, 1, slots=4) as peer:
        sessions = [peer.open(slot) for slot in range(4)]
        begin = time.monotonic()
        for session in sessions:
            flood(session, 20)
        for session in sessions:
            check_all(session, 20)
        assert time.monotonic() - begin >= 70 / 100


def test_a_session_that_is_opened_anew_brings_no_burst(registered):
    m = registered()
    limit(m, 1, request_rate=10, request_burst=2)
    begin = time.monotonic()
    for _ in range(4):
        with peer_of(m, 1) as peer:
            session = peer.open()
            flood(session, 2)
            check_all(session, 2)
    assert time.monotonic() - begin >= 6 / 10


def test_a_vm_that_is_alone_has_no_more_than_its_share_of_the_device(registered, summary):
    m = registered()
    limit(m, 1, device_share=20)
    with peer_of(m, 1) as peer:
        session = peer.open()
        session.ping()
        before, begin = known(m, 1)["device_us"], time.monotonic()
        for _ in range(10):
            assert session.text("SPIN 10")[0] == OK
        lasted_us = (time.monotonic() - begin) * 1e6
        used_us = known(m, 1)["device_us"] - before
    summary(f"{used_us / lasted_us:.1%} of the device with a share of 20 %")
    # A burst of 10 ms of the clock, and the last operation.
    assert used_us - 2000 - 15000 <= lasted_us * 0.2


def test_another_vm_has_the_device_while_one_is_beyond_its_share(registered):
    m = registered()
    limit(m, 1, device_share=1)
    with peer_of(m, 1) as peer, peer_of(m, 2) as other:
        session, calm = peer.open(), other.open()
        assert session.text("SPIN 100")[0] == OK  # pays it for 10 s
        session.submit(OP_PING)
        for _ in range(50):
            calm.ping()
        assert session.take() == []
        limit(m, 1, device_share="none")
        check_all(session, 1)


def test_limits_change_under_a_long_grant(registered):
    m = registered()
    with peer_of(m, 1) as peer:
        session = peer.open()
        session.ping()
        wait_until(lambda: known(m, 1)["running"], "its long grant")
        limit(m, 1, request_rate=1, request_burst=1)
        flood(session, 500)
        session.wait(1)
        assert len(session.take()) < 400
        assert known(m, 1)["limits"]["request_rate"] == 1
        limit(m, 1, request_rate="none", request_burst="none")
        wait_until(lambda: session.take() and session.cq_head == session.sq_tail, "all of it")
    assert len(m.events("changed", what="request_rate")) == 2


@pytest.fixture(params=["cpu", "cuda"])
def backend(request):
    """Options of `registered` for a pool A with that backend."""
    if request.param == "cpu":
        return {}
    if cuda_support.ON_GPU:
        return {"device": cuda_support.first_gpu()}
    return {"device": PCI, "cuda_library": request.getfixturevalue("fake").path}


def spin_of(session, backend):
    """Submits what has no end: a text command, or a kernel."""
    if not backend:
        return session.submit(OP_TEXT, spin(session, 60000))
    return launch_spin(session, 600 * 1000 * 1000)


@pytest.mark.parametrize("how", ["killed", "time limit", "closed"])
def test_time_that_a_worker_could_not_count_any_more_is_used_once(registered, backend, how):
    """Not less, and not more than the time since it began."""
    m = registered(operation_limit_ms=LIMIT_MS if how == "time limit" else 60000, **backend)
    limit(m, 1, device_share=1)
    with peer_of(m, 1) as peer:
        session = peer.open()
        session.ping()
        time.sleep(1.5)  # idle, with a grant
        begun = time.monotonic()
        cookie = spin_of(session, backend)
        wait_until(lambda: m.begun(1) == 2, "its begin")
        if how != "time limit":
            time.sleep(0.5)
        if how == "killed":
            os.kill(workers_of(m, 1)[0], signal.SIGKILL)
        if how == "closed":
            peer.close_session()
        else:
            (got, _, status), = session.wait(1)
            assert (got, status) == (cookie, DEVICE_LOST if how == "killed" else TIME_LIMIT)
        answer = m.vm(1).ask("PING")
        assert m.vm(2).ask("PING") == "1:PONG"
        lasted_ms = 1000 * (time.monotonic() - begun)
    assert 0 < retry_ms(answer, TOO_MUCH_TIME) <= 100 * lasted_ms


# --- files: what is too much is answered, with when to try again ---------------------------------


def test_time_of_a_file_request_that_ran_too_long_is_used(registered):
    m = registered(operation_limit_ms=300)
    limit(m, 1, device_share=1)
    assert "longer than its limit" in m.vm(1).ask("SPIN 60000")
    assert "too much device time" in m.vm(1).ask("PING")


def retry_ms(answer, reason):
    found = re.fullmatch(rf"2:{reason}; retry after (\d+) ms", answer)
    assert found, answer
    return int(found[1])


def test_file_requests_over_the_rate_are_answered_with_when_to_try_again(registered):
    m = registered()
    limit(m, 1, request_rate=1, request_burst=2)
    assert [m.vm(1).ask("PING") for _ in range(2)] == ["1:PONG"] * 2
    after_ms = retry_ms(m.vm(1).ask("PING"), "too many requests: VM 1 may send 1 a second")
    assert 1 <= after_ms <= 1001
    assert m.vm(2).ask("PING") == "1:PONG"
    time.sleep(after_ms / 1000)
    assert m.vm(1).ask("PING") == "1:PONG"
    vm = known(m, 1)
    assert vm["refusals"] == 1
    assert vm["refusals_by"] == {"rate": 1, "device_share": 0, "queue_depth": 0}
    limit(m, 1, request_rate="none")
    assert [m.vm(1).ask("PING") for _ in range(3)] == ["1:PONG"] * 3


def test_both_channels_have_one_rate(registered):
    m = registered()
    limit(m, 1, request_rate=1, request_burst=3)
    with peer_of(m, 1) as peer:
        session = peer.open()
        flood(session, 3)
        check_all(session, 3)
        assert "too many requests" in m.vm(1).ask("PING")


def test_file_requests_over_the_share_are_answered_with_when_to_try_again(registered):
    m = registered()
    limit(m, 1, device_share=50)
    assert m.vm(1).ask("SPIN 300").startswith("1:")
    after_ms = retry_ms(m.vm(1).ask("PING"),
                        "too much device time: VM 1 may use 50 percent of a device")
    assert after_ms <= 1000
    assert m.vm(2).ask("PING") == "1:PONG"
    time.sleep(after_ms / 1000)
    assert m.vm(1).ask("PING") == "1:PONG"
    assert known(m, 1)["refusals_by"]["device_share"] == 1


def test_file_requests_of_a_vm_whose_queue_is_full_are_answered(registered):
    m = registered()
    limit(m, 1, queue_depth=2)
    pid = m.occupy(2)
    with peer_of(m, 1) as peer:
        session = peer.open()
        flood(session, 2)
        wait_until(lambda: known(m, 1)["depth"] >= 1, "what waits")
        limit(m, 1, queue_depth=1)
        retry_ms(m.vm(1).ask("PING"), "too many requests wait: VM 1 may have 1")
        assert known(m, 1)["refusals_by"]["queue_depth"] == 1
        m.release(pid)
        check_all(session, 2)
        wait_until(lambda: known(m, 1)["depth"] == 0, "an empty queue")
        assert m.vm(1).ask("PING") == "1:PONG"


def test_what_bounds_a_vm_leaves_no_file_behind(registered):
    m = registered()
    limit(m, 1, request_rate=100)
    assert m.vm(1).ask("PING") == "1:PONG"
    assert [path.name for path in (m.state / "run/sessions").iterdir()] == ["vm1.account"]
    limit(m, 1, request_rate="none")
    assert list((m.state / "run/sessions").iterdir()) == []
    limit(m, 1, request_rate=100)
    assert m.vm(1).ask("PING") == "1:PONG"
    m.stop()
    assert list((m.state / "run/sessions").iterdir()) == []


def test_limits_stand_in_a_configuration_file_too(mediator):
    m = mediator(VMS, start=False)
    m.config.write_text(m.config.read_text() + "request_rate = 1\nrequest_burst = 1\n")  # of vm 2
    m.start()
    assert m.vm(2).ask("PING") == "1:PONG"
    assert "too many requests: VM 2" in m.vm(2).ask("PING")
    assert [m.vm(1).ask("PING") for _ in range(3)] == ["1:PONG"] * 3


def test_a_budget_is_known_to_the_next_mediator(registered):
    """Its workers live, and what they used is used."""
    m = registered()
    limit(m, 1, device_share=1)
    with peer_of(m, 1) as peer:
        session = peer.open()
        assert session.text("SPIN 200")[0] == OK
        m.kill()
        m.start()
        peer.reconnect()
        assert "too much device time" in m.vm(1).ask("PING")
