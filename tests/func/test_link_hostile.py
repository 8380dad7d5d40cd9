# SPDX-License-Identifier: Apache-2.0
"""Owners of windows that lie, stall and flood, on one VM's socket, while another VM
works: its answers stay right, and the mediator keeps nothing of what came.

The words of each refusal are tests/unit/test_channel_window.c's; here it is the real
mediator with real workers.
"""

import contextlib
import os
import pathlib
import signal
import socket
import struct
import threading

import pytest

import window_peer
from fuse_trap import FuseTrap
from support import is_sanitized, wait_until
from window_peer import CLOSE, HELLO, OK, OP_PING, OPEN, TIME_LIMIT, message, sealed_memfd

VMS = {1: ("A", 1), 2: ("A", 1)}


def socket_of(m, vm_id):
    return m.state / "run" / f"vm{vm_id}.sock"


def descriptors_of(m):
    return len(os.listdir(f"/proc/{m.process.pid}/fd"))


def rss_kib(m):
    status = pathlib.Path(f"/proc/{m.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


class Honest:
    """Asks for sums as fast as it gets them, in a thread of its own."""

    def __init__(self, m):
        self.peer = window_peer.Peer(socket_of(m, 2)).connect().hello()
        self.session = self.peer.open()
        self.answers = 0
        self.wrong = None
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    def work(self):
        try:
            while not self.ended.is_set():
                number = self.answers
                answer = self.session.text(f"{number}:1")
                if answer != (OK, f"{number} + 1 = {number + 1}"):
                    self.wrong = answer
                    return
                self.answers += 1
        except Exception as error:  # pylint: disable=broad-except
            self.wrong = error

    def is_served(self, count=20):
        """Answers that were asked for from now on come, and are right."""
        before = self.answers
        wait_until(lambda: self.wrong or self.answers >= before + count, "right answers")
        assert self.wrong is None

    def end(self):
        self.ended.set()
        self.thread.join()
        self.peer.close()


@pytest.fixture
def scene(mediator):
    """A mediator with an honest VM 2 at work, which is still at work afterwards, and
    with the descriptors that it had."""
    m = mediator(VMS, operation_limit_ms=500)
    honest = Honest(m)
    try:
        honest.is_served()
        before = descriptors_of(m)
        yield m, honest
        honest.is_served()
        wait_until(lambda: descriptors_of(m) <= before,
                   lambda: f"{before} descriptors; there are {descriptors_of(m)}")
    finally:
        honest.end()


@pytest.fixture
def attacker():
    """attacker(m): connected to VM 1's socket and silent."""
    with contextlib.ExitStack() as stack:
        def make(m, **options):
            return stack.enter_context(
                window_peer.Peer(socket_of(m, 1), **options)).connect()
        yield make


def refusal_of(peer):
    """The mediator's words, which have to be its last."""
    with pytest.raises(window_peer.Refused) as refused:
        peer.until(lambda: peer.welcome)
    with pytest.raises((window_peer.PeerError, ConnectionResetError)):
        peer.receive()
    return str(refused.value)


def replace(peer, name, fd):
    os.close(getattr(peer, name))
    setattr(peer, name, fd)


# --- what they send --------------------------------------------------------------------


def unsealed_window(peer):
    replace(peer, "window", sealed_memfd(peer.window_bytes, 0))
    peer.hello()


def short_window(peer):
    replace(peer, "window", sealed_memfd(4096))
    peer.hello()


def a_file_as_window(peer):
    replace(peer, "window", os.open("/proc/self/exe", os.O_RDONLY | os.O_CLOEXEC))
    peer.hello()


def a_socket_as_interrupt(peer):
    replace(peer, "interrupt", socket.socket(socket.AF_UNIX).detach())
    peer.hello()


def the_pipes_other_end_as_lifeline(peer):
    replace(peer, "lifeline", os.dup(peer.life))
    peer.hello()


def the_mediators_own_socket_as_doorbell(peer):
    os.close(peer.doorbells[0])
    peer.doorbells[0] = os.dup(peer.socket.fileno())
    peer.hello()


def no_descriptors(peer):
    payload = struct.pack("<IIQIIII", 2, 0, peer.window_bytes, 1, 0, 0, 1)
    peer.send(message(HELLO, payload, 0))


def too_many_descriptors(peer):
    peer.send(message(HELLO, b"", 200), [peer.window] * 200)


def another_vms_name(peer):
    peer.hello(vm_id=2)


def an_order_before_hello(peer):
    peer.send(message(OPEN))


def garbage(peer):
    peer.send(os.urandom(4096).replace(b"V", b"v"))


REFUSED = {
    unsealed_window: "sealed against shrinking",
    short_window: "its memfd has 4096",
    a_file_as_window: "the window has to be a memfd",
    a_socket_as_interrupt: "the interrupt has to be an eventfd",
    the_pipes_other_end_as_lifeline: "the read end of its pipe",
    the_mediators_own_socket_as_doorbell: "the doorbell has to be an eventfd",
    no_descriptors: "HELLO comes with 3 descriptors",
    too_many_descriptors: "more descriptors came with a message than the 8",
    another_vms_name: "it says that it is VM 2, but this is the socket of VM 1",
    an_order_before_hello: "message 3 came where HELLO (1) was expected",
    garbage: "it does not speak the link protocol",
}


@pytest.mark.parametrize("attack", REFUSED, ids=lambda attack: attack.__name__)
def test_a_peer_that_sends_what_is_wrong_is_told_so_and_nobody_else_notices(scene, attacker,
                                                                           attack):
    m, _ = scene
    peer = attacker(m)
    with contextlib.suppress(window_peer.Refused, BrokenPipeError, ConnectionResetError):
        attack(peer)
        peer.receive()
    event = m.wait_event("refused", vm=1)
    assert REFUSED[attack] in event["reason"]
    assert not m.events("link", vm=1)


def test_the_reason_reaches_the_peer(scene, attacker):
    m, _ = scene
    peer = attacker(m)
    peer.send(message(OPEN))
    assert "came where HELLO (1) was expected" in refusal_of(peer)


def test_half_messages_cost_nothing(scene, attacker):
    m, _ = scene
    for count in (1, 100, 255):
        peer = attacker(m)
        peer.send(message(HELLO)[:count], [peer.window, peer.interrupt, peer.lifeline])
        peer.hang_up()
    for count in (1, 100, 255):
        m.wait_message(f"in the middle of a message ({count} of 256 bytes)")


# --- those who were let in ----------------------------------------------------------------


def test_a_peer_that_does_not_read_loses_its_link_only(scene, attacker):
    m, _ = scene
    peer = attacker(m).hello()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while not m.events("unlink", vm=1):
            peer.send(message(CLOSE))  # is answered each time
    assert "does not read" in m.wait_event("unlink", vm=1)["message"]


def test_a_full_interrupt_that_blocks_stops_its_own_worker_only(scene, attacker):
    m, honest = scene
    m.allow_error("vm1")
    peer = attacker(m).hello()
    os.eventfd_write(peer.interrupt, 2**64 - 2)
    os.set_blocking(peer.interrupt, True)
    session = peer.open()
    session.submit(OP_PING)  # its worker wants to raise the interrupt, and waits
    m.wait_event("lost", vm=1)
    honest.is_served()
    assert os.eventfd_read(peer.interrupt) == 2**64 - 2
    peer.close()


def test_full_doorbells_that_block_stop_nobody(scene, attacker):
    m, honest = scene
    peer = attacker(m).hello()
    os.eventfd_write(peer.doorbells[0], 2**64 - 2)
    os.set_blocking(peer.doorbells[0], True)
    peer.open().submit(OP_PING, ring=False)
    honest.is_served()


def test_an_owner_without_a_lifeline_gets_no_worker_that_stays(scene, attacker):
    m, honest = scene
    m.allow_error("vm1")
    peer = attacker(m)
    os.close(peer.life)
    peer.life = os.dup(peer.interrupt)  # something that close() can close
    peer.hello().ask_open()
    honest.is_served()


def test_claims_of_slots_that_were_never_open_are_answered(scene, attacker):
    m, honest = scene
    peer = attacker(m, slots=2, window_bytes=4 << 20)
    peer.sessions = {slot: window_peer.Session(peer, slot) for slot in (0, 1)}
    peer.hello(open_slots=3)
    peer.until(lambda: all(one.state == window_peer.FAULTED for one in peer.sessions.values()))
    honest.is_served()


def test_opening_and_closing_without_end_leaves_one_session(scene, attacker):
    m, honest = scene
    peer = attacker(m).hello()
    session = peer.ask_open()
    for _ in range(20):
        peer.send(message(OPEN))
        peer.send(message(CLOSE))
        peer.send(message(OPEN))
    honest.is_served()
    peer.send(message(CLOSE))
    peer.until(lambda: session.state == window_peer.CLOSED)


def test_nonsense_in_the_rings_ends_that_session_only(scene, attacker):
    m, honest = scene
    peer = attacker(m).hello()
    session = peer.open()
    session.word(window_peer.GUEST, 5000)
    session.ring_doorbell()
    peer.until(lambda: session.state == window_peer.FAULTED)
    honest.is_served()
    peer.close_session()
    peer.open().ping()


def test_another_vms_death_is_nobodys_matter(scene, attacker):
    m, honest = scene
    m.allow_error("vm1")
    peer = attacker(m).hello()
    session = peer.open()
    session.ping()
    data = b"SPIN 60000"
    session.put(window_peer.ARENA, data)
    cookie = session.submit(window_peer.OP_TEXT, [window_peer.ARENA, window_peer.ARENA + 4096,
                                                  len(data) | 1024 << 32])
    assert session.wait() == [(cookie, 0, TIME_LIMIT)]  # it overstayed
    honest.is_served()


# --- many times ------------------------------------------------------------------------------


def attack_all(m, attacker):
    for attack in REFUSED:
        peer = attacker(m)
        with contextlib.suppress(window_peer.Refused, BrokenPipeError, ConnectionResetError):
            attack(peer)
            peer.receive()
        peer.close()


def test_two_hundred_attacks_leave_no_memory_behind(scene, attacker):
    m, _ = scene
    attack_all(m, attacker)
    attack_all(m, attacker)
    before = rss_kib(m)
    for _ in range(16):
        attack_all(m, attacker)
    m.wait_message("refusals before were too many to tell")
    if not is_sanitized():  # which keep what was freed
        assert rss_kib(m) - before < 512


def test_a_lingering_socket_does_not_hold_the_mediator_up(mediator):
    """Its close would wait 60 s for a reader who never reads."""
    m = mediator({1: ("A", 1), 2: ("A", 1)})
    with socket.create_server(("127.0.0.1", 0)) as listener:
        lingering = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        lingering.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 60))
        lingering.setblocking(False)
        try:
            while True:
                lingering.send(bytes(65536))
        except BlockingIOError:
            pass
        with window_peer.Peer(socket_of(m, 1)) as attacker, \
                window_peer.Peer(socket_of(m, 2)) as honest:
            attacker.connect()
            m.pause()
            attacker.send(window_peer.message(window_peer.HELLO, b"", 1), [lingering.fileno()])
            lingering.close()  # the mediator's is the last one now
            m.process.send_signal(signal.SIGCONT)
            honest.connect().hello().open().ping()
        accepted.close()


