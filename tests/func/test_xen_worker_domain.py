# SPDX-License-Identifier: Apache-2.0
"""A mediator in a worker domain, seen from Dom0: vgpu-relay on both sides and vgpu-xen, each
in a domain of its own as far as XenStore goes.  No pages are granted here: tests/xen has that.
"""

import contextlib
import json
import os
import signal
import subprocess

import pytest

import control_support
from admin_support import Host
from support import BUILD, WAIT_S, wait_until
from xenstore_domains import SharedStore, may

RELAY = BUILD / "src/relay/vgpu-relay"
XEN = BUILD / "src/xen/vgpu-xen"
WORKER, OTHER_WORKER = 2, 3
UUIDS = {vm_id: f"5f7c0c2e-9d2a-4c39-8a52-{vm_id:012x}" for vm_id in range(1, 10)}
WORKER_UUID = "11111111-2222-4333-8444-555555555555"
NAME = "00112233445566aa"


class Program(contextlib.AbstractContextManager):
    """One of ours, with its log."""

    def __init__(self, program, log, *arguments):
        self.argv = [program, f"--log={log}", "--log-format=json", *arguments]
        self.log = log
        self.stderr = log.with_suffix(".stderr")
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
                                            stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr)
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
        self.worker.start(f"in worker domain {number}")
        if mediator:
            self.mediator.start()
        if xen:
            self.worker_xen = self.stack.enter_context(
                Program(XEN, self.directory / f"xen{number}.log", config, bus))
            self.worker_xen.start(f"serves from domain {number}")
        return self

    def start_all(self):
        self.relay.start("in Dom0")
        return self.start_worker().wait_registry()

    def wait_registry(self, count=1):
        self.relay.wait_message("has the registry", count)
        return self

    def wait_served(self, guest, worker=WORKER):
        path = f"/local/domain/{guest}/data/vgpu/backend/domain"
        wait_until(lambda: self.store.read(path) == (None if worker is None else str(worker)),
                   lambda: f"domain {guest} served by {worker}, not {self.store.read(path)}:\n"
                   f"{self.relay.text()}\n{self.worker_xen and self.worker_xen.text()}")

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


@pytest.fixture
def world(place, mediator):
    """world() is a World; nothing runs there yet."""
    with contextlib.ExitStack() as stack:
        yield lambda **options: World(place, mediator, stack, **options)


# --- the file that says which domain serves which pool ----------------------------------


@pytest.mark.parametrize("text, error", [
    ("", "names no pool: expected [pools] and POOL = DOMAIN below"),
    ("[pools]\n", "names no pool"),
    ("A = gpu1\n", "line 1: expected the section [pools] and no other"),
    ("[pools]\nA = gpu1\n[other]\nB = gpu1\n", "line 4: expected the section [pools]"),
    ("[pools]\nAB = gpu1\n", "line 2: 'AB' is no pool: expected one letter, A to Z"),
    ("[pools]\nA = gpu1\nA = gpu2\n", "line 3: pool A stands twice"),
    ("[pools]\nA = ../x\n", "line 2: A = '../x': expected the name or the UUID of a domain"),
    ("[pools]\nA =\n", "line 2: A = '': expected the name or the UUID of a domain"),
    ("[pools]\nA = " + "x" * 64 + "\n", "at most 63 letters"),
    ("[pools]\nnonsense\n", "line 2: expected [pools] or POOL = DOMAIN"),
    ("[pools]\n" + "".join(f"{chr(65 + i)} = g{i}\n" for i in range(9)),
     "line 10: I = g8 is one domain too many: expected at most 8"),
])
def test_a_wrong_file_of_domains_is_refused_with_its_line(world, text, error):
    w = world(domains=text)
    w.relay.process = subprocess.Popen(w.relay.argv, stdin=subprocess.DEVNULL)
    assert w.relay.process.wait(WAIT_S) == 1
    w.relay.process = None
    said, = w.relay.messages()
    assert str(w.domains) in said and error in said


# --- who may what -------------------------------------------------------------------------


def test_a_guest_is_served_by_the_domain_of_its_pool(world):
    w = world()
    w.register(7, pool="B")
    w.start_all()
    w.guest(5, 7)
    w.wait_served(5)
    assert w.served_as(5) == "7"
    assert w.worker_xen.messages("domain 5 is vm 7: the channel is offered")


def test_the_worker_domain_may_write_what_it_says_to_its_guests_and_no_more(world):
    w = world()
    w.register(7)
    w.start_all()
    w.guest(5, 7)
    w.guest(6, 8)  # not registered
    w.wait_served(5)
    backend, frontend = (w.store.node(f"/local/domain/5/data/vgpu/{side}")
                         for side in ("backend", "frontend"))
    assert may(backend, WORKER, "w") and may(backend, 5, "r") and not may(backend, 5, "w")
    assert may(frontend, WORKER, "rb") and may(frontend, 5, "w")
    assert not may(backend, 6, "r") and not may(frontend, 6, "r")
    told = w.store.node(f"/local/domain/{WORKER}/vgpu/guest/5")
    assert may(told, WORKER, "r") and not may(told, WORKER, "w") and not may(told, 5, "r")
    assert w.store.node("/local/domain/6/data/vgpu") is None


