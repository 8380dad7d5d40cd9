# SPDX-License-Identifier: Apache-2.0
"""What the tests of vgpu-xen share: a host with a XenStore of its own, domains, and
sessions of their programs in Python.

Xen's devices are there where `build_shim` was asked for: see xen_shim.c.
"""

import contextlib
import json
import mmap
import os
import pathlib
import select
import signal
import socket
import struct
import subprocess

import window_peer
from control_support import admin
from support import BUILD, WAIT_S, wait_until
from window_peer import GUEST, PAGE
from xenstore import XenStore

PROGRAM = BUILD / "src/xen/vgpu-xen"
SHIM_SOURCE = pathlib.Path(__file__).with_name("xen_shim.c")
UUIDS = {vm_id: f"5f7c0c2e-9d2a-4c39-8a52-{vm_id:012x}" for vm_id in range(1, 10)}
SLOT_BYTES = (1 << 20) - PAGE
ALIVE = 0xFFC
ARGUMENT, BUSY, NO_HOST = "72", "67", "66"  # VGPU_PROBLEM_* of vgpu.h


def build_shim(directory):
    path = pathlib.Path(directory) / "xen_shim.so"
    subprocess.run(["cc", "-std=gnu11", "-D_GNU_SOURCE", "-D_FILE_OFFSET_BITS=64", "-O1", "-Wall",
                    "-Wextra", "-Werror", "-shared", "-fPIC", "-o", str(path), str(SHIM_SOURCE),
                    "-ldl"], check=True)
    return path


class Domain:
    """A guest's area of XenStore, used as its programs do."""

    def __init__(self, host, number):
        self.host, self.store, self.number = host, host.store, number
        self.path = f"/local/domain/{number}"
        self.names = 0

    def below(self, side, name="", key=""):
        return "/".join(filter(None, [self.path, "data/vgpu", side, name, key]))

    def new_name(self):
        self.names += 1
        return f"{self.number:08x}{self.names:08x}"

    def put(self, name, key, value):
        self.store.write(self.below("frontend", name, key), value, domain=self.number)

    def ask(self, name=None, state="initialising", **changes):
        """Writes a session's nodes, `state` last; returns its name."""
        name = name or self.new_name()
        words = {"version": "1", "directory": "0", "slot-bytes": SLOT_BYTES, "event-channel": 5}
        words.update({key.replace("_", "-"): value for key, value in changes.items()})
        for key, value in words.items():
            if value is not None:
                self.put(name, key, value)
        self.put(name, "state", state)
        return name

    def told(self, name, key="state"):
        return self.store.read(self.below("backend", name, key))

    def wait_told(self, name, state):
        wait_until(lambda: self.told(name) == state,
                   lambda: f"'{state}' of {name}, not '{self.told(name)}':\n{self.host.log_text()}")
        return self

    def take_back(self, name):
        self.store.remove(self.below("frontend", name))

    @property
    def offer(self):
        return self.store.read(self.below("backend", "", "domain"))

    def wait_offer(self, offer="0"):
        wait_until(lambda: self.offer == offer, lambda: f"the offer to domain {self.number} being "
                   f"{offer}, not {self.offer}:\n{self.host.log_text()}")
        return self

    def open(self):
        """A session that works; needs the shim."""
        return Session(self)


class Slot(window_peer.Session):
    """The rings, in pages that were granted."""

    def ring_doorbell(self):
        self.peer.notify()


class Session:
    """Pages, a port and the nodes that tell of them."""

    def __init__(self, domain):
        self.domain, self.host = domain, domain.host
        self.slot_bytes = SLOT_BYTES
        self.memory, self.words = self.host.memory, self.host.words
        first, directory = self.host.grant_slot()
        self.slot = Slot(self, 0)
        self.slot.base = first * PAGE
        self.memory[self.slot.base + GUEST + ALIVE] = 1
        self.name = domain.ask(directory=directory)
        self.events = self.host.accept_events()
        domain.wait_told(self.name, "connected")

    def notify(self):
        self.events.sendall(struct.pack("<I", 77))

    def wait_interrupt(self, timeout):
        if select.select([self.events], [], [], timeout)[0]:
            self.events.recv(4096)

    def ping(self):
        self.slot.ping()

    def text(self, command):
        return self.slot.text(command)

    def die(self):
        """As its kernel tells of it."""
        self.memory[self.slot.base + GUEST + ALIVE] = 0
        self.notify()

    def broker_pid(self):
        return broker_pids(self.host.process.pid)[0]


def owner_of(vm_id):
    """To whom a VM's socket belongs, where that can be given away."""
    return 100100 + vm_id


