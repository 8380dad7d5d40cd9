# SPDX-License-Identifier: GPL-2.0-or-later
"""vgpu_guest.ko in a real guest: include/vgpu/guest.h, sentence by sentence.

The host's side is played by this file: it speaks the link with the device,
maps the same window, and sees each doorbell.  So a test decides what the
"mediator" answers, and when.  In the guest, `session` (guest/session.c) walks
through system calls and prints what each returned.
"""

import array
import base64
import mmap
import os
import re
import select
import socket
import struct
import threading
import time

import pytest

from harness import Guest, image, module, paths, tool
from harness.process import remove_directory, run_directory

LINK_MAGIC, MESSAGE_BYTES = 0x4B4E4C56, 256
HELLO, DOORBELLS, OPEN, CLOSE, RESET = 1, 2, 3, 4, 5
WELCOME, STATE, RESET_DONE = 16, 18, 20
CLOSED, OPENING, READY, LOST, FAULTED, RESETTING, REFUSED = range(7)
GUEST_PAGE, HOST_PAGE, HEAP = 0x0000, 0x1000, 0x5A000
CQ_TAIL, SQ_HEAD = HOST_PAGE, HOST_PAGE + 0x40
ENOMEM, EDQUOT = 12, 122
POLLIN, POLLERR, POLLHUP = 0x1, 0x8, 0x10

WINDOW_BYTES = 16 << 20
SLOTS = 4
SLOT_BYTES = (WINDOW_BYTES - 4096) // SLOTS // 4096 * 4096
WAIT_S = 90


class Host:
    """What the device finds at its socket: a mediator without workers.

    answer(slot) says what an OPEN gets: (state, errno), or None for nothing yet.
    `said` is what came, as (type, slot).
    """

    def __init__(self, path):
        self.path = path
        self.answer = lambda slot: (READY, 0)
        self.close_answer = lambda slot: (CLOSED, 0)
        self.answer_reset = True
        self.said = []
        self.memory = None
        self._fds = []
        self._changed = threading.Condition()
        self._link = None
        self._listener = None
        self._ending = False
        self.listen()

    def listen(self):
        if os.path.exists(self.path):
            os.unlink(self.path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._ending = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self):
        """The mediator ends; what it was given goes too."""
        self._ending = True
        for end in [self._link, self._listener]:
            if end is not None:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                end.close()
        self._thread.join(WAIT_S)
        self._drop()
        if os.path.exists(self.path):
            os.unlink(self.path)

    def _drop(self):
        with self._changed:
            if self.memory is not None:
                self.memory.close()
            for fd in self._fds:
                os.close(fd)
            self.memory, self._fds, self._link = None, [], None

    def _serve(self):
        while not self._ending:
            try:
                link, _ = self._listener.accept()
            except OSError:
                return
            self._link = link
            try:
                while received := self._receive(link):
                    self._handle(*received)
            except OSError:
                pass
            if not self._ending:
                self._drop()

    @staticmethod
    def _receive(link):
        data, fds = b"", array.array("i")
        while len(data) < MESSAGE_BYTES:
            part, ancillary, _, _ = link.recvmsg(MESSAGE_BYTES - len(data), 1024)
            if not part:
                return None
            for level, kind, body in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(body[:len(body) - len(body) % 4])
            data += part
        return data, list(fds)

    def _send(self, kind, payload=b""):
        head = struct.pack("<IHHII", LINK_MAGIC, 1, kind, 0, 0)
        self._link.sendall((head + payload).ljust(MESSAGE_BYTES, b"\0"))

    def tell(self, slot, state, code=0):
        self._send(STATE, struct.pack("<IIII", slot, state, code, 0))

    def reset_done(self):
        self._send(RESET_DONE)

    def _handle(self, data, fds):
        kind, = struct.unpack_from("<H", data, 6)
        word, = struct.unpack_from("<I", data, 16)
        with self._changed:
            self._fds += fds
            if kind == HELLO:
                window_bytes, slot_count = struct.unpack_from("<QI", data, 24)
                assert (window_bytes, slot_count) == (WINDOW_BYTES, SLOTS)
                self.memory = mmap.mmap(fds[0], WINDOW_BYTES)
            elif kind == DOORBELLS and len(self._fds) == 3 + SLOTS:
                self._send(WELCOME, struct.pack("<IIII", 7, ord("B"), 2, SLOTS))
            elif kind == OPEN and (answer := self.answer(word)):
                self.tell(word, *answer)
            elif kind == CLOSE and (answer := self.close_answer(word)):
                self.tell(word, *answer)
            elif kind == RESET and self.answer_reset:
                self.reset_done()
            self.said.append((kind, word))
            self._changed.notify_all()

    def wait(self, condition, what):
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S), (what, self.said)

    def wait_for(self, kind, slot):
        self.wait(lambda: (kind, slot) in self.said, f"message {kind} of slot {slot}")

    def put(self, slot, offset, value):
        struct.pack_into("<I", self.memory, 4096 + slot * SLOT_BYTES + offset, value)

    def get(self, slot, offset):
        return struct.unpack_from("<I", self.memory, 4096 + slot * SLOT_BYTES + offset)[0]

    def complete(self, slot, cq_tail):
        """As a worker does it: the index, then the interrupt."""
        self.put(slot, CQ_TAIL, cq_tail)
        os.eventfd_write(self._fds[1], 1)

    def interrupt(self):
        os.eventfd_write(self._fds[1], 1)

    def rung(self, slot, timeout=WAIT_S):
        """Waits for the slot's doorbell and takes it."""
        ready, _, _ = select.select([self._fds[3 + slot]], [], [], timeout)
        return bool(ready) and os.eventfd_read(self._fds[3 + slot]) > 0