def test_who_a_guest_is_comes_from_dom0_alone(world):
    """Not from a node that others can write, not from what the guest says."""
    w = world()
    w.register(7)
    w.register(8)
    w.start_all()
    w.start_domain(5, "guest7", UUIDS[7])
    w.start_domain(6, "liar", UUIDS[9])
    w.store.write("/local/domain/6/data/vgpu/vm-id", 8, domain=6)
    w.start_domain(9, "forged", UUIDS[8])
    w.store.set_permissions("/local/domain/9/vm", "n0", "w9")
    w.wait_served(5)
    w.relay.wait_message("others than Dom0 may write /local/domain/9/vm")
    assert w.store.names(f"/local/domain/{WORKER}/vgpu/guest") == ["5"]


def test_a_session_is_answered_by_the_worker_domain(world):
    w = world()
    w.register(7)
    w.start_all()
    w.guest(5, 7)
    w.wait_served(5)
    w.ask_session(5)
    wait_until(lambda: w.told(5) == "refused", w.worker_xen.text)
    assert "/dev/xen/" in w.told(5, "error")  # which are not here
    assert w.store.permissions(f"/local/domain/5/data/vgpu/backend/{NAME}")[0] == f"n{WORKER}"


def test_the_worker_domain_clears_away_what_a_session_left(world):
    w = world()
    w.register(7)
    w.start_all()
    w.guest(5, 7)
    w.wait_served(5)
    w.ask_session(5)
    wait_until(lambda: w.told(5) == "refused", w.worker_xen.text)
    w.store.write(f"/local/domain/5/data/vgpu/frontend/{NAME}/state", "closing", domain=5)
    for side in ("frontend", "backend"):
        wait_until(lambda s=side: NAME not in w.store.names(f"/local/domain/5/data/vgpu/{s}"),
                   w.worker_xen.text)


def test_a_guest_that_ends_is_forgotten(world):
    w = world()
    w.register(7)
    w.start_all()
    w.guest(5, 7)
    w.wait_served(5)
    w.end_domain(5)
    wait_until(lambda: w.served_as(5) is None, w.relay.text)
    w.worker_xen.wait_message("domain 5 (vm 7) is gone")


def test_a_vm_that_is_removed_is_served_no_more(world):
    w = world()
    w.register(7)
    w.start_all()
    w.guest(5, 7)
    w.wait_served(5)
    w.ask_session(5)
    w.dom0.good("remove-vm", "vm7", "--yes")
    wait_until(lambda: w.served_as(5) is None and w.told(5) == "closed", w.relay.text)
    w.wait_served(5, None)


def test_when_the_worker_domain_is_destroyed_its_guests_are_told(world):
    w = world()
    w.register(7)
    w.start_all()
    w.guest(5, 7)
    w.wait_served(5)
    w.ask_session(5)
    wait_until(lambda: w.told(5) == "refused", w.worker_xen.text)
    for one in (w.worker, w.worker_xen):
        one.kill()
    w.mediator.stop()
    w.end_domain(WORKER)
    wait_until(lambda: w.told(5) == "closed", w.relay.text)
    assert w.told(5, "error") == "no worker domain serves this VM now"
    w.wait_served(5, None)


def test_a_worker_domain_that_comes_back_serves_again(world):
    w = world()
    w.register(7)
    w.start_all()
    w.guest(5, 7)
    w.wait_served(5)
    for one in (w.worker, w.worker_xen):
        one.kill()
    w.mediator.stop()
    w.end_domain(WORKER)
    w.relay.wait_message(f"worker domain gpu1 (domain {WORKER}) is gone")
    w.start_worker(OTHER_WORKER).wait_registry(2)
    w.wait_served(5, OTHER_WORKER)
    assert w.served_as(5, OTHER_WORKER) == "7"


# --- control ---------------------------------------------------------------------------------


def test_the_registry_reaches_the_mediator_in_the_worker_domain(world):
    w = world()
    w.register(7)
    w.start_all()
    shown = w.dom0.json("status")
    assert [vm["vm_id"] for vm in shown["vms"]] == [7]
    assert shown["mediator"]["pid"] == w.mediator.process.pid


def test_a_change_counts_at_once_and_vgpu_admin_says_so(world):
    w = world()
    w.start_all()
    w.register(7)
    done = w.dom0.run("set-priority", "vm7", "high")
    assert (done.returncode, done.stderr) == (0, "")
    with control_support.control(w.mediator) as there:
        assert there.vm(7)["priority"] == 2
    w.dom0.good("set-limit", "vm7", "--request-rate", 100)
    assert w.dom0.json("status")["vms"][0]["limits"]["request_rate"] == 100


def test_only_what_the_domain_serves_is_sent(world):
    w = world(domains="[pools]\nB = gpu1\n")
    w.register(7, pool="A")
    w.register(8, pool="B")
    w.start_all()
    shown = w.dom0.json("status")
    assert [vm["vm_id"] for vm in shown["vms"]] == [8]
    assert [pool["id"] for pool in shown["pools"]] == ["B"]
    w.guest(5, 7)
    w.guest(6, 8)
    w.wait_served(6)
    assert w.served_as(5) is None


