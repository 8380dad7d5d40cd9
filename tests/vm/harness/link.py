# SPDX-License-Identifier: GPL-2.0-or-later
"""The mediator's end of a device's link, played by a test (include/vgpu/link.h).

    server = LinkServer(path)          # listens where the device connects
    link = server.welcomed()           # HELLO, DOORBELLS, WELCOME
    link.expect(OPEN, slot=2)
    link.state(2, READY)
    link.raw(b"garbage")               # or anything else that a mediator must not do

Nothing happens by itself: a message is read when the test reads it, so a test
decides what comes before what, and a mediator that is slow is one that waits.
"""

import mmap
import os
import pathlib
import re
import select
import socket
import struct
import time

MAGIC, VERSION, MESSAGE_BYTES = 0x4B4E4C56, 1, 256
HELLO, DOORBELLS, OPEN, CLOSE, RESET = 1, 2, 3, 4, 5
WELCOME, REFUSED, STATE, CONFIG, RESET_DONE = 16, 17, 18, 19, 20
HELLO_RESETTING = 1
CLOSED, OPENING, READY, LOST, FAULTED, RESETTING, SESSION_REFUSED = range(7)

WAIT_S = 90
_FDS_MAX = 32


class Message:
    """One message: `type`, its descriptors, and the words of its kind by name."""

    def __init__(self, data, fds):
        magic, version, self.type, self.fd_count, reserved = struct.unpack_from("<IHHII", data)
        assert (magic, version, reserved) == (MAGIC, VERSION, 0)
        assert self.fd_count == len(fds)
        self.fds = fds
        self.data = data
        body = data[16:]
        if self.type == HELLO:
            (self.owner, self.vm_id, self.window_bytes, self.slot_count, self.open_slots,
             self.flags, self.min_version) = struct.unpack_from("<IIQIIII", body)
        elif self.type == DOORBELLS:
            self.first_slot, = struct.unpack_from("<I", body)
        elif self.type in (OPEN, CLOSE):
            self.slot, = struct.unpack_from("<I", body)


def message(kind, payload=b"", magic=MAGIC, version=VERSION, fd_count=0):
    head = struct.pack("<IHHII", magic, version, kind, fd_count, 0)
    return (head + payload).ljust(MESSAGE_BYTES, b"\0")


class Link:
    """One connection.  Descriptors that came are closed with it."""

    def __init__(self, connection):
        self.connection = connection
        self.connection.settimeout(WAIT_S)
        self.hello = None
        self.window = None
        self.interrupt = None
        self.lifeline = None
        self.doorbells = []
        self._fds = []

    # --- what the device says ---------------------------------------------------

    def receive(self):
        """The next message, or None when the device hung up."""
        data, fds = b"", []
        while len(data) < MESSAGE_BYTES:
            try:
                part, more, _, _ = socket.recv_fds(self.connection, MESSAGE_BYTES - len(data),
                                                   _FDS_MAX)
            except ConnectionResetError:
                return None
            self._fds += more
            fds += more
            if not part:
                return None
            data += part
        return Message(data, fds)

    def expect(self, kind, **words):
        """The next message, which must be this one."""
        got = self.receive()
        assert got is not None, f"message {kind} was expected; the device hung up"
        assert (got.type, {name: getattr(got, name, None) for name in words}) == (kind, words)
        return got

    def expect_end(self):
        assert self.receive() is None

    def silent(self, seconds=0.3):
        """Whether nothing comes for a while."""
        return not select.select([self.connection], [], [], seconds)[0]

    def take_hello(self):
        """HELLO and all DOORBELLS."""
        self.hello = self.expect(HELLO)
        window, self.interrupt, self.lifeline = self.hello.fds
        self.window = mmap.mmap(window, self.hello.window_bytes)
        while len(self.doorbells) < self.hello.slot_count:
            self.doorbells += self.expect(DOORBELLS, first_slot=len(self.doorbells)).fds
        return self

    def rung(self, slot, timeout=WAIT_S):
        """Takes the slot's doorbell; how often it was rung, 0 if not within `timeout`."""
        return take_event(self.doorbells[slot], timeout)

    # --- what the mediator says --------------------------------------------------

    def raw(self, data, fds=()):
        socket.send_fds(self.connection, [data], list(fds))

    def send(self, kind, payload=b""):
        self.raw(message(kind, payload))

    def welcome(self, pool="A", priority=1, vm_id=None, sessions_max=8, kind=WELCOME):
        vm_id = self.hello.vm_id if vm_id is None else vm_id
        self.send(kind, struct.pack("<IIII", vm_id, ord(pool), priority, sessions_max))

    def config(self, pool, priority, **more):
        self.welcome(pool, priority, kind=CONFIG, **more)

    def refuse(self, code, text):
        self.send(REFUSED, struct.pack("<I", code) + text.encode())

    def state(self, slot, state, code=0, text=""):
        self.send(STATE, struct.pack("<IIII", slot, state, code, 0) + text.encode())

    def reset_done(self):
        self.send(RESET_DONE)

    def unheard(self):
        """Signals that nobody has taken yet."""
        info = pathlib.Path(f"/proc/self/fdinfo/{self.interrupt}").read_text()
        return int(re.search(r"eventfd-count:\s*(\w+)", info)[1], 16)

    def wait_heard(self, timeout=120):
        deadline = time.monotonic() + timeout
        while self.unheard() > 0:
            assert time.monotonic() < deadline, "nobody hears completions"
            time.sleep(0.005)

    def signal(self):
        """As a worker does it after a completion."""
        os.eventfd_write(self.interrupt, 1)

    def close(self):
        if self.window is not None:
            self.window.close()
            self.window = None
        for fd in self._fds:
            os.close(fd)
        self._fds = []
        self.connection.close()


def take_event(fd, timeout):
    if not select.select([fd], [], [], timeout)[0]:
        return 0
    return os.eventfd_read(fd)


class LinkServer:
    """Listens at `path`; close() and a new one are a mediator's restart."""

    def __init__(self, path):
        self.path = str(path)
        if os.path.exists(self.path):
            os.unlink(self.path)
        self._links = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.settimeout(WAIT_S)
        self._listener.bind(self.path)
        self._listener.listen()

    def accept(self):
        connection, _ = self._listener.accept()
        self._links.append(Link(connection))
        return self._links[-1]

    def welcomed(self, **words):
        """A link up to its WELCOME; the device may not have read that yet."""
        link = self.accept().take_hello()
        link.welcome(**words)
        return link

    def close(self):
        self._listener.close()
        if os.path.exists(self.path):
            os.unlink(self.path)
        for link in self._links:
            link.close()
        self._links = []

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()
