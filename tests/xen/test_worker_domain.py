# SPDX-License-Identifier: Apache-2.0
"""The mediator in a worker domain: Dom0 has the registry, vgpu-admin and the relay, a PVH domain
has the mediator, and two guests grant their pages to it, not to Dom0.  The backend is `cpu`: no
GPU is passed through here.
"""

import json

import pytest

from xen_harness.files import STEP_TIMEOUT_S
from xen_harness.host import Service, wait_until

pytestmark = pytest.mark.full

DIRECTORY = "/run/vgpu-test"
CONFIG = f"{DIRECTORY}/mediator.conf"
SETTINGS = {
    "channels": "window", "share": f"{DIRECTORY}/share", "state_dir": f"{DIRECTORY}/state",
    "run_dir": f"{DIRECTORY}/run", "database": f"{DIRECTORY}/vgpu.db",
    "worker": "/usr/bin/vgpu-worker", "log_format": "json", "worker_memory_mib": 0,
    "device_memory_mib": 32, "operation_limit_ms": 120000}
OWN = f"{DIRECTORY}/own"  # of Dom0's mediator, where Dom0 serves a pool too
OWN_CONFIG = f"{OWN}/mediator.conf"
OWN_SETTINGS = {**SETTINGS, **{key: SETTINGS[key].replace(DIRECTORY, OWN) for key in
                               ("share", "state_dir", "run_dir", "database")}}
VMS = {"pv": (7, "A", "high"), "pvh": (9, "B", "low")}
LEVELS = {"low": 0, "medium": 1, "high": 2}
both_kinds = pytest.mark.parametrize("kind", VMS)


def configure(machine, config=CONFIG, settings=None):
    machine.check(f"mkdir -p {config.rpartition('/')[0]}")
    text = "".join(f"{key} = {value}\n" for key, value in (settings or SETTINGS).items())
    machine.put(f"[mediator]\n{text}[admin]\ntoolstack = none\n".encode(), config)


class WorkerDomain:
    """Dom0's side and the worker domain's, with all their programs."""

    def __init__(self, dom0):
        self.dom0 = dom0
        self.domain = None
        self.services = {}

    def admin(self, command, *words):
        words = " ".join(map(str, words))
        return self.dom0.run(f"vgpu-admin {command} --config {CONFIG} {words}", STEP_TIMEOUT_S)

    def status(self):
        code, output = self.admin("status", "--json")
        assert code == 0, output
        return json.loads(output)

    def start(self):
        self.dom0.check(f"rm -rf {DIRECTORY}")
        configure(self.dom0)
        self.serve_pools("gpu1", "gpu1")
        code, output = self.admin("init")
        assert code == 0, output
        self._serve("relay", self.dom0, f"vgpu-relay --config {CONFIG} --domains "
                    f"{DIRECTORY}/domains.conf", "in Dom0")
        self.boot()
        return self

    def serve_pools(self, a, b):
        """What Dom0's relay reads when it starts."""
        self.dom0.put(f"[pools]\nA = {a}\nB = {b}\n".encode(), f"{DIRECTORY}/domains.conf")

    def boot(self):
        """The worker domain and all that runs in it."""
        self.domain = self.dom0.domain("gpu1", kind="pvh", memory_mib=256, image="worker.cpio")
        self.domain.boot()
        configure(self.domain)
        self._serve_all("", self.domain, CONFIG, "")

    def serve_in_dom0(self):
        """Dom0's own mediator, with its copy of the registry."""
        configure(self.dom0, OWN_CONFIG, OWN_SETTINGS)
        self._serve_all("own-", self.dom0, OWN_CONFIG, "--worker")

    def _serve_all(self, prefix, machine, config, side):
        self._serve(f"{prefix}worker-relay", machine, f"vgpu-relay {side} --config {config}",
                    "in worker domain")
        self._serve(f"{prefix}mediator", machine, f"vgpu-mediator --config {config}",
                    '"event":"ready"')
        self._serve(f"{prefix}xen", machine, f"vgpu-xen --config {config}", "serves from domain")

    def _serve(self, name, machine, command, ready):
        self.services[name] = Service(machine, f"{command} 2>&1", ready).start()

    def register(self, guest, vm_id, pool, priority):
        code, output = self.admin("register-vm", guest.name, "--vm-id", vm_id, "--uuid", guest.uuid,
                                  "--pool", pool, "--priority", priority,
                                  "--owner", 100100 + vm_id)
        assert code == 0, output

    def offer(self, guest):
        return guest.store("data/vgpu/backend/domain")

    def wait_offered(self, guest, domain=None):
        domain = self.domain.id if domain is None else domain
        wait_until(lambda: self.offer(guest) == str(domain), self.report)

    def report(self):
        return "\n".join(f"--- {name}\n{service.output[-2000:]}"
                         for name, service in self.services.items())

    def stop(self):
        if self.dom0.alive():
            if self.domain is not None:
                self.domain.destroy()
            for service in self.services.values():
                if service.dom0 is self.dom0 and service.running():
                    service.stop()
            self.dom0.run(f"rm -rf {DIRECTORY}")


@pytest.fixture(scope="module")
def guests(new_guests):
    """Nobody but the worker domain has served them."""
    return new_guests


@pytest.fixture(scope="module")
def worker(dom0, guests):
    made = WorkerDomain(dom0)
    booted = [guests[kind] for kind in VMS]
    try:
        made.start()
        for guest, words in zip(booted, VMS.values()):
            made.register(guest, *words)
        yield made
    finally:
        made.stop()


