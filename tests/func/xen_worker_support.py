# SPDX-License-Identifier: Apache-2.0
"""What tests of worker domains share: XenStore, Dom0 with registry and relay, and domains that
serve pools, with the real programs.  No pages are granted here: tests/xen has that.
"""

import contextlib
import json
import signal
import subprocess
import threading

from admin_support import Host
from support import BUILD, WAIT_S, wait_until
from xenstore_domains import SharedStore

RELAY = BUILD / "src/relay/vgpu-relay"
XEN = BUILD / "src/xen/vgpu-xen"
WORKER, OTHER_WORKER = 2, 3
UUIDS = {vm_id: f"5f7c0c2e-9d2a-4c39-8a52-{vm_id:012x}" for vm_id in range(1, 10)}
WORKER_UUID = "11111111-2222-4333-8444-555555555555"
SECOND_UUID = "11111111-2222-4333-8444-666666666666"
NAME = "00112233445566aa"


class Program(contextlib.AbstractContextManager):
    """One of ours, with its log."""

    def __init__(self, program, log, *arguments):
        self.argv = [program, f"--log={log}", "--log-format=json", *arguments]
        self.log = log
        self.stderr = log.with_suffix(".stderr")
        self.options = {}  # for its start
        self.process = None

    def __exit__(self, *_):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        text = self.stderr.read_text(errors="replace") if self.stderr.exists() else ""
        assert "Sanitizer" not in text and "runtime error" not in text, text

    def start(self, part):
        """Waits until it has said `part`."""
        with open(self.stderr, "ab") as stderr:
            self.process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *self.argv],
                                            stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr,
                                            **self.options)
        self.wait_message(part)
        return self

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(WAIT_S) == 0, self.text()
        self.process = None

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process = None

    def text(self):
        return "\n".join(path.read_text(errors="replace") for path in (self.log, self.stderr)
                         if path.exists())[-4000:]

    def messages(self, part=""):
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        said = []
        for line in lines:
            with contextlib.suppress(ValueError):  # half a line
                said.append(json.loads(line)["message"])
        return [one for one in said if part in one]

    def wait_message(self, part, count=1):
        wait_until(lambda: len(self.messages(part)) >= count or self.process.poll() is not None,
                   lambda: f"'{part}':\n{self.text()}")
        assert self.process.poll() is None, self.text()


class World:
    """XenStore, Dom0's registry and relay; a worker domain's relay and mediator."""

    def __init__(self, directory, mediator, stack, domains="[pools]\nA = gpu1\nB = gpu1\n"):
        self.directory = directory
        self.stack = stack
        self.store = stack.enter_context(SharedStore(directory / "xenstored"))
        (directory / "dom0").mkdir()
        self.dom0 = Host(directory / "dom0")
        self.dom0.good("init")
        self.domains = directory / "domains.conf"
        self.domains.write_text(domains)
        self.relay = stack.enter_context(Program(
            RELAY, directory / "dom0.log", f"--config={self.dom0.config}",
            f"--domains={self.domains}", f"--xenbus={self.store.path}"))
        self.mediator = mediator({}, start=False)
        self.mediator.settings["database"] = self.replica = self.mediator.directory / "copy.db"
        self.mediator.write_config()
        self.worker = self.worker_xen = None
        self._make_mediator = mediator
        self.on_start = lambda program: None  # of a relay

    # --- the toolstack ----------------------------------------------------------------

    def start_domain(self, number, name, uuid):
        path = f"/local/domain/{number}"
        self.store.write(f"/vm/{uuid}", "")
        for key, value in {"domid": number, "name": name, "vm": f"/vm/{uuid}"}.items():
            self.store.write(f"{path}/{key}", value)
            self.store.set_permissions(f"{path}/{key}", "n0", f"r{number}")
        self.store.set_permissions(path, "n0", f"r{number}")
        self.store.write(f"{path}/data", "")
        self.store.set_permissions(f"{path}/data", f"n{number}")
        self.store.tell("@introduceDomain")
        return number

    def end_domain(self, number):
        """Nodes that it owns elsewhere go too."""
        for guest in self.store.names("/local/domain"):
            place = f"/local/domain/{guest}/data/vgpu/backend"
            node = self.store.node(place)
            if node is not None and node.permissions[0] == f"n{number}":
                self.store.remove(place)
        self.store.remove(f"/local/domain/{number}")
        self.store.tell("@releaseDomain")

    def register(self, vm_id, pool="A"):
        done = self.dom0.run("register-vm", f"vm{vm_id}", "--vm-id", vm_id, "--uuid",
                             UUIDS[vm_id], "--pool", pool)
        assert done.returncode == 0, done.stderr

    def guest(self, number, vm_id):
        return self.start_domain(number, f"guest{vm_id}", UUIDS[vm_id])

    # --- the worker domain --------------------------------------------------------------

    def start_worker(self, number=WORKER, mediator=True, xen=True):
        self.start_domain(number, "gpu1", WORKER_UUID)
        bus = f"--xenbus={self.store.socket_of(number)}"
        config = f"--config={self.mediator.config}"
        self.worker = self.stack.enter_context(
            Program(RELAY, self.directory / f"worker{number}.log", config, bus))
        self.on_start(self.worker)
        self.worker.start(f"in worker domain {number}")
        if mediator:
            self.mediator.start()
        if xen:
            self.worker_xen = self.stack.enter_context(
                Program(XEN, self.directory / f"xen{number}.log", config, bus))
            self.worker_xen.start(f"serves from domain {number}")
        return self

    def add_place(self, number, name):
        """One more domain that serves pools; with 0 it is Dom0 itself."""
        return Place(self, number, name, self._make_mediator)

    def start_all(self):
        self.on_start(self.relay)
        self.relay.start("in Dom0")
        return self.start_worker().wait_registry()

    def start_served(self):
        """start_all(), and domain 5, which is VM 7, is served."""
        self.register(7)
        self.start_all()
        self.guest(5, 7)
        self.wait_served(5)
        return self

    def wait_registry(self, count=1):
        self.relay.wait_message("has the registry", count)
        return self

    def wait_served(self, guest, worker=WORKER):
        path = f"/local/domain/{guest}/data/vgpu/backend/domain"
        wait_until(lambda: self.store.read(path) == (None if worker is None else str(worker)),
                   lambda: f"domain {guest} served by {worker}, not {self.store.read(path)}:\n"
                   f"{self.relay.text()}\n{self.worker_xen and self.worker_xen.text()}")

    def rights_of_backend(self, guest):
        """Empty while it is made anew."""
        node = self.store.node(f"/local/domain/{guest}/data/vgpu/backend")
        return list(node.permissions) if node else []

    def served_as(self, guest, worker=WORKER):
        return self.store.read(f"/local/domain/{worker}/vgpu/guest/{guest}")

    def ask_session(self, guest, name=NAME):
        """What a program writes, of pages that nobody granted."""
        for key, value in {"version": 1, "directory": 0, "slot-bytes": 1 << 20,
                           "event-channel": 5, "state": "initialising"}.items():
            self.store.write(f"/local/domain/{guest}/data/vgpu/frontend/{name}/{key}", value,
                             domain=guest)

    def told(self, guest, key="state", name=NAME):
        return self.store.read(f"/local/domain/{guest}/data/vgpu/backend/{name}/{key}")