@pytest.fixture
def trap(place):
    directory = place / "trap"
    directory.mkdir()
    try:
        with FuseTrap(directory) as made:
            yield made
    except OSError as error:
        pytest.skip(f"no FUSE here: {error.strerror}")


@pytest.mark.parametrize("count", [1, 40], ids=["one", "more-than-a-message-has"])
def test_a_file_that_does_not_close_holds_nobody_up(mediator, trap, count):
    m = mediator({1: ("A", 1), 2: ("A", 1)})
    m.allow_error("vm1")
    fds = [trap.open() for _ in range(count)]
    with window_peer.Peer(socket_of(m, 1)) as attacker, \
            window_peer.Peer(socket_of(m, 2)) as honest:
        attacker.connect().send(window_peer.message(window_peer.HELLO, b"", 1), fds)
        assert trap.flushed.wait(30), "the mediator closes it"
        honest.connect().hello().open().ping()
        threads = pathlib.Path(f"/proc/{m.process.pid}/task")
        assert len(list(threads.iterdir())) <= count + 8


def test_who_gives_what_does_not_close_gets_no_further_link(mediator, trap):
    m = mediator({1: ("A", 1), 2: ("A", 1)})
    fd = trap.open()
    refused = ""
    with window_peer.Peer(socket_of(m, 1)) as attacker, \
            window_peer.Peer(socket_of(m, 2)) as honest:
        while "do not close" not in refused:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                attacker.connect()
                attacker.send(window_peer.message(window_peer.HELLO, b"", 8), [fd] * 8)
            try:
                attacker.until(lambda: False)
            except (window_peer.Refused, window_peer.PeerError, OSError) as error:
                refused = str(error)
        honest.connect().hello().open().ping()


def test_a_worker_is_started_while_a_file_that_does_not_close_is_in_a_message(mediator, trap):
    """A child has a copy of all descriptors, and closes them before it runs."""
    m = mediator({1: ("A", 1), 2: ("A", 1)})
    fd = trap.open()
    with window_peer.Peer(socket_of(m, 1)) as attacker, \
            window_peer.Peer(socket_of(m, 2)) as honest:
        attacker.connect()
        attacker.send(window_peer.message(window_peer.HELLO, b"", 8)[:100], [fd] * 8)  # half of it
        for _ in range(5):
            honest.connect().hello().open().ping()
