# SPDX-License-Identifier: Apache-2.0
"""A mediator in a worker domain, seen from Dom0: vgpu-relay on both sides and vgpu-xen, each
in a domain of its own as far as XenStore goes.  No pages are granted here: tests/xen has that.
"""

import contextlib
import json
import os
import sqlite3
import subprocess
import threading

import pytest

import control_support
from support import WAIT_S, wait_until
from xen_worker_support import (NAME, OTHER_WORKER, SECOND_UUID, UUIDS, WORKER, WORKER_UUID,
                                 FakeWorker, World)
from xenstore import READ
from xenstore_domains import may


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
    w = world().start_served()
    w.ask_session(5)
    wait_until(lambda: w.told(5) == "refused", w.worker_xen.text)
    assert "/dev/xen/" in w.told(5, "error")  # which are not here
    assert w.store.permissions(f"/local/domain/5/data/vgpu/backend/{NAME}")[0] == f"n{WORKER}"


def test_the_worker_domain_clears_away_what_a_session_left(world):
    w = world().start_served()
    w.ask_session(5)
    wait_until(lambda: w.told(5) == "refused", w.worker_xen.text)
    w.store.write(f"/local/domain/5/data/vgpu/frontend/{NAME}/state", "closing", domain=5)
    for side in ("frontend", "backend"):
        wait_until(lambda s=side: NAME not in w.store.names(f"/local/domain/5/data/vgpu/{s}"),
                   w.worker_xen.text)


def test_a_guest_that_ends_is_forgotten(world):
    w = world().start_served()
    w.end_domain(5)
    wait_until(lambda: w.served_as(5) is None, w.relay.text)
    w.worker_xen.wait_message("domain 5 (vm 7) is gone")


def test_a_vm_that_is_removed_is_served_no_more(world):
    w = world().start_served()
    w.ask_session(5)
    w.dom0.good("remove-vm", "vm7", "--yes")
    wait_until(lambda: w.served_as(5) is None and w.told(5) == "closed", w.relay.text)
    w.wait_served(5, None)


def test_when_the_worker_domain_is_destroyed_its_guests_are_told(world):
    w = world().start_served()
    w.ask_session(5)
    wait_until(lambda: w.told(5) == "refused", w.worker_xen.text)
    for one in (w.worker, w.worker_xen):
        one.kill()
    w.mediator.stop()
    w.end_domain(WORKER)
    wait_until(lambda: w.told(5) == "closed", w.relay.text)
    assert w.told(5, "error") == "no worker domain serves this VM now"
    w.wait_served(5, None)


def test_nothing_is_waited_for_that_a_worker_domain_took_along(world):
    w = world()
    w.relay.start("in Dom0")
    silent = FakeWorker(w, lambda kind: None).say_ready()
    wait_until(lambda: silent.seen, "the registry being sent to it")
    w.end_domain(WORKER)
    w.relay.wait_message(f"worker domain gpu1 (domain {WORKER}) went away before it answered")
    w.start_worker(OTHER_WORKER).wait_registry()
    assert not w.relay.messages("did not answer within")


def test_a_worker_domain_that_comes_back_serves_again(world):
    w = world().start_served()
    for one in (w.worker, w.worker_xen):
        one.kill()
    w.mediator.stop()
    w.end_domain(WORKER)
    w.relay.wait_message(f"worker domain gpu1 (domain {WORKER}) is gone")
    w.start_worker(OTHER_WORKER).wait_registry(2)
    w.wait_served(5, OTHER_WORKER)
    assert w.served_as(5, OTHER_WORKER) == "7"


def test_a_guest_is_offered_nothing_before_the_mediator_serves_its_vm(world):
    w = world()
    w.register(7)
    w.relay.start("in Dom0")
    w.start_worker(mediator=False).wait_registry()
    w.guest(5, 7)
    wait_until(lambda: w.served_as(5) == "7", w.relay.text)
    before = w.store.asked[READ, str(WORKER)]
    wait_until(lambda: w.store.asked[READ, str(WORKER)] > before + 4, w.worker_xen.text)
    w.wait_served(5, None)
    w.mediator.start()
    w.wait_served(5)