class Machine:
    """A guest with its host; the module is loaded by the tests.

    The guest's kernel checks its memory as it goes (slub_debug).
    """

    def __init__(self, name, append="slub_debug=FZPU", window=True,
                 port=False):
        self.directory = run_directory("module")
        self.host = Host(self.directory / "link.sock")
        self.guest = Guest(name, self.directory, "B", "high", 7, append=append)
        # Guest says -no-reboot; the last one counts.
        self.guest.options += ["-action", "reboot=reset", "-device", "pci-testdev"]
        if window:
            self.guest.options += [
                "-object", f"memory-backend-memfd,id=window,size={WINDOW_BYTES},share=on,seal=on",
                "-chardev", f"socket,id=link,path={self.directory}/link.sock,reconnect=1"]
            self.guest.device += f",memdev=window,chardev=link,sessions={SLOTS}"
        if port:
            self.guest.options += ["-device", "pcie-root-port,id=root1,chassis=1,slot=1",
                                   "-device", f"{self.guest.device},bus=root1,id=vgpu"]
            self.guest.device = None
            self.guest.preload = paths.device()
        self.guest.start()

    def close(self):
        self.guest.stop()
        self.host.close()
        remove_directory(self.directory)

    def walk(self, *steps, timeout=360):
        """What each step printed, in order."""
        return self.guest.check("session " + " ".join(steps), timeout).splitlines()

    def spawn(self, *steps):
        return self.guest.spawn("exec session " + " ".join(steps))

    def load(self, parameters=""):
        self.guest.check(f"rmmod vgpu_guest 2>/dev/null; dmesg -c >/dev/null; "
                         f"modprobe vgpu_guest {parameters}")

    def check_kernel(self):
        """Nothing that a broken driver does to its kernel; no mapping forgotten."""
        log = self.kernel_log()
        for sign in ["BUG", "WARNING", "Oops", "Call Trace", "ad page", "Poison", "corrupt"]:
            assert sign not in log, log
        assert self.guest.run("grep vgpu_ /proc/vmallocinfo | grep -v ioremap")[1] == ""

    def kernel_log(self):
        return self.guest.check("dmesg")

    def restart(self, begin):
        """Another life of the same machine, with the module loaded again."""
        self.guest._said_hello = False
        begin()
        self.guest.wait_ready()
        self.load()

    def unbind(self):
        return self.guest.spawn(f"echo {self.address()} >/sys/bus/pci/drivers/vgpu_guest/unbind")

    def address(self):
        return self.guest.check("basename $(readlink /sys/class/vgpu/vgpu0/device)").strip()


