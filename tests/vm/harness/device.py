# SPDX-License-Identifier: GPL-2.0-or-later
"""vgpu-stub under a microscope: for the tests of the device itself.

    Qemu       one of its two builds: the shared object, or built in
    Machine    a QEMU whose processor never runs, driven over qtest and QMP
    Registers  the registers of a device in a running guest, by `regs`

Register numbers are those of include/vgpu/regs.h, which a test checks.
"""

import json
import os
import socket
import subprocess
import time

import pytest

from . import paths
from .guest import window_options
from .process import Process, remove_directory, run_directory

DOORBELL, STATUS, POOL_ID, PRIORITY, VM_ID = 0x00, 0x04, 0x08, 0x0C, 0x10
MAGIC, VERSION, CAPS, WINDOW_LO, WINDOW_HI = 0x14, 0x18, 0x1C, 0x20, 0x24
ERROR, IRQ_MASK, IRQ_STATUS, DOORBELLS, SCRATCH = 0x28, 0x2C, 0x30, 0x34, 0x38
SLOTS, SESSION_OPEN, SESSION_CLOSE = 0x3C, 0x40, 0x44
SESSION_STATE, SLOT_DOORBELL, END = 0x80, 0xC0, 0x100
SLOTS_MAX = 16

ERROR_ACCESS, ERROR_READ_ONLY, ERROR_OFFSET, ERROR_SESSION = 1, 2, 4, 8
STATUS_READY, STATUS_HOST, STATUS_RESETTING = 1, 2, 4
IRQ_COMPLETION, IRQ_CONFIG = 1, 2
ALL = range(DOORBELL, SESSION_CLOSE + 4, 4)  # that each device has

BUILDS = ["preload", "intree"]
WISH = os.environ.get("VGPU_QEMU")
assert WISH in (None, *BUILDS), f"VGPU_QEMU={WISH}: use one of {BUILDS}"

_BAR_AT = [0xE0000000, 0xE0001000, 0xC0000000]
_MSI_AT = 0x100000  # of the machine's memory: there an interrupt's data can be seen


class Qemu:
    """One of the two builds: what to start, and what to load into it."""

    def __init__(self, kind):
        self.kind = kind
        self.preload = None
        self.program = "qemu-system-x86_64"
        if kind == "preload":
            self.preload = paths.device()
            return
        found = subprocess.run([paths.REPOSITORY / "scripts/build-qemu", "--find"], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if found.returncode != 0:
            # Asked for by name, it must be there; else it may be missing.
            refuse = pytest.fail if WISH == "intree" else pytest.skip
            refuse(found.stderr.strip())
        self.program = found.stdout.strip()

    def run(self, *options, timeout=180):
        """QEMU to its own end, with its processor stopped."""
        argv = [self.program, "-M", "q35", "-accel", "tcg", "-S", "-nodefaults", "-display",
                "none", *options]
        if self.preload:
            argv = ["env", f"LD_PRELOAD={self.preload}", *argv]
        return subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=timeout)


