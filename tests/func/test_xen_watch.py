# SPDX-License-Identifier: Apache-2.0
"""vgpu-xen without Xen: the program itself between a mediator and a XenStore of the test's.

Which domain is which VM, what of a guest's nodes is believed, what an earlier vgpu-xen
left behind, what a guest can do to others.  Most sessions here are refused: there is no
/dev/xen.  Those that work have it from xen_shim.c; on a real Xen it is tests/xen.
"""

import contextlib
import os
import pathlib
import signal
import threading
import time

import pytest
from control_support import admin
from support import is_sanitized, wait_until
from window_peer import OK
from xen_support import (ARGUMENT, BUSY, NO_HOST, PAGE, UUIDS, broker_pids, build_shim,
                         owner_of, registered_host)
from xenstore import READ

SESSIONS_MAX = 32
STARTS_AT_ONCE = 16
QUESTIONS_AT_ONCE, QUESTIONS_A_SECOND = 1000, 2000
NAMES_IN_A_LIST = 200
LINES_AT_ONCE, LINES_A_SECOND = 100, 2
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chown")
OVER = "vgpu-xen was started anew: open a new session"


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def host(mediator):
    """host(vms=[1], start=True): VMs by their numbers."""
    with contextlib.ExitStack() as stack:
        def make(vms=(1,), **options):
            return stack.enter_context(registered_host(mediator, vms, **options))
        yield make


class Chatter:
    """A guest that writes without pause, from its own thread."""

    def __init__(self, domain):
        self.domain = domain
        self.writes = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        while not self._ended.is_set():
            self.writes += 1
            self.domain.put("noise", "now", self.writes)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()


# --- which domain is which VM ------------------------------------------------------------


def test_a_domain_with_a_registered_uuid_is_offered_the_channel(host):
    h = host()
    domain = h.start_domain(5, UUIDS[1]).wait_offer()
    assert h.store.read(domain.below("backend", "", "version")) == "1"
    assert h.store.permissions(domain.below("backend")) == ["n0", "r5"]
    h.wait_message("domain 5 is vm 1")


def test_a_uuid_in_capitals_is_the_same(host):
    host().start_domain(5, UUIDS[1].upper()).wait_offer()


def test_a_domain_that_was_there_before_is_found(host):
    h = host(start=False)
    domain = h.start_domain(5, UUIDS[1])
    h.start()
    domain.wait_offer()


@pytest.mark.parametrize("words", [["n5"], ["n0", "w5"], ["n0", "b5"], ["w0"], ["b0"],
                                   ["n0", "r5", "w9"], ["n7", "r5"]],
                         ids=lambda words: " ".join(words))
def test_a_vm_node_that_others_may_write_is_not_believed(host, words):
    h = host([1, 2])
    domain = h.start_domain(5, UUIDS[1], permissions=words)
    h.wait_message("others than the host may write /local/domain/5/vm")
    h.start_domain(6, UUIDS[2]).wait_offer()
    assert domain.offer is None


@pytest.mark.parametrize("value", ["", "/vm/", UUIDS[1], f"/vm/{UUIDS[1]}/x", f"/vm/{UUIDS[1]}0",
                                   f"/vm/{UUIDS[9]}", "/vm/vm1", "x" * 4000],
                         ids=lambda value: value[:12] or "empty")
def test_a_vm_node_without_a_registered_uuid_is_nobodys(host, value):
    h = host([1, 2])
    domain = h.start_domain(5, None, value=value)
    h.start_domain(6, UUIDS[2]).wait_offer()
    assert domain.offer is None


def test_a_vm_that_is_registered_later_is_found(host):
    h = host()
    domain = h.start_domain(5, UUIDS[2])
    h.register(2)
    domain.wait_offer()
    h.wait_message("domain 5 is vm 2")


def test_a_complaint_about_a_domain_is_made_once(host):
    h = host()
    h.start_domain(5, UUIDS[1], permissions=["n5"])
    h.wait_message("others than the host may write")
    for number in range(6, 10):  # each makes it look at all domains
        h.start_domain(number, UUIDS[9])
    h.register(9)
    h.start_domain(10, UUIDS[9])
    h.wait_message("is vm 9")
    assert len(h.messages("others than the host may write")) == 1


# --- what a guest writes ---------------------------------------------------------------------