def broker_pids(parent):
    return [int(pid) for pid in
            pathlib.Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


class XenHost(contextlib.AbstractContextManager):
    """A mediator with registered VMs, a XenStore, and vgpu-xen between them."""

    PAGES = 4096

    def __init__(self, mediator, shim=None):
        self.mediator = mediator
        self.directory = mediator.directory
        self.shim = shim
        self.log = self.directory / "xen.log"
        self.stderr = self.directory / "xen.stderr"
        self.process = None
        self._stack = contextlib.ExitStack()
        self.store = self._stack.enter_context(XenStore(self.directory / "xenstored"))
        if shim:
            self._make_devices()

    def __exit__(self, *_):
        if self.process is not None:
            self.kill()
        self._stack.close()
        text = self.stderr.read_text(errors="replace") if self.stderr.exists() else ""
        assert "Sanitizer" not in text and "runtime error" not in text, text

    def _make_devices(self):
        path = self.directory / "pages"
        with open(path, "w+b") as file:
            os.ftruncate(file.fileno(), self.PAGES * PAGE)
            self.memory = mmap.mmap(file.fileno(), self.PAGES * PAGE)
        self.words = memoryview(self.memory).cast("I")
        self._stack.callback(self.memory.close)
        self._stack.callback(self.words.release)
        self._next_page = 1
        self._events = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        self._events.bind(str(self.directory / "events"))
        self._events.listen()
        self._events.settimeout(WAIT_S)

    def take_pages(self, count):
        self._next_page += count
        return self._next_page - count

    def grant_slot(self):
        """(its first page, that of its directory), filled."""
        pages = SLOT_BYTES // PAGE
        first = self.take_pages(pages + 1)
        references = struct.pack(f"<{pages}I", *range(first, first + pages))
        at = (first + pages) * PAGE
        self.memory[at:at + len(references)] = references
        return first, first + pages

    def accept_events(self):
        return self._stack.enter_context(self._events.accept()[0])

    # --- the toolstack ------------------------------------------------------------------

    def register(self, vm_id, uuid=None, pool="A", priority=1, owner=None):
        """`owner`: its number, or False for the mediator's own."""
        words = [] if owner is False or os.geteuid() != 0 else ["--owner", owner or owner_of(vm_id)]
        admin(self.mediator, "register-vm", f"vm{vm_id}", "--vm-id", vm_id, "--uuid",
              uuid or UUIDS[vm_id], "--pool", pool, "--priority", priority, *words)

    def start_domain(self, number, uuid, permissions=None, value=None):
        """As the toolstack makes it, and tells of it last."""
        path = f"/local/domain/{number}"
        guest = f"r{number}"
        self.store.write(f"{path}/vm", value if value is not None else f"/vm/{uuid}")
        self.store.set_permissions(path, "n0", guest)
        self.store.set_permissions(f"{path}/vm", *(permissions or ["n0", guest]))
        self.store.write(f"{path}/data", "")
        self.store.set_permissions(f"{path}/data", f"n{number}")
        self.store.tell("@introduceDomain")
        return Domain(self, number)

    def end_domain(self, domain):
        self.store.remove(domain.path)
        self.store.tell("@releaseDomain")

    # --- vgpu-xen ---------------------------------------------------------------------------

    def start(self, prefix=(), **options):
        """`prefix`: a program that starts it, and its words."""
        environment = dict(os.environ)
        if self.shim:
            environment.update(LD_PRELOAD=str(self.shim),
                               XEN_SHIM_PAGES=str(self.directory / "pages"),
                               XEN_SHIM_EVENTS=str(self.directory / "events"),
                               ASAN_OPTIONS=f"{environment.get('ASAN_OPTIONS', '')}"
                               ":verify_asan_link_order=0")
        before = len(self.messages("serves from domain"))
        with open(self.stderr, "ab") as stderr:
            self.process = subprocess.Popen(
                [*prefix, PROGRAM, f"--config={self.mediator.config}", f"--log={self.log}",
                 "--log-format=json", f"--xenbus={self.store.path}"], stdin=subprocess.DEVNULL,
                stdout=stderr, stderr=stderr, env=environment, **options)
        wait_until(lambda: len(self.messages("serves from domain")) > before or
                   self.process.poll() is not None, "vgpu-xen's start")
        assert self.process.poll() is None, self.log_text()
        return self

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(WAIT_S) == 0, self.log_text()
        self.process = None

    def kill(self):
        """Its brokers die with it."""
        pids = broker_pids(self.process.pid) if self.process.poll() is None else []
        self.process.kill()
        self.process.wait()
        self.process = None
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids),
                   "the brokers' end")

    def log_text(self):
        texts = [path.read_text(errors="replace") for path in (self.log, self.stderr)
                 if path.exists()]
        return "\n".join(texts)[-4000:]

    def messages(self, part):
        if not self.log.exists():
            return []
        lines = self.log.read_text().splitlines(keepends=True)
        said = [json.loads(line)["message"] for line in lines if line.endswith("\n")]
        return [one for one in said if part in one]

    def wait_message(self, part):
        wait_until(lambda: self.messages(part), lambda: f"'{part}' in the log:\n{self.log_text()}")


def registered_host(mediator, vms, shim=None, start=True):
    """A host whose mediator has these VMs, each with its UUID of UUIDS."""
    m = mediator({}, start=False)
    m.settings["database"] = m.directory / "vgpu.db"
    m.write_config()
    admin(m, "init")
    host = XenHost(m, shim)
    for vm_id in vms:
        host.register(vm_id)
    m.start()
    for directory in (m.directory.parent, m.state):  # the sockets' owners come as far as these
        directory.chmod(0o711)
    return host.start() if start else host