@pytest.fixture(scope="module")
def shared():
    made = Machine("module")
    made.guest.wait_ready()
    yield made
    made.close()


@pytest.fixture
def machine(shared):
    """The module freshly loaded, a mediator that agrees to everything."""
    shared.host.answer = lambda slot: (READY, 0)
    shared.host.close_answer = lambda slot: (CLOSED, 0)
    shared.host.answer_reset = True
    shared.host.wait(lambda: shared.host.memory is not None, "the device's HELLO")
    shared.load()
    shared.guest.check("rm -rf /tmp/*")
    shared.host.said.clear()
    yield shared
    shared.check_kernel()


def fields(line):
    return dict(word.split("=") for word in line.split()[1:])


# --- opening and closing -------------------------------------------------------------


def test_the_module_binds_the_device_and_says_what_it_found(machine):
    assert re.search(r"vgpu0: VM 7, 4 sessions of 4092 KiB, cached", machine.kernel_log())
    assert machine.guest.check("stat -c '%a %F' /dev/vgpu0") == "660 character special file\n"


def test_the_registers_can_be_read_without_a_session_in_whole_words_only(machine):
    file = f"/sys/bus/pci/devices/{machine.address()}/vgpu_registers"
    words = [int(word, 16) for word in machine.guest.check(
        f"od -An -v -t x4 {file}").split()]
    assert (len(words), words[2:6]) == (64, [ord("B"), 2, 7, 0x55504756])
    assert machine.guest.run(f"dd if={file} bs=3 count=1")[0] != 0
    assert machine.host.said == []


def test_an_open_is_a_session_and_the_close_ends_it(machine):
    opened, info, closed = machine.walk("open", "info", "close")
    assert (opened, closed) == ("open 0", "close 0")
    assert fields(info) == {
        "version": "0x10001", "vm_id": "7", "pool": "B", "priority": "2",
        "slot_bytes": str(SLOT_BYTES), "slot": "0", "slot_count": str(SLOTS),
        "state": str(READY), "code": "0", "cached": "1", "reserved": "0"}
    machine.host.wait_for(CLOSE, 0)
    assert machine.host.said == [(OPEN, 0), (CLOSE, 0)]


def test_two_programs_at_once_have_different_slots(machine):
    first = machine.spawn("open", "info", "wait:/tmp/two")
    first.wait_output("info")
    second = machine.walk("open", "info")
    machine.guest.check("touch /tmp/two")
    first.wait()
    assert fields(first.output.splitlines()[1])["slot"] == "0"
    assert fields(second[1])["slot"] == "1"


def test_a_new_session_finds_its_control_pages_empty(machine):
    for offset in [0, 0x40, 0x80, 0xFFC, CQ_TAIL, SQ_HEAD, HOST_PAGE + 0xFFC]:
        machine.host.put(0, offset, 0xDEADBEEF)
    seen = []

    def look(slot):
        seen.append([machine.host.get(slot, offset) for offset in range(0, 0x2000, 4)])
        return READY, 0
    machine.host.answer = look
    assert machine.walk("open") == ["open 0"]
    assert seen == [[0] * 0x800]


def test_a_killed_program_ends_its_session_on_the_host(machine):
    job = machine.spawn("open", "map", "put:0x5a000,1", "wait:/nowhere")
    job.wait_output("put 0")
    job.kill(9)
    job.wait()
    machine.host.wait_for(CLOSE, 0)
    assert machine.walk("open") == ["open 0"]


def test_a_child_that_has_the_descriptor_keeps_the_session(machine):
    assert machine.walk("open", "fork:/tmp/child") == ["open 0", "fork 0"]
    assert (CLOSE, 0) not in machine.host.said
    assert fields(machine.walk("open", "info")[1])["slot"] == "1"
    machine.guest.check("touch /tmp/child")
    machine.host.wait_for(CLOSE, 0)