@pytest.fixture
def served(worker, guests):
    """served(kind): a guest that has been offered the channel."""
    def get(kind):
        worker.wait_offered(guests[kind])
        return guests[kind]
    return get


def said(guest, words):
    return guest.run(f"vgpu-client --json --channel window --timeout 90 {words}", STEP_TIMEOUT_S)[1]


def client(guest, words):
    return json.loads(said(guest, words))


@both_kinds
def test_a_guest_is_answered_by_the_worker_domain_as_the_vm_that_dom0_knows(worker, served, kind):
    guest = served(kind)
    record = client(guest, "3 4")
    assert record.get("answer", {}).get("message") == "3 + 4 = 7", (record, worker.report())
    device = record["device"]
    vm_id, pool, priority = VMS[kind]
    assert (device["vm_id"], device["pool"], device["priority"]) == (vm_id, pool, LEVELS[priority])


def test_pages_are_granted_to_the_worker_domain_and_dom0_runs_no_mediator(worker, served):
    assert worker.offer(served("pv")) == str(worker.domain.id) != "0"
    assert worker.dom0.run("ps | grep -E 'vgpu-(mediator|xen|worker)' | grep -v grep")[1] == ""


def test_dom0_sees_and_changes_what_the_mediator_there_does(worker, served):
    served("pv"), served("pvh")
    assert {vm["vm_id"] for vm in worker.status()["vms"]} == {7, 9}
    vm_id = VMS["pvh"][0]
    code, output = worker.admin("set-priority", vm_id, "medium")
    assert code == 0 and "note:" not in output, (output, worker.report())
    vms = {vm["vm_id"]: vm for vm in worker.status()["vms"]}
    assert vms[vm_id]["priority"] == 1
    assert client(served("pvh"), "5 6")["device"]["priority"] == 1
    assert worker.admin("set-priority", vm_id, VMS["pvh"][2])[0] == 0


def test_a_vm_that_gets_another_number_is_served_as_that(worker, served):
    guest, vm_id = served("pvh"), VMS["pvh"][0]
    for old, new in ((vm_id, 19), (19, vm_id)):
        assert worker.admin("set-vm-id", old, new, "--yes")[0] == 0
        wait_until(lambda n=new: worker.dom0.store_read(
            f"/local/domain/{worker.domain.id}/vgpu/guest/{guest.id}") == str(n), worker.report)
        worker.services["xen"].wait_output(f"domain {guest.id} is vm {new}: the channel is offered")
        assert client(guest, "3 4")["device"]["vm_id"] == new, worker.report()


def test_guests_are_served_while_the_relays_are_killed_and_come_back(worker, served):
    guest, relays = served("pv"), [worker.services[name] for name in ("relay", "worker-relay")]
    for relay in relays:
        relay.kill()
    assert client(guest, "3 4")["answer"]["message"] == "3 + 4 = 7", worker.report()
    code, output = worker.admin("status")
    assert code != 0 and "listens" in output, output
    for relay in relays:
        relay.start()
    relays[0].wait_output("has the registry")
    assert {vm["vm_id"] for vm in worker.status()["vms"]} == {7, 9}


def test_quarantine_from_dom0_reaches_a_guest(worker, served):
    guest = served("pv")
    vm_id = VMS["pv"][0]
    assert worker.admin("quarantine", vm_id, "--reason", "tested", "--yes")[0] == 0
    assert "tested" in said(guest, "1 2")
    assert worker.admin("release", vm_id)[0] == 0
    assert client(guest, "1 2")["answer"]["message"] == "1 + 2 = 3"


def test_the_worker_domain_cannot_write_what_is_dom0s_nor_more_of_a_guest(worker, served):
    guest = served("pv")
    own = f"/local/domain/{worker.domain.id}"
    for path in [f"{own}/vgpu/guest/{guest.id}", f"{own}/vgpu/forged",
                 f"/local/domain/{guest.id}/data/forged", f"/local/domain/{guest.id}/vm"]:
        before = worker.dom0.store_read(path)
        assert worker.domain.run(f"xenstore-write {path} forged")[0] == 1, path
        assert worker.dom0.store_read(path) == before


def test_a_worker_domain_that_is_destroyed_and_made_anew_serves_again(worker, served):
    guest = served("pv")
    old = worker.domain.id
    worker.domain.destroy()
    wait_until(lambda: worker.offer(guest) is None, worker.report)
    worker.boot()
    assert worker.domain.id != old
    worker.wait_offered(guest)
    assert client(guest, "3 4")["answer"]["message"] == "3 + 4 = 7", worker.report()


def test_one_pool_can_be_dom0s_and_a_vm_goes_there_and_back(worker, served):
    pv, pvh = served("pv"), served("pvh")
    relay = worker.services["relay"]
    relay.stop()
    worker.serve_pools("gpu1", "Domain-0")
    relay.start()
    worker.serve_in_dom0()
    worker.wait_offered(pvh, 0)
    assert worker.offer(pv) == str(worker.domain.id)
    for guest, kind in ((pv, "pv"), (pvh, "pvh")):
        record = client(guest, "3 4")
        assert record.get("answer", {}).get("message") == "3 + 4 = 7", (record, worker.report())
        assert record["device"]["pool"] == VMS[kind][1]
    for pool, place in (("B", 0), ("A", worker.domain.id)):
        assert worker.admin("set-pool", VMS["pv"][0], pool)[0] == 0
        worker.wait_offered(pv, place)
        record = client(pv, "5 6")
        assert record.get("answer", {}).get("message") == "5 + 6 = 11", (record, worker.report())
        assert record["device"]["pool"] == pool