def test_a_registry_that_cannot_be_read_for_a_while_changes_nothing(world):
    w = world().start_served()
    database, away = w.dom0.database, w.dom0.database.with_suffix(".away")
    database.rename(away)
    w.guest(6, 8)
    w.relay.wait_message(str(database))
    assert w.served_as(5) == "7"
    away.rename(database)
    w.register(8)
    w.wait_served(6)
    assert not w.relay.messages("no more") and not w.worker_xen.messages("is gone")


def test_a_vm_that_gets_another_number_is_served_as_that(world):
    w = world().start_served()
    w.dom0.good("set-vm-id", "vm7", 70, "--yes")
    wait_until(lambda: w.served_as(5) == "70", w.relay.text)
    w.worker_xen.wait_message("domain 5 is vm 70: the channel is offered")
    w.wait_served(5)
    assert w.dom0.json("status")["vms"][0]["vm_id"] == 70


def test_the_worker_domain_has_no_rights_in_an_area_that_was_taken_from_it(world):
    w = world().start_served()
    w.dom0.good("remove-vm", "vm7", "--yes")
    w.relay.wait_message(f"domain 5 is served by worker domain {WORKER} no more")
    for side in ("backend", "frontend"):
        node = w.store.node(f"/local/domain/5/data/vgpu/{side}")
        assert not may(node, WORKER, "rb") and not may(node, WORKER, "wb"), side
    assert may(w.store.node("/local/domain/5/data/vgpu/frontend"), 5, "w")


# --- several places -----------------------------------------------------------------------


def test_a_vm_that_goes_to_another_worker_domains_pool_is_served_there(world):
    w = world(domains="[pools]\nA = gpu1\nB = gpu2\n")
    w.register(7)
    w.start_all()
    second = w.add_place(OTHER_WORKER, "gpu2")
    w.wait_registry(2)
    w.guest(5, 7)
    w.wait_served(5, WORKER)
    w.dom0.good("set-pool", "vm7", "B")
    w.wait_served(5, OTHER_WORKER)
    second.xen.wait_message("domain 5 is vm 7: the channel is offered")
    w.worker_xen.wait_message("domain 5 (vm 7) is gone")
    node = w.store.node("/local/domain/5/data/vgpu/frontend")
    assert may(node, OTHER_WORKER, "wb") and not may(node, WORKER, "wb")


def test_a_worker_domain_that_cannot_take_the_registry_keeps_no_other_from_it(world):
    w = world(domains="[pools]\nC = gpu2\nA = gpu1\n")  # there is no pool C
    w.register(7)
    w.start_all()
    second = FakeWorker(w, lambda kind: "", OTHER_WORKER, "gpu2", SECOND_UUID).say_ready()
    w.relay.wait_message("worker domain gpu2 does not have the registry as it is now: domain gpu2 "
                         "serves pools C, and the registry has none of them")
    done = w.dom0.run("set-priority", "vm7", "high")
    assert done.returncode == 1 and "create them (vgpu-admin create-pool)" in done.stderr
    with control_support.control(w.mediator) as there:
        assert there.vm(7)["priority"] == 2
    assert not second.seen


def test_a_domain_that_serves_pools_no_more_is_told_so_by_the_next_relay(world):
    w = world().start_served()
    w.relay.stop()
    w.domains.write_text("[pools]\nA = gpu2\nB = gpu2\n")
    w.relay.start("in Dom0")
    w.worker_xen.wait_message("domain 5 (vm 7) is gone")
    w.wait_served(5, None)
    assert "vgpu" not in w.store.names(f"/local/domain/{WORKER}")