def test_a_mapping_keeps_the_session_after_the_close(machine):
    job = machine.spawn("open", "map", "close", "wait:/tmp/mapped", "get:0x5a000", "unmap",
                        "wait:/tmp/unmapped")
    job.wait_output("close 0")
    machine.host.put(0, HEAP, 77)
    assert machine.walk("open") == ["open 0"]
    machine.host.wait_for(CLOSE, 1)
    assert (CLOSE, 0) not in machine.host.said
    machine.guest.check("touch /tmp/mapped")
    job.wait_output("unmap 0")
    machine.host.wait_for(CLOSE, 0)
    machine.guest.check("touch /tmp/unmapped")
    assert "get 77" in job.wait()[1]


def test_when_all_slots_are_taken_an_open_is_busy(machine):
    jobs = [machine.spawn("open", "wait:/tmp/all") for _ in range(SLOTS)]
    for job in jobs:
        job.wait_output("open 0")
    assert machine.walk("open") == ["open EBUSY"]
    machine.guest.check("touch /tmp/all")
    for job in jobs:
        job.wait()
    assert machine.walk("open") == ["open 0"]


def test_an_open_waits_for_a_slot_whose_worker_still_ends(machine):
    machine.host.close_answer = lambda slot: None
    jobs = [machine.spawn("open") for _ in range(SLOTS)]
    for job in jobs:
        job.wait()
    for slot in range(SLOTS):
        machine.host.wait_for(CLOSE, slot)
    waiting = machine.spawn("open", "info")
    with pytest.raises(Exception, match="did not print"):
        waiting.wait_output("open", 0.5)
    machine.host.close_answer = lambda slot: (CLOSED, 0)
    machine.host.tell(2, CLOSED)
    opened, info = waiting.wait()[1].splitlines()
    assert opened == "open 0"
    assert fields(info)["slot"] == "2"
    for slot in [0, 1, 3]:
        machine.host.tell(slot, CLOSED)


@pytest.mark.parametrize("code,name", [(ENOMEM, "ENOMEM"), (EDQUOT, "EDQUOT"),
                                       (0, "EIO"), (5000, "EIO")])
def test_a_refusal_is_the_error_of_the_open_and_leaves_no_session(machine, code, name):
    machine.host.answer = lambda slot: (REFUSED, code)
    assert machine.walk("open") == [f"open {name}"]
    machine.host.answer = lambda slot: (READY, 0)
    opened, info = machine.walk("open", "info")
    assert (opened, fields(info)["slot"]) == ("open 0", "0")


def test_a_host_that_does_not_answer_is_a_timeout_and_the_slot_is_closed(machine):
    machine.load("open_timeout_ms=200")
    machine.host.answer = lambda slot: None
    assert machine.walk("open") == ["open ETIMEDOUT"]
    machine.host.wait_for(CLOSE, 0)
    machine.host.answer = lambda slot: (READY, 0)
    assert machine.walk("open") == ["open 0"]


def test_a_program_killed_while_it_opens_leaves_no_session(machine):
    machine.host.answer = lambda slot: None
    job = machine.spawn("open")
    machine.host.wait_for(OPEN, 0)
    job.kill(9)
    job.wait()
    machine.host.wait_for(CLOSE, 0)
    machine.host.answer = lambda slot: (READY, 0)
    assert machine.walk("open") == ["open 0"]


def test_without_a_mediator_an_open_says_so_at_once_and_with_one_again_it_works(machine):
    machine.host.close()
    deadline = time.monotonic() + WAIT_S
    while machine.walk("open") != ["open EHOSTDOWN"]:
        assert time.monotonic() < deadline
    machine.host.listen()
    machine.host.wait(lambda: machine.host.memory is not None, "the device again")
    while machine.walk("open") == ["open EHOSTDOWN"]:
        assert time.monotonic() < deadline + WAIT_S
    assert machine.walk("open") == ["open 0"]


def test_a_session_outlives_a_mediator_that_is_started_again(machine):
    job = machine.spawn("open", "map", "wait:/tmp/restarted", "poll:0", "ring", "get:0x5a000")
    job.wait_output("map 0")
    machine.host.close()
    machine.host.listen()
    machine.host.wait(lambda: len(machine.host._fds) == 3 + SLOTS, "the device again")
    machine.host.put(0, HEAP, 4242)
    machine.guest.check("touch /tmp/restarted")
    assert job.wait()[1].splitlines()[3:] == ["poll 0x0", "ring 0", "get 4242"]
    assert machine.host.rung(0)