def test_a_change_while_the_worker_domain_is_down_counts_when_it_is_there(world):
    w = world()
    w.relay.start("in Dom0")
    w.register(7)
    done = w.dom0.run("set-priority", "vm7", "high")
    assert done.returncode == 0
    assert done.stderr == ("vgpu-admin: note: vgpu-relay does not run in worker domain gpu1: this "
                           "counts when it starts\n")
    done = w.dom0.run("status")
    assert done.returncode != 0 and "worker domain gpu1 is not there" in done.stderr
    w.start_worker().wait_registry()
    wait_until(lambda: w.dom0.json("status")["vms"], w.relay.text)
    assert w.dom0.json("status")["vms"][0]["priority"] == 2


def test_a_change_while_the_mediator_is_down_counts_when_it_starts(world):
    w = world()
    w.relay.start("in Dom0")
    w.start_worker(mediator=False).wait_registry()
    w.register(7)
    done = w.dom0.run("set-priority", "vm7", "high")
    assert (done.returncode, done.stderr) == (
        0, "vgpu-admin: note: the mediator does not run in worker domain gpu1: this counts when it "
        "starts\n")
    w.mediator.start()
    assert w.dom0.json("status")["vms"][0]["priority"] == 2


def test_what_the_mediator_refuses_comes_back_in_its_words(world):
    w = world()
    w.start_all()
    with control_support.Control(w.dom0.directory / "state/run/control.sock") as control:
        with pytest.raises(control_support.Failed) as failed:
            control.call("status", vm_id=99)
        assert failed.value.code == "no-such-vm"
        with pytest.raises(control_support.Failed) as failed:
            control.call("nonsense")
        assert failed.value.code == "unknown-command"
        assert control.call("hello")["relay"] is True


def test_lines_that_are_no_commands_are_refused(world):
    w = world()
    w.relay.start("in Dom0")
    for line, code in [(b"nonsense", "bad-json"), (b"[]", "bad-json"), (b'{"version":2}', "version"),
                       (b'{"version":1,"id":0}', "bad-request"),
                       (b'{"version":1,"id":1}', "bad-request"),
                       (b'{"version":1,"id":1,"command":"x","arguments":[]}', "bad-request")]:
        with control_support.Control(w.dom0.directory / "state/run/control.sock") as control:
            control.send(line + b"\n")
            assert control.receive()["error"]["code"] == code
    with control_support.Control(w.dom0.directory / "state/run/control.sock") as control:
        control.send(b"x" * 16384)
        assert control.receive()["error"]["code"] == "too-long"
        assert control.receive() is None


def test_nothing_of_a_message_stays_in_xenstore(world):
    w = world()
    w.register(7)
    w.start_all()
    w.dom0.json("status")
    path = f"/local/domain/{WORKER}"
    assert w.store.names(f"{path}/vgpu/request") == []
    wait_until(lambda: w.store.names(f"{path}/data/vgpu-worker/answer") == [], w.worker.text)
    left = [name for name in os.listdir(w.dom0.directory / "state/run") if "relay-" in name]
    assert left == []


def test_long_answers_come_in_parts_and_whole(world):
    w = world()
    w.start_all()
    for vm_id in range(1, 10):
        w.register(vm_id)
    shown = w.dom0.json("status")
    assert [vm["vm_id"] for vm in shown["vms"]] == list(range(1, 10))
    assert len(json.dumps(shown)) > 8000


def test_with_two_worker_domains_each_has_a_socket_and_a_change_reaches_both(world):
    w = world(domains="[pools]\nA = gpu1\nB = gpu2\n")
    w.relay.start("in Dom0")
    w.start_worker().wait_registry()
    done = w.dom0.run("status")
    assert done.returncode != 0 and "2 worker domains are served here" in done.stderr
    w.register(7)
    own = w.dom0.directory / "state/run/gpu1/control.sock"
    with control_support.Control(own) as control:
        assert control.vm(7)["pool"] == "A"


def test_a_worker_domain_that_starts_over_and_over_is_sent_the_registry_at_a_pace(world):
    w = world()
    w.start_all()
    path = f"/local/domain/{WORKER}/data/vgpu-worker/version"
    before = len(w.relay.messages("has the registry"))
    for _ in range(500):
        w.store.write(path, "1", domain=WORKER)
    w.wait_registry(before + 1)
    assert len(w.relay.messages("has the registry")) < before + 100
    w.store.write(path, "9", domain=WORKER)
    w.relay.wait_message("speaks version '9' of vgpu-relay, expected 1")


def test_a_relay_that_was_killed_goes_on_where_it_was(world):
    w = world()
    w.register(7)
    w.start_all()
    w.guest(5, 7)
    w.wait_served(5)
    w.relay.kill()
    w.register(8)
    w.guest(6, 8)
    w.relay.start("in Dom0")
    w.wait_served(6)
    w.wait_served(5)
    wait_until(lambda: [vm["vm_id"] for vm in w.dom0.json("status")["vms"]] == [7, 8], w.relay.text)