def test_one_pool_in_dom0_and_one_in_a_worker_domain(world):
    w = world(domains="[pools]\nA = gpu1\nB = Domain-0\n")
    w.register(7, pool="A")
    w.register(8, pool="B")
    w.start_all()
    dom0 = w.add_place(0, "Domain-0")
    w.wait_registry(2)
    w.guest(5, 7)
    w.guest(6, 8)
    w.wait_served(5, WORKER)
    w.wait_served(6, 0)
    assert w.store.permissions("/local/domain/6/data/vgpu/backend") == ["n0", "r6"]
    assert not dom0.xen.messages("domain 5 is vm")
    for vm_id, one in ((7, w.mediator), (8, dom0.mediator)):
        with control_support.control(one) as there:
            assert [vm["vm_id"] for vm in there.call("status")["vms"]] == [vm_id]


def test_a_vm_can_go_between_dom0_and_a_worker_domain(world):
    w = world(domains="[pools]\nA = gpu1\nB = Domain-0\n")
    w.register(7, pool="A")
    w.start_all()
    w.add_place(0, "Domain-0")
    w.wait_registry(2)
    w.guest(5, 7)
    for pool, domain in (("B", 0), ("A", WORKER), ("B", 0)):
        w.wait_served(5, WORKER if pool == "B" else 0)
        w.dom0.good("set-pool", "vm7", pool)
        w.wait_served(5, domain)
        wait_until(lambda d=domain: w.rights_of_backend(5)[:1] == [f"n{d}"], w.relay.text)


def test_a_question_about_a_vm_goes_to_the_domain_that_serves_it(world):
    w = world(domains="[pools]\nA = gpu1\nB = gpu2\n")
    w.register(7, pool="A")
    w.register(8, pool="B")
    w.start_all()
    w.add_place(OTHER_WORKER, "gpu2")
    w.wait_registry(2)
    with control_support.Control(w.dom0.directory / "state/run/control.sock") as control:
        for vm_id, pool in ((7, "A"), (8, "B")):
            assert control.vm(vm_id)["pool"] == pool
            assert control.call("release", vm=f"vm{vm_id}")["vm_id"] == vm_id
        assert control.call("stats", pool="B")["pools"] is not None
        for arguments in ({}, {"vm_id": 99}):
            with pytest.raises(control_support.Failed) as failed:
                control.call("status", **arguments)
            assert failed.value.code == "bad-request"


def test_a_worker_domain_that_does_not_answer_holds_no_other_one_up(world):
    w = world(domains="[pools]\nA = gpu1\nB = gpu2\n")
    w.register(8, pool="B")
    w.relay.start("in Dom0")
    silent = FakeWorker(w, lambda kind: None).say_ready()
    wait_until(lambda: silent.seen, "the registry being sent to it")
    w.add_place(OTHER_WORKER, "gpu2")
    w.relay.wait_message("worker domain gpu2 has the registry")
    with control_support.Control(w.dom0.directory / "state/run/gpu2/control.sock") as control:
        assert control.call("reload")["count"] == 0
        assert control.vm(8)["pool"] == "B"
    assert not w.relay.messages("gpu1 does not have the registry")


def test_a_change_reaches_who_answers_though_two_worker_domains_do_not(world):
    w = world(domains="[pools]\nA = gpu1\nC = gpu3\nB = gpu2\n")
    w.dom0.good("create-pool", "C")
    w.relay.start("in Dom0")
    FakeWorker(w, lambda kind: None).say_ready()
    FakeWorker(w, lambda kind: None, 4, "gpu3", UUIDS[9]).say_ready()
    there = w.add_place(OTHER_WORKER, "gpu2")
    w.relay.wait_message("worker domain gpu2 has the registry")
    done = w.dom0.run("register-vm", "vm8", "--vm-id", 8, "--uuid", UUIDS[8], "--pool", "B")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "vgpu-admin: note: " + "; ".join(
        f"vgpu-relay does not answer in worker domain {name}: this counts when it starts"
        for name in ("gpu1", "gpu3")) + "\n"
    with control_support.control(there.mediator) as control:
        assert control.vm(8)["pool"] == "B"