# --- memory -----------------------------------------------------------------------------


def test_guest_and_host_see_the_same_slot_and_only_this_one(machine):
    other = machine.spawn("open", "wait:/tmp/other")
    other.wait_output("open 0")
    machine.host.put(0, HEAP, 0x1111)
    machine.host.put(2, HEAP, 0x3333)
    last = SLOT_BYTES - 4
    job = machine.spawn("open", "map", f"put:{HEAP},0x12345678", f"put:{last},0x2222",
                        "wait:/tmp/seen", f"get:{HEAP}")
    job.wait_output("put 0\nput 0")
    assert machine.host.get(1, HEAP) == 0x12345678
    assert machine.host.get(1, last) == 0x2222
    assert (machine.host.get(0, HEAP), machine.host.get(2, HEAP)) == (0x1111, 0x3333)
    machine.host.put(1, HEAP, 99)
    machine.guest.check("touch /tmp/seen /tmp/other")
    assert job.wait()[1].splitlines()[-1] == "get 99"
    other.wait()


@pytest.mark.parametrize("bytes,offset", [(SLOT_BYTES + 1, 0), (SLOT_BYTES, 4096),
                                          (4096, SLOT_BYTES), (4096, 1 << 40),
                                          (WINDOW_BYTES, 0), (8192, (1 << 63) - 8192)])
def test_no_mapping_reaches_beyond_the_slot(machine, bytes, offset):
    answer = machine.walk("open", f"map:{bytes},{offset}")[1]
    assert answer in ("map EINVAL", "map EOVERFLOW")


def test_a_part_of_the_slot_can_be_mapped(machine):
    machine.host.put(0, SLOT_BYTES - 4096, 31337)
    assert machine.walk("open", f"map:4096,{SLOT_BYTES - 4096}", "get:0") == [
        "open 0", "map 0", "get 31337"]


def test_a_mapping_is_shared_not_executable_and_does_not_grow(machine):
    assert machine.walk("open", "private", "exec", "map", "protect", "remap") == [
        "open 0", "private EINVAL", "exec EPERM", "map 0", "protect EACCES", "remap EFAULT"]


def test_the_mapping_is_neither_inherited_nor_dumped(machine):
    job = machine.spawn("open", "map", "wait:/tmp/flags")
    job.wait_output("map 0")
    flags = machine.guest.check(
        "grep -A 30 /dev/vgpu0 /proc/$(pidof session)/smaps | grep -m1 VmFlags").split()
    machine.guest.check("touch /tmp/flags")
    job.wait()
    assert {"sh", "dc", "de", "dd", "mm"} <= set(flags)
    assert not {"ex", "me"} & set(flags)


def test_every_byte_of_a_slot_can_be_used(machine):
    heap = SLOT_BYTES - HEAP
    assert machine.walk("open", "map", f"fill:{HEAP},{heap},1", f"sum:{HEAP},{heap}")[2:] == [
        "fill 0", f"sum {heap}"]


# --- doorbells and completions ------------------------------------------------------------


@pytest.mark.parametrize("step", ["ring", "write"])
def test_a_doorbell_reaches_the_host_on_its_own_slot(machine, step):
    other = machine.spawn("open", "wait:/tmp/rings")
    other.wait_output("open 0")
    answer = machine.walk("open", step)[1]
    machine.guest.check("touch /tmp/rings")
    assert answer == {"ring": "ring 0", "write": "write 8"}[step]
    assert machine.host.rung(1)
    assert not machine.host.rung(0, 0)


def test_reads_and_writes_of_other_sizes_are_refused(machine):
    assert machine.walk("open", "read:7", "write:7", "write:16")[1:] == [
        "read EINVAL", "write EINVAL", "write EINVAL"]


def test_a_read_waits_for_a_completion_and_then_counts_from_zero(machine):
    job = machine.spawn("open", "read", "nonblock", "read")
    machine.host.wait_for(OPEN, 0)
    job.wait_output("open 0")
    assert "read" not in job.output
    machine.host.complete(0, 1)
    assert job.wait()[1].splitlines()[1:] == ["read 1", "nonblock 0", "read EAGAIN"]