def test_a_session_without_xens_devices_is_refused_with_the_reason(host):
    domain = host().start_domain(5, UUIDS[1]).wait_offer()
    name = domain.ask()
    domain.wait_told(name, "refused")
    assert "/dev/xen/evtchn" in domain.told(name, "error")
    assert domain.told(name, "code") == NO_HOST


@pytest.mark.parametrize("changes, expected", [
    ({"version": "2"}, "version is '2', expected 1"),
    ({"version": None}, "a node of the session cannot be read"),
    ({"slot_bytes": 4096}, "slot-bytes is '4096', expected 434176 to 67108864"),
    ({"slot_bytes": (1 << 20) + 1}, "in whole pages of 4096"),
    ({"slot_bytes": "0x100000"}, "slot-bytes is '0x100000'"),
    ({"directory": "1 2"}, "directory is '1 2'"),
    ({"directory": "9" * 4000}, "directory is '9999"),
    ({"event_channel": "0"}, "event-channel is '0', expected a port's number"),
    ({"event_channel": "\x1b[2J"}, "event-channel is '\\x1b[2J'"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else None)
def test_values_that_make_no_sense_are_refused_with_what_was_expected(host, changes, expected):
    domain = host().start_domain(5, UUIDS[1]).wait_offer()
    name = domain.ask(**changes)
    domain.wait_told(name, "refused")
    assert expected in domain.told(name, "error")
    assert domain.told(name, "code") == ARGUMENT


@pytest.mark.parametrize("name", ["session", "0123456789abcde", "0123456789abcdef0",
                                  "0123456789ABCDEF", "..", "0123456789abcde "])
def test_a_name_that_is_none_is_ignored(host, name):
    h = host()
    domain = h.start_domain(5, UUIDS[1]).wait_offer()
    domain.ask(name)
    good = domain.ask()
    domain.wait_told(good, "refused")
    assert h.store.names(domain.below("backend")) == ["version", "domain", good]


def test_a_session_that_is_taken_back_leaves_nothing(host):
    h = host()
    domain = h.start_domain(5, UUIDS[1]).wait_offer()
    name = domain.ask()
    domain.wait_told(name, "refused")
    domain.take_back(name)
    wait_until(lambda: domain.told(name) is None, "the host's node gone")


def test_sessions_come_no_faster_than_the_limit(host):
    h = host(start=False)
    domain = h.start_domain(5, UUIDS[1])
    names = [domain.ask(version="2") for _ in range(SESSIONS_MAX)]
    h.start()
    for name in names:
        domain.wait_told(name, "refused")
    codes = [domain.told(name, "code") for name in names]
    assert codes[:STARTS_AT_ONCE] == [ARGUMENT] * STARTS_AT_ONCE
    assert codes[-1] == BUSY
    assert "8 a second" in domain.told(names[-1], "error")


def test_sessions_are_no_more_than_the_limit_and_the_next_waits(host):
    h = host()
    domain = h.start_domain(5, UUIDS[1]).wait_offer()
    names = [domain.ask() for _ in range(SESSIONS_MAX + 1)]
    for name in names[:SESSIONS_MAX]:
        domain.wait_told(name, "refused")
    h.wait_message(f"{SESSIONS_MAX} sessions")
    assert domain.told(names[SESSIONS_MAX]) is None
    domain.take_back(names[0])
    domain.wait_told(names[SESSIONS_MAX], "refused")


def test_sessions_that_wait_are_told_why_in_one_node(host):
    h = host()
    domain = h.start_domain(5, UUIDS[1]).wait_offer()
    why = domain.below("backend", "", "error")
    names = [domain.ask() for _ in range(SESSIONS_MAX + 20)]
    wait_until(lambda: h.store.read(why) is not None, "the reason why they wait")
    assert h.store.read(why).startswith(f"this VM has {SESSIONS_MAX} sessions, ")
    assert h.store.permissions(why) == ["n0", "r5"]
    for name in names[:20]:
        assert h.store.read(why) is not None
        domain.wait_told(name, "refused")
        domain.take_back(name)
    wait_until(lambda: h.store.read(why) is None, "that nobody waits any more")


def test_a_reason_to_wait_that_an_earlier_one_left_goes(host):
    h = host(start=False)
    domain, _ = leave(h, 5)
    h.store.write(domain.below("backend", "", "error"), "this VM has 32 sessions")
    h.start()
    wait_until(lambda: h.store.read(domain.below("backend", "", "error")) is None, "its end")


def test_one_domains_sessions_do_not_count_for_another(host):
    h = host([1, 2])
    first = h.start_domain(5, UUIDS[1]).wait_offer()
    second = h.start_domain(6, UUIDS[2]).wait_offer()
    for _ in range(2 * SESSIONS_MAX):
        first.ask(version="2")
    name = second.ask(version="2")
    second.wait_told(name, "refused")
    assert second.told(name, "code") == ARGUMENT


# --- what an earlier one left -------------------------------------------------------------------


def leave(h, number, *sessions):
    """A domain as a vgpu-xen that died left it: {"frontend": state, "backend": state}."""
    domain = h.start_domain(number, UUIDS[1])
    h.store.write(domain.below("backend", "", "version"), "1")
    h.store.set_permissions(domain.below("backend"), "n0", f"r{number}")
    h.store.write(domain.below("backend", "", "domain"), "0")
    names = []
    for frontend, backend in sessions:
        names.append(domain.new_name())
        if frontend:
            domain.ask(names[-1], state=frontend)
        if backend:
            h.store.write(domain.below("backend", names[-1], "state"), backend)
    return domain, names


def test_a_session_of_an_earlier_one_is_told_that_it_is_over(host):
    h = host(start=False)
    domain, (name,) = leave(h, 5, ("initialising", "connected"))
    h.start()
    domain.wait_told(name, "closed")
    assert domain.told(name, "error") == OVER


def test_what_an_earlier_one_refused_stays_refused(host):
    h = host(start=False)
    domain, (old, sign) = leave(h, 5, ("initialising", "refused"), ("initialising", "connected"))
    h.store.write(domain.below("backend", old, "error"), "a reason")
    h.start()
    domain.wait_told(sign, "closed")
    assert (domain.told(old), domain.told(old, "error")) == ("refused", "a reason")


def test_a_node_of_an_earlier_one_whose_session_is_gone_is_removed(host):
    h = host(start=False)
    domain, (gone, sign) = leave(h, 5, (None, "connected"), ("initialising", "connected"))
    h.start()
    domain.wait_told(sign, "closed")
    assert domain.told(gone) is None
    assert h.store.names(domain.below("backend")) == ["version", "domain", sign]


def test_a_session_that_was_closed_while_nobody_listened_leaves_nothing(host):
    h = host(start=False)
    domain, (closing, sign) = leave(h, 5, ("closing", "connected"), ("initialising", "connected"))
    h.start()
    domain.wait_told(sign, "closed")
    assert h.store.names(domain.below("frontend")) == [sign]
    assert h.store.names(domain.below("backend")) == ["version", "domain", sign]


def test_the_offer_of_an_earlier_one_to_a_vm_that_is_registered_no_more_is_withdrawn(host):
    h = host(start=False)
    domain, _ = leave(h, 5, ("initialising", "connected"), (None, "closed"))
    h.store.write(f"{domain.path}/vm", f"/vm/{UUIDS[9]}")
    h.start()
    wait_until(lambda: h.store.names(domain.below("backend")) == [], "nothing of the host's")
    assert domain.offer is None


def test_more_nodes_than_can_be_listed_are_cleared_at_the_start(host):
    h = host(start=False)
    domain, _ = leave(h, 5, *[(None, "connected")] * 300)
    h.start()
    wait_until(lambda: h.store.names(domain.below("backend")) == ["version", "domain"],
               "nothing but the offer")


# --- its end -----------------------------------------------------------------------------------


def test_an_offer_that_nobody_took_up_leaves_nothing(host):
    h = host()
    domain = h.start_domain(5, UUIDS[1]).wait_offer()
    h.stop()
    assert h.store.names(f"{domain.path}/data") == []


def test_who_still_listens_is_told_and_all_else_goes(host):
    h = host()
    domain = h.start_domain(5, UUIDS[1]).wait_offer()
    name = domain.ask()
    domain.wait_told(name, "refused")
    h.store.write(domain.below("backend", domain.new_name(), "state"), "connected")
    h.stop()
    assert h.store.names(domain.below("backend")) == [name]
    assert domain.told(name) == "refused"
    domain.take_back(name)
    h.start()
    domain.wait_offer()
    wait_until(lambda: domain.told(name) is None, "the last one's node gone")


# --- a registration that changes ---------------------------------------------------------------


def test_the_offer_is_withdrawn_when_the_vm_is_registered_no_more(host):
    h = host([1, 2])
    domain = h.start_domain(5, UUIDS[1]).wait_offer()
    h.mediator.allow_error("cannot open directory")
    admin(h.mediator, "remove-vm", 1, "--yes")
    domain.wait_offer(None)
    name = domain.ask()
    domain.wait_told(name, "refused")
    assert "registered" in domain.told(name, "error") and domain.told(name, "code") == NO_HOST
    h.register(1)
    domain.wait_offer()


def test_a_uuid_that_becomes_another_number_is_served_as_that(host):
    h = host([1])
    domain = h.start_domain(5, UUIDS[1]).wait_offer()
    h.mediator.allow_error("cannot open directory")
    admin(h.mediator, "remove-vm", 1, "--yes")
    h.register(3, uuid=UUIDS[1])
    h.wait_message("domain 5 is vm 3")
    domain.wait_offer()


def test_a_registry_that_cannot_be_read_for_a_while_changes_nothing(host):
    h = host([1])
    domain = h.start_domain(5, UUIDS[1]).wait_offer()
    database = h.mediator.settings["database"]
    away = database.with_suffix(".away")
    h.mediator.allow_error("vgpu.db")
    database.rename(away)
    h.wait_message("vgpu.db")
    h.start_domain(6, UUIDS[2])
    away.rename(database)
    h.register(2)
    wait_until(lambda: h.messages("domain 6 is vm 2"), "a look at the registry")
    assert domain.offer == "0" and len(h.messages("domain 5 is vm 1")) == 1


def test_an_offer_that_somebody_removed_is_made_again(host):
    h = host([1])
    domain = h.start_domain(5, UUIDS[1]).wait_offer()
    h.store.remove(f"{domain.path}/data/vgpu")
    domain.wait_offer()
    assert h.store.permissions(domain.below("backend")) == ["n0", "r5"]
    domain.wait_told(domain.ask(), "refused")


def test_a_session_for_another_domain_is_left_to_that(host):
    """As when a worker domain serves the VM now, and nobody has looked at it again yet."""
    h = host([1])
    domain = h.start_domain(5, UUIDS[1]).wait_offer()
    h.store.write(domain.below("backend", key="domain"), 8)
    name = domain.ask()
    domain.wait_told(name, "refused")
    said = [part for part in h.messages("") if "is offered" in part or name in part]
    assert ["is offered" in part for part in said] == [True, True, False], said


def test_an_area_that_the_guest_made_itself_is_made_anew(host):
    h = host(start=False)
    domain = h.start_domain(5, UUIDS[1])
    name = domain.new_name()
    for key in ("domain", "version", f"{name}/state"):
        h.store.write(domain.below("backend", "", key), "connected", domain=5)
    h.start()
    domain.wait_offer()
    assert h.store.names(domain.below("backend")) == ["version", "domain"]
    for key in ("", "domain", "version"):
        assert h.store.permissions(domain.below("backend", "", key)) == ["n0", "r5"]


def test_an_offer_that_the_guest_forges_is_replaced(host):
    h = host()
    domain = h.start_domain(5, UUIDS[1]).wait_offer()
    h.store.remove(f"{domain.path}/data/vgpu")
    h.store.write(domain.below("backend", "", "domain"), "0", domain=5)
    wait_until(lambda: len(h.messages("domain 5 is vm 1: the channel is offered")) == 2,
               "the host's own offer")
    assert h.store.permissions(domain.below("backend", "", "domain")) == ["n0", "r5"]
    domain.wait_told(domain.ask(), "refused")


# --- hostile guests ----------------------------------------------------------------------------


def test_a_guest_that_never_stops_writing_holds_nothing_off(host):
    h = host([1, 2])
    loud = h.start_domain(5, UUIDS[1]).wait_offer()
    late = h.start_domain(6, UUIDS[3])
    other = h.start_domain(7, UUIDS[2]).wait_offer()
    forgotten = other.ask()
    other.wait_told(forgotten, "refused")
    with Chatter(loud) as chatter:
        other.wait_told(other.ask(), "refused")
        h.register(3)
        late.wait_offer()
        # Its program died: nobody takes it back, and after half a minute the host does.
        wait_until(lambda: other.told(forgotten) is None, "the old session forgotten")
        assert chatter.writes > 100
        h.stop()
    assert other.offer is None


@pytest.mark.parametrize("count", [NAMES_IN_A_LIST, 10000])
def test_a_guest_with_many_names_is_no_burden_to_others(host, count):
    h = host([1, 2])
    loud = h.start_domain(5, UUIDS[1]).wait_offer()
    own = loud.ask()
    loud.wait_told(own, "refused")
    for _ in range(count):
        h.store.write(loud.below("frontend", loud.new_name()), "", domain=5)
    quiet = h.start_domain(6, UUIDS[2]).wait_offer()
    with Chatter(loud):
        for _ in range(5):
            name = quiet.ask()
            quiet.wait_told(name, "refused")
            quiet.take_back(name)
            wait_until(lambda: quiet.told(name) is None, "the end of it")
        # What it began before is still looked at.
        loud.put(own, "state", "closing")
        wait_until(lambda: loud.told(own) is None, "its own session's end")


def test_a_guest_with_many_names_is_looked_at_at_a_bounded_rate(host):
    h = host([1])
    begun = time.monotonic()
    loud = h.start_domain(5, UUIDS[1]).wait_offer()
    for _ in range(NAMES_IN_A_LIST):
        h.store.write(loud.below("frontend", loud.new_name()), "", domain=5)
    with Chatter(loud):
        wait_until(lambda: h.store.asked[READ, "5"] > 3 * QUESTIONS_AT_ONCE, "many questions")
    asked = h.store.asked[READ, "5"]
    assert asked <= QUESTIONS_AT_ONCE + 2 * NAMES_IN_A_LIST + \
        QUESTIONS_A_SECOND * (time.monotonic() - begun)


def test_the_log_says_of_a_domains_sessions_no_more_than_the_limit(host):
    h = host()
    begun = time.monotonic()
    domain = h.start_domain(5, UUIDS[1]).wait_offer()
    rounds = LINES_AT_ONCE
    for _ in range(rounds):  # two lines each
        name = domain.ask(version="2")
        domain.wait_told(name, "refused")
        domain.take_back(name)
    h.wait_message("lines about its sessions were left out")

    def counts():
        return (len(h.messages(": session ")),
                sum(int(text.split(": ")[1].split()[0]) for text in h.messages("were left out")))
    wait_until(lambda: sum(counts()) == 2 * rounds, lambda: f"all lines: {counts()}")
    assert LINES_AT_ONCE <= counts()[0] <= \
        LINES_AT_ONCE + LINES_A_SECOND * (time.monotonic() - begun)


def test_a_frontend_that_is_replaced_ends_its_sessions_and_serves_the_next(host):
    h = host()
    domain = h.start_domain(5, UUIDS[1]).wait_offer()
    name = domain.ask()
    domain.wait_told(name, "refused")
    h.store.remove(domain.below("frontend"))
    wait_until(lambda: domain.told(name) is None, "the end of the session")
    h.store.write(domain.below("frontend"), "x" * 4000, domain=5)
    domain.wait_told(domain.ask(), "refused")


def test_a_domain_that_is_destroyed_is_forgotten_and_its_number_can_come_again(host):
    h = host([1, 2])
    domain = h.start_domain(5, UUIDS[1]).wait_offer()
    domain.wait_told(domain.ask(), "refused")
    h.end_domain(domain)
    h.wait_message("domain 5 (vm 1) is gone")
    h.start_domain(5, UUIDS[2]).wait_offer()
    h.wait_message("domain 5 is vm 2")


def test_a_xenstore_that_goes_ends_it_with_an_error(host):
    h = host()
    h.store.hang_up()
    assert h.process.wait(90) == 1
    h.wait_message("XenStore")


# --- sessions that work ---------------------------------------------------------------------------


@pytest.fixture
def xen(host, shim):
    """A host with Xen's devices, and a domain with vm 1."""
    h = host(shim=shim)
    return h, h.start_domain(5, UUIDS[1]).wait_offer()


def test_operations_go_through_the_broker(xen):
    _, domain = xen
    session = domain.open()
    session.ping()
    assert session.text("3:4") == (OK, "3 + 4 = 7")
    assert [domain.told(session.name, key) for key in ("vm-id", "pool", "priority")] == \
        ["1", "A", "1"]


def test_closing_ends_the_broker_and_leaves_nothing(xen):
    h, domain = xen
    session = domain.open()
    domain.put(session.name, "state", "closing")
    wait_until(lambda: not broker_pids(h.process.pid), "the broker's end")
    wait_until(lambda: domain.told(session.name) is None, "the host's node gone")
    assert h.store.names(domain.below("frontend")) == []


def test_a_program_that_dies_leaves_nothing(xen):
    h, domain = xen
    session = domain.open()
    session.die()
    wait_until(lambda: domain.told(session.name) is None, "the host's node gone")
    assert h.store.names(domain.below("frontend")) == []


def test_a_broker_that_dies_is_told(xen):
    _, domain = xen
    session = domain.open()
    os.kill(session.broker_pid(), signal.SIGKILL)
    domain.wait_told(session.name, "closed")
    assert "its broker on the host died" in domain.told(session.name, "error")
    domain.open().ping()


def test_a_mediator_that_is_started_anew_is_not_noticed(xen):
    h, domain = xen
    session = domain.open()
    session.ping()
    h.mediator.stop_but_keep_workers()
    after = h.mediator.mark()
    h.mediator.start()
    h.mediator.wait_event("link", after=after, vm=1)
    session.ping()
    pid = session.broker_pid()
    h.stop()
    wait_until(lambda: not pathlib.Path(f"/proc/{pid}").exists(), "the broker's end")


def test_sigterm_tells_the_sessions_that_they_are_over(xen):
    h, domain = xen
    session = domain.open()
    h.stop()
    assert domain.told(session.name) == "closed"
    assert h.store.names(domain.below("backend")) == [session.name]


def test_a_vgpu_xen_that_is_killed_takes_its_brokers_along_and_the_next_tells(xen):
    h, domain = xen
    session = domain.open()
    h.kill()
    assert domain.told(session.name) == "connected"
    h.start()
    domain.wait_told(session.name, "closed")
    domain.open().ping()


def test_a_vm_that_is_registered_no_more_loses_its_sessions(xen):
    h, domain = xen
    session = domain.open()
    h.mediator.allow_error("cannot open directory")
    admin(h.mediator, "remove-vm", 1, "--yes")
    domain.wait_told(session.name, "closed")
    domain.wait_offer(None)


def test_a_broker_is_confined(xen):
    h, domain = xen
    session = domain.open()
    status = pathlib.Path(f"/proc/{session.broker_pid()}/status").read_text()
    assert "\nNoNewPrivs:\t1\n" in status
    words = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    assert all(int(words[key], 16) == 0 for key in ("CapEff", "CapPrm", "CapInh", "CapAmb"))
    if os.geteuid() == 0:
        owner = str(owner_of(1))
        assert words["Uid"].split() == words["Gid"].split() == [owner] * 4
        assert words["Groups"].split() == []
    if not is_sanitized():
        assert "\nSeccomp:\t2\n" in status
    session.ping()


@needs_root
def test_a_vm_without_an_owner_of_its_own_has_no_sessions_and_is_told_why(host, shim):
    h = host([], shim=shim)
    h.register(1, owner=False)
    domain = h.start_domain(5, UUIDS[1]).wait_offer()
    name = domain.ask(directory=h.grant_slot()[1])
    h.accept_events()
    domain.wait_told(name, "refused")
    assert domain.told(name, "code") == NO_HOST
    assert "no broker runs as root: give the VM an owner of its own (vgpu-admin update-vm VM " \
        "--owner default" in domain.told(name, "error")
    admin(h.mediator, "update-vm", 1, "--owner", owner_of(1))
    domain.open().ping()


def test_references_of_nobody_are_refused(xen):
    h, domain = xen
    at = h.take_pages(1)  # a directory of zeros: the same page again and again
    name = domain.ask(directory=at, slot_bytes=1 << 20)
    domain.wait_told(name, "refused")
    assert "cannot be mapped" in domain.told(name, "error")
    assert domain.told(name, "code") == ARGUMENT
    assert h.memory[at * PAGE:(at + 1) * PAGE] == bytes(PAGE)