def test_a_change_that_came_too_late_is_sent_once_more(world):
    w = world()
    w.relay.start("in Dom0")
    kinds, answers = [], threading.Event()

    def answer(kind):
        kinds.append(kind)
        if not answers.is_set():
            return None
        return "" if kind == "registry" else '{"result":{}}'

    FakeWorker(w, answer).say_ready()
    wait_until(lambda: kinds, w.relay.text)
    done = w.dom0.run("reload")
    assert (done.returncode, "does not answer in worker domain gpu1" in done.stdout) == (0, True)
    answers.set()
    w.wait_registry()


# --- a registered VM, or one of two with its name, is no worker domain ---------------------


def test_a_vm_that_is_called_as_the_worker_domain_is_none(world):
    w = world()
    w.register(7)
    w.relay.start("in Dom0")
    w.start_domain(4, "gpu1", UUIDS[7])
    w.start_worker().wait_registry()
    assert w.store.names("/local/domain/4") == ["domid", "name", "vm", "data"]


def test_of_two_domains_with_the_worker_domains_name_none_is_it(world):
    w = world()
    w.start_domain(4, "gpu1", UUIDS[4])
    w.start_domain(WORKER, "gpu1", WORKER_UUID)
    w.relay.start("in Dom0")
    w.relay.wait_message("2 domains are called gpu1, so none of them is the worker domain")
    assert "vgpu" not in w.store.names(f"/local/domain/{WORKER}")
    w.end_domain(4)
    w.relay.wait_message(f"worker domain gpu1 is domain {WORKER}")


def test_a_worker_domain_can_be_named_by_its_uuid(world):
    w = world(domains=f"[pools]\nA = {WORKER_UUID.upper()}\n")
    w.start_domain(4, "gpu1", UUIDS[4])
    w.start_all()
    assert w.store.names("/local/domain/4") == ["domid", "name", "vm", "data"]


# --- hostile guests -----------------------------------------------------------------------


def test_a_guest_with_more_names_than_can_be_listed_is_taken_away_all_the_same(world):
    w = world().start_served()
    for number in range(1000):
        w.store.write(f"/local/domain/5/data/vgpu/frontend/{number:016x}", "", domain=5)
    w.dom0.good("remove-vm", "vm7", "--yes")
    w.relay.wait_message(f"domain 5 is served by worker domain {WORKER} no more")
    assert w.store.permissions("/local/domain/5/data/vgpu/backend") == ["n0", "r5"]


def test_a_guest_that_replaces_its_places_gets_them_anew(world):
    w = world().start_served()
    w.store.remove("/local/domain/5/data/vgpu")
    w.store.write("/local/domain/5/data/vgpu/backend/domain", WORKER, domain=5)
    wait_until(lambda: w.rights_of_backend(5)[:1] == [f"n{WORKER}"], w.relay.text)
    w.wait_served(5)


def test_what_a_guest_puts_into_its_place_before_that_has_its_rights_does_not_stay(world):
    w = world()
    w.register(7)
    w.start_all()
    place = "/local/domain/5/data/vgpu/backend"
    tries = []

    def be_quick(path):
        if path == place:
            tries.append(path)
            if len(tries) <= 2:
                w.store.write(f"{place}/{NAME}/state", "connected", domain=5)

    w.store.on_directory = be_quick
    w.guest(5, 7)
    w.wait_served(5)
    assert len(tries) == 3 and w.store.names(place) == ["version", "domain"]
    w.relay.wait_message("domain 5 (vm 7): cannot make its places in XenStore: File exists", 2)


def test_a_domain_that_is_no_vm_gets_nothing_by_writing_names_of_sessions(world):
    w = world()
    w.register(7)
    w.start_all()
    w.guest(4, 9)
    w.ask_session(4)
    w.guest(5, 7)
    w.wait_served(5)
    w.relay.wait_message("domain 5 is vm 7")
    assert w.served_as(4) is None and w.told(4, "error") in (None,
                                                             "no worker domain serves this VM now")
    assert not w.relay.messages("domain 4")


# --- hostile worker domains ----------------------------------------------------------------