def test_poll_says_in_only_while_a_read_would_not_wait(machine):
    job = machine.spawn("open", "poll:0", "poll:20000", "read", "poll:0")
    job.wait_output("poll 0x0")
    machine.host.complete(0, 1)
    assert job.wait()[1].splitlines()[1:] == [
        "poll 0x0", f"poll {POLLIN:#x}", "read 1", "poll 0x0"]


def test_a_completion_wakes_only_the_session_that_it_is_for(machine):
    idle = machine.spawn("open", "wait:/tmp/idle", "poll:0", "nonblock", "read")
    idle.wait_output("open 0")
    busy = machine.spawn("open", "read")
    busy.wait_output("open 0")
    machine.host.complete(1, 1)
    busy.wait()
    machine.guest.check("touch /tmp/idle")
    assert idle.wait()[1].splitlines()[2:] == ["poll 0x0", "nonblock 0", "read EAGAIN"]


def test_a_session_that_makes_no_sense_to_the_host_hangs_up(machine):
    job = machine.spawn("open", "poll:20000", "read", "close")
    job.wait_output("open 0")
    machine.host.tell(0, FAULTED)
    assert job.wait()[1].splitlines()[1:] == [f"poll {POLLHUP:#x}", "read EPIPE", "close 0"]
    machine.host.wait_for(CLOSE, 0)
    assert machine.walk("open") == ["open 0"]


def test_a_session_that_lost_its_device_state_goes_on(machine):
    job = machine.spawn("open", "wait:/tmp/lost", "poll:0", "info")
    job.wait_output("open 0")
    machine.host.tell(0, LOST)
    machine.guest.check("touch /tmp/lost")
    polled, info = job.wait()[1].splitlines()[2:]
    assert polled == "poll 0x0"
    assert fields(info)["state"] in (str(READY), str(LOST))


# --- who may, and what nobody should do --------------------------------------------------------


def test_other_users_may_not_open_and_members_of_the_group_may(machine):
    machine.guest.check("chgrp vgpu /dev/vgpu0")
    machine.guest.check("printf 'user:x:1000:1000::/tmp:/bin/sh\\nmember:x:1001:990::/tmp:/bin/sh\\n'"
                        " >>/etc/passwd")
    assert "open EACCES" in machine.guest.check("su user -c 'session open'")
    assert "open 0" in machine.guest.check("su member -c 'session open'")


def test_calls_that_no_program_makes_harm_nobody(machine):
    victim = machine.spawn("open", "map", f"fill:{HEAP},65536,3", "wait:/tmp/victim",
                           f"sum:{HEAP},65536")
    victim.wait_output("fill 0")
    jobs = [machine.guest.spawn(f"badcalls {seed} 100000") for seed in (11, 12)]
    for job in jobs:
        status, output = job.wait(360)
        assert (status, output) == (0, "done\n")
    machine.guest.check("touch /tmp/victim")
    assert victim.wait()[1].splitlines()[-1] == f"sum {3 * 65536}"
    machine.host.wait_for(CLOSE, 1)
    machine.host.wait_for(CLOSE, 2)


# --- the driver goes, the machine goes -----------------------------------------------------------


def test_the_module_is_not_unloaded_while_a_session_is_open(machine):
    job = machine.spawn("open", "wait:/tmp/unload")
    job.wait_output("open 0")
    status, output = machine.guest.run("rmmod vgpu_guest")
    assert status != 0 and "temporarily unavailable" in output
    machine.guest.check("touch /tmp/unload")
    job.wait()
    machine.guest.check("rmmod vgpu_guest && modprobe vgpu_guest")


def test_an_unbound_device_takes_its_sessions_with_it(machine):
    job = machine.spawn("open", "map", "put:0x5a000,5", "wait:/tmp/unbound", "get:0x5a000", "ring",
                        "write", "read", "poll:0", "info", "map:4096", "open", "close")
    reader = machine.spawn("open", "read", "poll:0")
    job.wait_output("put 0")
    reader.wait_output("open 0")
    status, output = machine.unbind().wait()
    assert (status, output) == (0, "")
    machine.guest.check("touch /tmp/unbound")
    assert job.wait()[1].splitlines()[4:] == [
        "get SIGBUS", "ring ENODEV", "write ENODEV", "read ENODEV",
        f"poll {POLLERR | POLLHUP:#x}", "info ENODEV", "map ENODEV", "open ENOENT", "close EBADF"]
    assert reader.wait()[1].splitlines()[1:] == ["read ENODEV", f"poll {POLLERR | POLLHUP:#x}"]
    machine.host.wait_for(CLOSE, 0)
    machine.host.wait_for(CLOSE, 1)