class Place:
    """A second domain with programs of its own: relay, mediator, vgpu-xen."""

    def __init__(self, world, number, name, make_mediator):
        if number == 0:
            world.store.write("/local/domain/0/name", name)
            world.store.tell("@introduceDomain")
        else:
            world.start_domain(number, name, SECOND_UUID)
        bus = world.store.path if number == 0 else world.store.socket_of(number)
        self.mediator = make_mediator({}, start=False)
        self.mediator.settings["database"] = self.mediator.directory / "copy.db"
        self.mediator.write_config()
        words = [f"--config={self.mediator.config}", f"--xenbus={bus}"]
        side = ["--worker"] if number == 0 else []
        self.relay = world.stack.enter_context(
            Program(RELAY, world.directory / f"place{number}.log", *words, *side))
        self.relay.start(f"in worker domain {number}")
        self.mediator.start()
        self.xen = world.stack.enter_context(
            Program(XEN, world.directory / f"placexen{number}.log", *words))
        self.xen.start(f"serves from domain {number}")


class FakeWorker:
    """A worker domain that answers what it likes: answer(kind) is the text, or the nodes of
    the answer, or None."""

    def __init__(self, world, answer, number=WORKER, name="gpu1", uuid=WORKER_UUID):
        world.start_domain(number, name, uuid)
        self.store, self.path = world.store, f"/local/domain/{number}"
        self.number, self.answer = number, answer
        self.seen = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        world.stack.callback(self.end)
        self._thread.start()

    def say_ready(self, version="1"):
        self.put("version", version)
        return self

    def put(self, key, value):
        self.store.write(f"{self.path}/data/vgpu-worker/{key}", value, domain=self.number)

    def _run(self):
        while not self._ended.wait(0.02):
            for name in self.store.names(f"{self.path}/vgpu/request"):
                below = f"{self.path}/vgpu/request/{name}"
                if name not in self.seen and self.store.read(f"{below}/chunks") is not None:
                    self.seen.add(name)
                    self._reply(name, self.answer(self.store.read(f"{below}/kind")))

    def _reply(self, name, answer):
        if isinstance(answer, str):
            parts = [answer[at:at + 1000] for at in range(0, len(answer), 1000)]
            answer = {**{str(at): part for at, part in enumerate(parts)}, "chunks": len(parts)}
        for key, value in (answer or {}).items():
            self.put(f"answer/{name}/{key}", value)

    def end(self):
        self._ended.set()
        self._thread.join()