@pytest.mark.parametrize("answer", [
    "", "nonsense", "[]", "{}", '{"result":[]}', '{"result":7}', '{"result":{}}',
    '{"result":{"vms":7,"devices":{},"pools":"x","mediator":[]}}',
    '{"result":{"vms":[7,[],{"vm_id":"x","limits":7}],"devices":[7],"pools":[{}],"mediator":{}}}',
    '{"code":7,"message":[]}', "[" * 5000,
    {"chunks": "999999"}, {"chunks": "-1"}, {"chunks": "x" * 1000}, {"0": "{}", "chunks": "2"},
], ids=lambda answer: str(answer)[:24])
def test_answers_of_a_worker_domain_that_make_no_sense_are_errors_or_nothing(world, answer):
    w = world()
    w.relay.start("in Dom0")
    FakeWorker(w, lambda kind: "" if kind == "registry" else answer).say_ready()
    w.relay.wait_message("worker domain gpu1 is domain")
    for command in (["status"], ["status", "--json"], ["stats"], ["queue"], ["reload"]):
        done = w.dom0.run(*command)
        assert done.returncode in (0, 1), (command, done)
    assert w.relay.process.poll() is None


def test_what_a_worker_domain_says_steers_no_terminal(world):
    w = world()
    w.relay.start("in Dom0")
    words = "\x1b]0;owned\x07\x7f\u009b2Jend"
    FakeWorker(w, lambda kind: "" if kind == "registry" else json.dumps(
        {"code": "internal", "message": words})).say_ready()
    w.relay.wait_message("worker domain gpu1 is domain")
    done = w.dom0.run("status")
    assert done.returncode == 1 and "end" in done.stderr
    assert all(c == "\n" or c.isprintable() for c in done.stderr), repr(done.stderr)


@pytest.mark.parametrize("key", ["code", "message"])
@pytest.mark.parametrize("shift", range(2))
def test_what_a_worker_domain_says_is_cut_between_two_letters(world, key, shift):
    w = world()
    w.relay.start("in Dom0")
    words = "x" * shift + "\u00e4" * 300
    FakeWorker(w, lambda kind: "" if kind == "registry" else json.dumps(
        {"code": "internal", "message": "no", key: words})).say_ready()
    w.relay.wait_message("worker domain gpu1 is domain")
    done = w.dom0.run("status")
    said = json.loads(w.dom0.run("status", "--json").stderr)["error"]["message"]
    assert done.returncode == 1 and said in done.stderr
    assert words[:200] in said if key == "message" else said == "no"


def test_what_a_worker_domain_says_of_the_registry_is_one_line_of_letters(world):
    w = world()
    w.relay.start("in Dom0")
    FakeWorker(w, lambda kind: "\x1b]0;owned\x07\nforged\x7f\u009b2Jend" * 40).say_ready()
    w.relay.wait_message("worker domain gpu1 does not have the registry")
    done = w.dom0.run("reload")
    assert done.returncode == 1 and r"worker domain gpu1: \x1b]0;owned\x07\x0aforged" in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr[:-1].isprintable(), repr(done.stderr)
    assert all(said.isprintable() for said in w.relay.messages())


def test_numbers_of_two_worker_domains_are_added_up_to_the_greatest_that_there_is(world):
    w = world(domains="[pools]\nA = gpu1\nB = gpu2\n")
    w.relay.start("in Dom0")
    for number, name, uuid in ((WORKER, "gpu1", WORKER_UUID), (OTHER_WORKER, "gpu2", SECOND_UUID)):
        FakeWorker(w, lambda kind: "" if kind == "registry" else json.dumps(
            {"result": {"count": 2**63 - 1}}), number, name, uuid).say_ready()
    w.wait_registry(2)
    with control_support.Control(w.dom0.directory / "state/run/control.sock") as control:
        assert control.call("reload")["count"] == 2**63 - 1


