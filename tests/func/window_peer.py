# SPDX-License-Identifier: Apache-2.0
"""An owner of a window in Python: the other side of include/vgpu/link.h and
window.h, written apart from libvgpu, so that each finds the other's mistakes.

It also does what no honest owner would: every step can be left out or done wrong.
"""

import array
import fcntl
import mmap
import os
import select
import socket
import struct
import time

LINK_MAGIC = 0x4B4E4C56
MESSAGE_BYTES = 256
HELLO, DOORBELLS, OPEN, CLOSE, RESET = 1, 2, 3, 4, 5
WELCOME, REFUSED, STATE, CONFIG, RESET_DONE = 16, 17, 18, 19, 20
OWNER_LOCAL = 2

CLOSED, OPENING, READY, LOST, FAULTED, RESETTING, SESSION_REFUSED = range(7)

PAGE = 4096
GUEST, HOST, SQ, CQ, ARENA, HEAP = 0, 0x1000, 0x2000, 0x12000, 0x1A000, 0x5A000
ENTRIES = 1024

OP_PING, OP_TEXT, OP_RESET, OP_CANCEL, OP_QUERY = 1, 2, 3, 4, 5
OP_ALLOC, OP_FREE, OP_SET, OP_COPY_IN, OP_COPY_OUT, OP_COPY = 16, 17, 18, 19, 20, 21
OK, COMMAND_FAILED, CANCELLED, DEVICE_LOST, TIME_LIMIT, REFUSED_STATUS = 0, 10, 11, 12, 14, 15

WAIT_S = 90


class PeerError(Exception):
    pass


class Refused(PeerError):
    pass


def message(kind, payload=b"", fd_count=0, magic=LINK_MAGIC, version=1):
    return struct.pack("<IHHII", magic, version, kind, fd_count, 0) + payload.ljust(
        MESSAGE_BYTES - 16, b"\0")