@pytest.mark.parametrize("away,back", [
    ("echo {} >/sys/bus/pci/drivers/vgpu_guest/unbind",
     "echo {} >/sys/bus/pci/drivers/vgpu_guest/bind"),
    ("echo 1 >/sys/bus/pci/devices/{}/remove", "echo 1 >/sys/bus/pci/rescan")])
def test_a_device_that_comes_back_gives_sessions_to_new_opens_only(machine, away, back):
    job = machine.spawn("open", "map", "put:0x5a000,5", "wait:/tmp/back", "get:0x5a000", "ring")
    job.wait_output("put 0")
    address = machine.address()
    machine.guest.check(away.format(address))
    machine.guest.check(back.format(address))
    opened, mapped, got, info = machine.walk("open", "map", "get:0x5a000", "info")
    assert (opened, mapped, got) == ("open 0", "map 0", "get 5")
    assert fields(info)["cached"] == "1"
    machine.guest.check("touch /tmp/back")
    assert job.wait()[1].splitlines()[4:] == ["get SIGBUS", "ring ENODEV"]


def test_sessions_that_come_and_go_while_the_device_does_leave_nothing(machine):
    address = machine.address()
    users = [machine.guest.spawn("while [ ! -e /tmp/storm ]; do session open map get:0x5a000 "
                                 "put:0x1000,1 ring nonblock read close; done >/dev/null")
             for _ in range(3)]
    machine.guest.check(
        f"cd /sys/bus/pci/drivers/vgpu_guest; for i in $(seq 40); do usleep 40000; "
        f"echo {address} >unbind; usleep 5000; echo {address} >bind; done; touch /tmp/storm", 120)
    for user in users:
        user.wait()
    assert machine.walk("open") == ["open 0"]


def test_an_open_that_waits_ends_when_the_device_is_unbound(machine):
    machine.host.answer = lambda slot: None
    job = machine.spawn("open")
    machine.host.wait_for(OPEN, 0)
    machine.unbind().wait()
    assert job.wait()[1] == "open ENODEV\n"


def test_pages_that_are_pinned_are_waited_for(machine):
    job = machine.spawn("open", "map", "put:0,0", "pin", "wait:/tmp/pinned", "unpin")
    job.wait_output("pin 4096")
    unbinding = machine.unbind()
    with pytest.raises(Exception, match="no end within"):
        unbinding.wait(1)
    machine.guest.check("touch /tmp/pinned")
    assert job.wait()[1].splitlines()[-1].startswith("unpin")
    assert unbinding.wait() == (0, "")


def test_a_restart_of_the_guest_closes_its_sessions_and_the_next_kernel_opens_new_ones(machine):
    machine.spawn("open", "map", "wait:/nowhere").wait_output("map 0")
    machine.restart(lambda: machine.guest.spawn("reboot -f"))
    machine.host.wait_for(CLOSE, 0)
    assert machine.walk("open") == ["open 0"]


def test_after_a_reset_an_open_waits_until_old_workers_have_ended(machine):
    for _ in range(SLOTS):
        machine.spawn("open", "map", "wait:/nowhere").wait_output("map 0")
    machine.host.answer_reset = False
    machine.restart(lambda: machine.guest.monitor("system_reset"))
    assert RESET in [kind for kind, _ in machine.host.said]
    job = machine.spawn("open")
    with pytest.raises(Exception, match="did not print"):
        job.wait_output("open", 0.5)
    machine.host.reset_done()
    assert job.wait()[1] == "open 0\n"


# --- other devices, other windows ------------------------------------------------------------------