def test_a_worker_domain_that_never_stops_writing_holds_nothing_off(world):
    w = world()
    w.register(7)
    w.start_all()
    path = f"/local/domain/{WORKER}/data/vgpu-worker/version"
    ended = threading.Event()

    def write():
        while not ended.is_set():
            w.store.write(path, "1", domain=WORKER)

    chatter = threading.Thread(target=write)
    chatter.start()
    try:
        w.guest(5, 7)
        w.wait_served(5)
        w.register(8)
        w.guest(6, 8)
        w.wait_served(6)
        assert len(w.dom0.json("status")["vms"]) == 2
    finally:
        ended.set()
        chatter.join()


def children_of(program):
    pid = program.process.pid
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as children:
        return len(children.read().split())


def test_a_worker_domain_that_only_says_that_it_starts_takes_one_process(world):
    w = world()
    w.relay.start("in Dom0")
    answers = threading.Event()
    fake = FakeWorker(w, lambda kind: (answers.wait(WAIT_S), '{"result":{}}' if kind == "command"
                                       else "")[1]).say_ready()
    try:
        wait_until(lambda: fake.seen, w.relay.text)
        for _ in range(40):
            fake.say_ready()
            assert children_of(w.relay) == 1
            answers.wait(0.1)
    finally:
        answers.set()
    w.wait_registry(2)  # what it said meanwhile is looked at afterwards


def test_who_asks_a_worker_domain_that_does_not_answer_keeps_nobody_from_others(world):
    w = world(domains="[pools]\nA = gpu1\nB = gpu2\n")
    w.relay.start("in Dom0")
    silent = FakeWorker(w, lambda kind: None).say_ready()
    wait_until(lambda: silent.seen, w.relay.text)
    run = w.dom0.directory / "state/run"
    question = b'{"version":1,"id":1,"command":"status"}\n'
    with contextlib.ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(control_support.Control(run / "gpu1/control.sock")).send(question)
        with control_support.Control(run / "gpu1/control.sock") as control:
            assert control.receive()["error"]["code"] == "busy"
        for path in ("control.sock", "gpu2/control.sock"):
            with control_support.Control(run / path) as control:
                assert control.call("hello")["relay"] is True


# --- quarantines ----------------------------------------------------------------------------


def quarantine_there(w, vm_id, reason="10 faults in 60 s"):
    """As the mediator writes it that began it."""
    with contextlib.closing(sqlite3.connect(w.replica)) as database:
        database.execute("UPDATE vms SET state = 'quarantined', reason = ? WHERE vm_id = ?",
                         (reason, vm_id))
        database.commit()


def state_there(w, vm_id):
    return {vm["vm_id"]: vm["state"] for vm in w.dom0.json("status")["vms"]}[vm_id]


def test_a_quarantine_that_the_mediator_began_survives_changes_in_dom0(world):
    w = world()
    w.register(7)
    w.register(8)
    w.start_all()
    quarantine_there(w, 7)
    for priority in ("high", "low"):
        w.dom0.good("set-priority", "vm8", priority)
        assert state_there(w, 7) == "quarantined"
    w.dom0.good("release", "vm7")
    assert state_there(w, 7) == "active"
    w.dom0.good("set-priority", "vm8", "high")
    assert state_there(w, 7) == "active"


def test_a_quarantine_from_dom0_ends_there_also_while_the_worker_domain_is_away(world):
    w = world()
    w.register(7)
    w.start_all()
    w.dom0.good("quarantine", "vm7", "--reason", "tested", "--yes")
    assert state_there(w, 7) == "quarantined"
    w.worker.stop()
    done = w.dom0.run("release", "vm7")
    assert done.returncode == 0 and "this counts when it starts" in done.stderr
    w.worker.start("in worker domain")
    w.wait_registry(2)
    assert state_there(w, 7) == "active"


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
    w = world().start_served()
    w.relay.kill()
    w.register(8)
    w.guest(6, 8)
    w.relay.start("in Dom0")
    w.wait_served(6)
    w.wait_served(5)
    wait_until(lambda: [vm["vm_id"] for vm in w.dom0.json("status")["vms"]] == [7, 8], w.relay.text)