class Machine:
    """A QEMU with a stopped processor, driven over qtest and QMP.

    socket_path: the device has a window and finds its mediator there.
    accel: "kvm" for what only the host's kernel can do; no guest runs all the same.
    """

    def __init__(self, qemu, device, socket_path=None, sessions=8, window_mib=4, accel="tcg"):
        self.directory = run_directory("machine")
        options = []
        if socket_path is not None:
            options, properties = window_options(socket_path, sessions, window_mib)
            device += properties
        test, test_end = socket.socketpair()
        monitor, monitor_end = socket.socketpair()
        with test_end, monitor_end:
            self.process = Process("machine", [
                qemu.program, "-M", "q35", "-accel", accel, "-S", "-nodefaults", "-display",
                "none",
                "-chardev", f"socket,id=test,fd={test_end.fileno()}",
                "-object", "qtest,id=qtest,chardev=test,log=/dev/null",
                "-chardev", f"socket,id=monitor,fd={monitor_end.fileno()}",
                "-mon", "chardev=monitor,mode=control", *options,
                "-device", f"{device},id=gpu,addr=0x10"],
                log=self.directory / "log", preload=qemu.preload,
                pass_fds=[test_end.fileno(), monitor_end.fileno()])
        for end in [test, monitor]:
            end.settimeout(60)
        self._test = test.makefile("rw")
        self._monitor = monitor.makefile("rw")
        self._sockets = [test, monitor]
        self._events = []
        assert self._monitor.readline(), self.process.output()
        self.monitor("qmp_capabilities")
        self.place_registers()

    def close(self):
        self.process.kill()
        for end in [self._test, self._monitor, *self._sockets]:
            end.close()
        remove_directory(self.directory)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def _ask(self, *words):
        self._test.write(" ".join(str(word) for word in words) + "\n")
        self._test.flush()
        answer = self._test.readline().split()
        assert answer[:1] == ["OK"], (words, answer, self.process.output())
        return int(answer[1], 0) if len(answer) > 1 else None

    def monitor(self, command, **arguments):
        self._monitor.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._monitor.flush()
        while "event" in (answer := json.loads(self._monitor.readline())):
            self._events.append(answer["event"])
        return answer

    def wait_event(self, name):
        while name not in self._events:
            self._events.append(json.loads(self._monitor.readline())["event"])

    def reset(self):
        """Of the whole machine."""
        self._events.clear()
        assert self.monitor("system_reset") == {"return": {}}
        self.wait_event("RESET")
        self.place_registers()

    # --- the PCI device, by its configuration space ------------------------------

    def configure(self, offset, value):
        self._ask("outl", 0xCF8, 0x80000000 | 0x10 << 11 | offset)
        self._ask("outl", 0xCFC, value)

    def configuration(self, offset):
        self._ask("outl", 0xCF8, 0x80000000 | 0x10 << 11 | offset)
        return self._ask("inl", 0xCFC)

    def place_registers(self):
        """What firmware does: addresses for the BARs, then memory and DMA on."""
        for bar, address in enumerate(_BAR_AT):
            self.configure(0x10 + 4 * bar, address)
        self.configure(0x04, 0x6)

    def bar_bytes(self, bar):
        """Its size, 0 without one, and its flags; by the usual question."""
        self.configure(0x10 + 4 * bar, 0xFFFFFFFF)
        answer = self.configuration(0x10 + 4 * bar)
        self.configure(0x10 + 4 * bar, _BAR_AT[bar])
        return -(answer & ~0xF) & 0xFFFFFFFF, answer & 0xF

    def enable_msix(self):
        """Both vectors write their number + 1 to memory; see interrupts()."""
        at = self.configuration(0x34) & 0xFF
        while self.configuration(at) & 0xFF != 0x11:
            at = self.configuration(at) >> 8 & 0xFF
            assert at, "the device has no MSI-X"
        for vector in range(2):
            entry = _BAR_AT[1] + 16 * vector
            for word, value in enumerate([_MSI_AT + 4 * vector, 0, vector + 1, 0]):
                self._ask("writel", entry + 4 * word, value)
        self.configure(at, 0x80000000)

    def interrupts(self):
        """The vectors that have interrupted since the last call."""
        found = [vector for vector in range(2) if self._ask("readl", _MSI_AT + 4 * vector)]
        for vector in found:
            self._ask("writel", _MSI_AT + 4 * vector, 0)
        return found

    # --- its registers and its window ---------------------------------------------

    def read(self, offset, width=4):
        letter = {1: "b", 2: "w", 4: "l", 8: "q"}[width]
        return self._ask(f"read{letter}", _BAR_AT[0] + offset)

    def write(self, offset, value, width=4):
        letter = {1: "b", 2: "w", 4: "l", 8: "q"}[width]
        self._ask(f"write{letter}", _BAR_AT[0] + offset, value)

    def take_error(self):
        """The error bits since the last call, cleared."""
        error = self.read(ERROR)
        self.write(ERROR, error)
        return error

    def window_read(self, offset):
        return self._ask("readl", _BAR_AT[2] + offset)

    def window_write(self, offset, value):
        self._ask("writel", _BAR_AT[2] + offset, value)

    def session(self, slot):
        return self.read(SESSION_STATE + 4 * slot)

    def wait(self, offset, value, timeout=120):
        """Until the register holds `value`: what comes over a link takes its time."""
        deadline = time.monotonic() + timeout
        while (found := self.read(offset)) != value:
            assert time.monotonic() < deadline, \
                f"0x{offset:03x} holds 0x{found:x}, not 0x{value:x}\n{self.process.output()}"
            time.sleep(0.005)

    def wait_session(self, slot, value):
        self.wait(SESSION_STATE + 4 * slot, value)

    def wait_interrupts(self, *vectors, timeout=120):
        """Until each of these has interrupted; another must not."""
        missing, deadline = set(vectors), time.monotonic() + timeout
        while missing:
            found = set(self.interrupts())
            assert found <= set(vectors), found
            missing -= found
            assert time.monotonic() < deadline, f"no interrupt of {missing}"
            time.sleep(0.005)


class Registers:
    """The registers of one device in a running guest."""

    def __init__(self, guest, address):
        self.guest = guest
        self.address = address
        self.fresh = dict(zip(ALL, self.read_all()))

    def read_all(self):
        places = " ".join(f"{offset} 4" for offset in ALL)
        return [int(line, 0) for line in
                self.guest.check(f"regs read {self.address} {places}").split()]

    def read(self, offset, width=4):
        return int(self.guest.check(f"regs read {self.address} {offset} {width}"), 0)

    def write(self, offset, value, width=4):
        self.guest.check(f"regs write {self.address} {offset} {width} {value}")

    def take_error(self):
        """The error bits since the last call, cleared."""
        error = self.read(ERROR)
        self.write(ERROR, error)
        return error

    def wait(self, offset, value):
        self.guest.check(f"while [ $(regs read {self.address} {offset} 4) != 0x{value:x} ]; "
                         "do usleep 10000; done")

    def peek(self, offset, count):
        return bytes.fromhex(self.guest.check(f"regs peek {self.address} {offset} {count}"))

    def poke(self, offset, data):
        self.guest.check(f"regs poke {self.address} {offset} {data.hex()}")