def test_without_page_structures_the_same_works_uncached_and_says_so(machine):
    machine.load("cached=0")
    assert "4 sessions of 4092 KiB, uncached" in machine.kernel_log()
    job = machine.spawn("open", "info", "map", f"fill:{HEAP},65536,3", "ring", "read",
                        "wait:/tmp/plain", f"sum:{HEAP},65536", f"map:{SLOT_BYTES + 1}")
    job.wait_output("ring 0")
    assert machine.host.rung(0)
    assert machine.host.get(0, HEAP) == 0x03030303
    machine.host.complete(0, 1)
    job.wait_output("read 1")
    assert machine.unbind().wait() == (0, "")
    machine.guest.check("touch /tmp/plain")
    output = job.wait()[1].splitlines()
    assert fields(output[1])["cached"] == "0"
    assert output[-2:] == ["sum SIGBUS", "map ENODEV"]


def test_another_makers_device_is_refused_by_its_magic(machine):
    status, _ = machine.guest.run("echo 1b36 0005 >/sys/bus/pci/drivers/vgpu_guest/new_id")
    assert status == 0
    assert re.search(r"this is no vgpu device: its magic is 0x\w{8}, not 0x55504756",
                     machine.kernel_log())
    assert machine.guest.check("ls /sys/class/vgpu") == "vgpu0\n"


def test_a_module_of_another_major_version_refuses_the_device(machine, tmp_path):
    module.copy_sources(tmp_path)
    header = tmp_path / "include/vgpu/regs.h"
    text = header.read_text()
    assert "#define VGPU_VERSION_MAJOR 1" in text
    header.write_text(text.replace("#define VGPU_VERSION_MAJOR 1", "#define VGPU_VERSION_MAJOR 2"))
    tool.run(["make", "-C", tmp_path, f"KERNEL_SOURCE={module.headers(image.kernel())}"])
    tool.run(["strip", "--strip-debug", tmp_path / "vgpu_guest.ko"])
    packed = base64.b64encode((tmp_path / "vgpu_guest.ko").read_bytes()).decode()
    machine.guest.check(f"rmmod vgpu_guest; echo {packed} | base64 -d >/tmp/other.ko; "
                        "insmod /tmp/other.ko")
    assert ("the device speaks version 1.1, this module 2: update the older one"
            in machine.kernel_log())
    assert machine.guest.check("ls /sys/class/vgpu") == ""
    machine.guest.check("rmmod vgpu_guest")


@pytest.fixture(scope="module")
def plugged():
    """A device behind a port of its own: it can be reset and pulled out."""
    made = Machine("module-port", port=True)
    made.guest.wait_ready()
    yield made
    made.close()


def test_a_reset_of_the_device_ends_its_sessions(plugged):
    plugged.load()
    job = plugged.spawn("open", "map", "poll:20000", "read", "close")
    job.wait_output("map 0")
    plugged.guest.check(f"echo 1 >/sys/bus/pci/devices/{plugged.address()}/reset")
    assert job.wait()[1].splitlines()[2:] == [f"poll {POLLHUP:#x}", "read EPIPE", "close 0"]
    assert plugged.walk("open", "map", "put:0,0") == ["open 0", "map 0", "put 0"]
    plugged.check_kernel()


def test_a_device_that_is_pulled_out_takes_its_sessions_with_it(plugged):
    plugged.load()
    job = plugged.spawn("open", "map", "put:0x5a000,1", "poll:20000", "get:0x5a000", "ring",
                        "read", "open")
    job.wait_output("put 0")
    plugged.guest.monitor("device_del", id="vgpu")
    assert job.wait()[1].splitlines()[3:] == [
        f"poll {POLLERR | POLLHUP:#x}", "get SIGBUS", "ring ENODEV", "read ENODEV", "open ENOENT"]
    plugged.check_kernel()


def test_a_device_without_a_window_is_bound_and_cannot_be_opened():
    machine = Machine("module-plain", append="vgpu.module", window=False)
    try:
        machine.guest.wait_ready()
        assert "vgpu0: VM 7, no window: it cannot be opened" in machine.kernel_log()
        assert machine.guest.check("stat -c '%a %G' /dev/vgpu0") == "660 vgpu\n"
        assert machine.walk("open") == ["open ENXIO"]
        machine.check_kernel()
    finally:
        machine.close()