def sealed_memfd(size, seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW):
    fd = os.memfd_create("test-window", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    return fd


class Session:
    """One slot, as its guest sees it."""

    def __init__(self, peer, slot):
        self.peer = peer
        self.slot = slot
        self.base = PAGE + slot * peer.slot_bytes
        self.sq_tail = self.cq_head = 0
        self.cookie = 0
        self.state = OPENING
        self.reason = ""

    def word(self, offset, value=None):
        """One load or store: struct.pack_into() would show zeros in between."""
        at = (self.base + offset) // 4
        if value is not None:
            self.peer.words[at] = value & 0xFFFFFFFF
        return self.peer.words[at]

    def put(self, offset, data):
        self.peer.memory[self.base + offset:self.base + offset + len(data)] = data

    def get(self, offset, count):
        return self.peer.memory[self.base + offset:self.base + offset + count]

    def ring_doorbell(self):
        os.eventfd_write(self.peer.doorbells[self.slot], 1)

    def submit(self, opcode, words=(), flags=0, stream=0, device=0, cookie=None, ring=True):
        """Publishes one descriptor; returns its cookie."""
        if cookie is None:
            self.cookie += 1
            cookie = self.cookie
        words = list(words) + [0] * (6 - len(words))
        self.put(SQ + self.sq_tail % ENTRIES * 64,
                 struct.pack("<HBBIQ6Q", opcode, flags, device, stream, cookie, *words))
        self.publish(1, ring)
        return cookie

    def publish(self, count, ring=True):
        old, self.sq_tail = self.sq_tail, (self.sq_tail + count) & 0xFFFFFFFF
        self.word(GUEST, self.sq_tail)
        event = self.word(HOST + 0x80)
        if ring and (self.sq_tail - event - 1) & 0xFFFFFFFF < (self.sq_tail - old) & 0xFFFFFFFF:
            self.ring_doorbell()

    def take(self):
        """The completions that are there: (cookie, result, status)."""
        taken = []
        tail = self.word(HOST)
        while self.cq_head != tail:
            at = self.base + CQ + self.cq_head % ENTRIES * 32
            cookie, result, status, _, _, _ = struct.unpack_from("<QQIIII", self.peer.memory, at)
            taken.append((cookie, result, status))
            self.cq_head = (self.cq_head + 1) & 0xFFFFFFFF
        self.word(GUEST + 0x40, self.cq_head)
        return taken

    def wait(self, count=1, timeout=WAIT_S):
        """Sleeps on the interrupt until `count` completions came."""
        deadline = time.monotonic() + timeout
        taken = []
        while len(taken) < count:
            taken += self.take()
            if len(taken) >= count:
                break
            self.word(GUEST + 0x80, self.cq_head)  # wake me at the next one
            if self.word(HOST) != self.cq_head:
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                raise PeerError(f"{len(taken)} of {count} completions within {timeout} s; "
                                f"state {self.word(HOST + 0xC0)}")
            self.peer.wait_interrupt(min(left, 1))
        return taken

    def run(self, opcode, words=(), **options):
        """One operation, alone: (result, status)."""
        cookie = self.submit(opcode, words, **options)
        (got, result, status), = self.wait(1)
        assert got == cookie, f"cookie {got}, expected {cookie}"
        return result, status

    def ping(self):
        assert self.run(OP_PING)[1] == OK

    def text(self, command):
        """(status, answer) of a text command."""
        data = command.encode()
        self.put(ARENA, data)
        words = [self.arena(0), self.arena(4096), len(data) | 1024 << 32]
        length, status = self.run(OP_TEXT, words)
        return status, self.get(ARENA + 4096, min(length, 1024)).decode(errors="replace")

    @staticmethod
    def arena(offset):
        return ARENA + offset


class Peer:
    """connect(), hello(), open(): an honest local process does these three."""

    def __init__(self, path, slots=1, window_bytes=2 << 20):
        self.path = str(path)
        self.slot_count = slots
        self.window_bytes = window_bytes
        self.slot_bytes = (window_bytes - PAGE) // slots // PAGE * PAGE
        self.window = sealed_memfd(window_bytes)
        self.memory = mmap.mmap(self.window, window_bytes)
        self.words = memoryview(self.memory).cast("I")
        self.interrupt = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.doorbells = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(slots)]
        self.lifeline, self.life = os.pipe2(os.O_CLOEXEC)
        self.socket = None
        self.sessions = {}
        self.welcome = None
        self.config = None
        self.resets_done = 0
        self._rest = b""

    def connect(self):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(self.path)
        self._rest = b""
        return self

    def send(self, data, fds=()):
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([data], ancillary)

    def send_hello(self, **changes):
        values = {"owner": OWNER_LOCAL, "vm_id": 0, "window_bytes": self.window_bytes,
                  "slot_count": self.slot_count, "open_slots": 0, "flags": 0, "min_version": 1,
                  **changes}
        payload = struct.pack("<IIQIIII", *(values[key] for key in (
            "owner", "vm_id", "window_bytes", "slot_count", "open_slots", "flags", "min_version")))
        self.send(message(HELLO, payload, 3), [self.window, self.interrupt, self.lifeline])

    def send_doorbells(self):
        for first in range(0, self.slot_count, 8):
            some = self.doorbells[first:first + 8]
            self.send(message(DOORBELLS, struct.pack("<I", first), len(some)), some)

    def hello(self, **changes):
        self.send_hello(**changes)
        self.send_doorbells()
        self.until(lambda: self.welcome)
        return self

    def reconnect(self):
        """As after a mediator's restart: the same window, the same open slots."""
        deadline = time.monotonic() + WAIT_S
        self.welcome = None
        while True:
            try:
                self.connect()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        mask = sum(1 << slot for slot, session in self.sessions.items()
                   if session.state in (READY, LOST))
        return self.hello(open_slots=mask)

    def ask_open(self, slot=0):
        self.sessions[slot] = Session(self, slot)
        self.send(message(OPEN, struct.pack("<I", slot)))
        return self.sessions[slot]

    def open(self, slot=0):
        session = self.ask_open(slot)
        self.until(lambda: session.state != OPENING)
        if session.state == SESSION_REFUSED:
            raise Refused(session.reason)
        return session

    def close_session(self, slot=0):
        self.send(message(CLOSE, struct.pack("<I", slot)))
        self.until(lambda: self.sessions[slot].state == CLOSED)

    def reset(self):
        before = self.resets_done
        self.send(message(RESET))
        self.until(lambda: self.resets_done > before)

    def receive(self):
        """One message, whole; raises when the mediator hung up."""
        while len(self._rest) < MESSAGE_BYTES:
            data = self.socket.recv(4096)
            if not data:
                raise PeerError("the mediator hung up")
            self._rest += data
        data, self._rest = self._rest[:MESSAGE_BYTES], self._rest[MESSAGE_BYTES:]
        magic, _, kind, _, _ = struct.unpack_from("<IHHII", data)
        assert magic == LINK_MAGIC
        self._take(kind, data[16:])
        return kind

    def _take(self, kind, payload):
        if kind == WELCOME:
            self.welcome = self.config = struct.unpack_from("<IIII", payload)
        elif kind == CONFIG:
            self.config = struct.unpack_from("<IIII", payload)
        elif kind == REFUSED:
            raise Refused(payload[4:].split(b"\0")[0].decode())
        elif kind == STATE:
            slot, state, _, _ = struct.unpack_from("<IIII", payload)
            session = self.sessions.get(slot)
            if session:
                session.state = state
                session.reason = payload[16:].split(b"\0")[0].decode()
        elif kind == RESET_DONE:
            self.resets_done += 1

    def until(self, condition, timeout=WAIT_S):
        deadline = time.monotonic() + timeout
        while not condition():
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            self.receive()

    def pending(self):
        """Takes the messages that are there, without waiting."""
        while self._rest or select.select([self.socket], [], [], 0)[0]:
            self.receive()

    def wait_interrupt(self, timeout=WAIT_S):
        if select.select([self.interrupt], [], [], timeout)[0]:
            os.eventfd_read(self.interrupt)
            return True
        return False

    def hang_up(self):
        """The link only; its owner lives."""
        if self.socket:
            self.socket.close()
            self.socket = None

    def close(self):
        """As when the process dies."""
        self.hang_up()
        if self.life is None:
            return
        for fd in [self.window, self.interrupt, self.lifeline, self.life, *self.doorbells]:
            os.close(fd)
        self.life = None
        self.words.release()
        self.memory.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
