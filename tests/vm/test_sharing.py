# SPDX-License-Identifier: GPL-2.0-or-later
"""Eight real VMs of both pools on one device, three of which do what they should not.

Five work: window-load with kernels, copies and spins, which knows what each answer must
be.  Beside them one floods its ring and its doorbell, one never takes an answer (both:
guest/rude.c), and one's worker dies again and again at its work.  All of it happens once;
each test looks at one side of it.  Every operation has a grant of its own, so that the
mediator's log has every turn, and quarantine is off: it would end what is looked at.
"""

import collections
import contextlib
import os
import pathlib
import re
import signal
import sys

import pytest

from harness import paths
from harness.accounts import Account, check_account, wait_until
from harness.load import order_problems
from harness.windows import WindowLab

sys.path.insert(0, str(paths.REPOSITORY / "tests/func"))

from control_support import Control  # noqa: E402  (the path comes first)

VMS = {1: ("A", "low"), 2: ("A", "high"), 3: ("A", "medium"), 4: ("B", "low"), 5: ("B", "high"),
       6: ("A", "low"), 7: ("B", "medium"), 8: ("B", "low")}
POOLS = {"A": "cpu", "B": "cpu"}  # one device, one queue
HONEST, FLOOD, CRASH, MUTE = [1, 2, 3, 4, 5], 6, 7, 8
SEED = int(os.environ.get("VGPU_TEST_SEED", "20240607")) % 1000000
OPERATIONS = 1000  # of each that works
CRASHES_FIRST, CRASHES = 3, 12
GROWTH_KIB = 8192  # as in test_window_hostile.py
RING_ENTRIES = 1024
SESSIONS_MAX = 4
PATIENCE_S = 360


class Attack:
    """What came of it."""

    def __init__(self):
        self.crashes = 0
        self.most_workers = collections.Counter()  # {vm: at one time}
        self.workers_of_honest = set()  # {(vm, process id)}
        self.rss_kib = {}  # {"before", "after"}
        self.honest = {}  # {vm: (answered, lost, account)}
        self.crashed = None  # the same
        self.rude = {}  # {vm: its last word: submitted, taken, answered}
        self.vms = {}  # {vm: its status}
        self.events = []


class Run:
    """The eight at work."""

    def __init__(self, lab):
        self.lab = lab
        self.found = Attack()
        self.honest = {vm: Account(lab.guest(vm), SEED + vm, f"--steady --spins --think-us 30000 "
                                                             f"--operations {OPERATIONS}")
                       for vm in HONEST}
        self.crashing = Account(lab.guest(CRASH), SEED + CRASH, "--spins --think-us 30000")
        self.rude = {vm: lab.guest(vm).spawn(f"exec rude {manner} /dev/vgpu0")
                     for vm, manner in [(FLOOD, "flood"), (MUTE, "mute")]}

    def wait_begun(self):
        """Who is high may be through before who is low has begun."""
        for one in self.honest.values():
            wait_until(lambda one=one: re.search(r"^(progress|done) [1-9]", one.job.output,
                                                 re.MULTILINE), lambda one=one: one.job.output,
                       PATIENCE_S)

    def look(self):
        assert self.lab.mediator.running(), self.lab.mediator.log_tail()
        for vm in VMS:
            pids = self.lab.workers(vm)
            self.found.most_workers[vm] = max(self.found.most_workers[vm], len(pids))
            if vm in HONEST:
                self.found.workers_of_honest |= {(vm, pid) for pid in pids}

    def crash(self, times):
        """Each time when it has been answered something since."""
        for _ in range(times):
            self.crashing.wait_progress(1, PATIENCE_S)
            wait_until(lambda: self.lab.workers(CRASH), "its next worker", PATIENCE_S)
            for pid in self.lab.workers(CRASH):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.found.crashes += 1
            self.look()

    def measure(self, when):
        status = pathlib.Path(f"/proc/{self.lab.mediator.process.pid}/status").read_text()
        self.found.rss_kib[when] = int(re.search(r"VmRSS:\s+(\d+)", status)[1])

    def wait_mute_is_full(self):
        wait_until(lambda: last_word(self.rude[MUTE])[2] == RING_ENTRIES,
                   lambda: f"all answers that nobody takes, but {self.rude[MUTE].output[-200:]}",
                   PATIENCE_S)

    def settle(self):
        """The five to their end, then the others to theirs."""
        self.found.honest = {vm: one.wait(PATIENCE_S) for vm, one in self.honest.items()}
        self.wait_mute_is_full()
        self.look()
        self.measure("after")
        self.found.vms = statuses(self.lab)
        self.found.crashed = self.crashing.end()
        for vm, job in self.rude.items():
            job.kill()
            status, output = job.wait(PATIENCE_S)
            assert status == 0, output[-400:]
            self.found.rude[vm] = last_word(job)


def last_word(job):
    """[submitted, taken, answered] of guest/rude.c, as it said last."""
    said = re.findall(r"^(?:progress|done) (\d+) (\d+) (\d+)$", job.output, re.MULTILINE)
    return [int(number) for number in said[-1]] if said else [0, 0, 0]


def statuses(lab):
    with Control(lab.run / "control.sock") as control:
        return {vm["vm_id"]: vm for vm in control.call("status")["vms"]}


def turns_that_were_had(events):
    """Without what waited and never ran, because its session or its worker ended first."""
    def turn(event):
        return event["vm"], event["sequence"]

    had = {turn(event) for event in events if event.get("event") == "process"}
    return [event for event in events if event.get("event") != "queue" or turn(event) in had]


@pytest.fixture(scope="module")
def lab():
    with WindowLab(VMS, pools=POOLS, grant_ops=1, log_level="debug", sessions_max=SESSIONS_MAX,
                   device_memory_mib=16, quarantine_faults=0) as made:
        made.start()
        made.boot()
        made.wait_linked(0)
        yield made


@pytest.fixture(scope="module")
def attack(lab):
    run = Run(lab)
    run.wait_begun()
    run.crash(CRASHES_FIRST)  # warms the mediator up
    run.measure("before")
    run.crash(CRASHES)
    run.settle()
    run.found.events = lab.mediator.events()
    return run.found


def test_the_others_get_every_answer_right_and_lose_none(lab, attack):
    for vm, (answered, lost, letters) in attack.honest.items():
        assert answered >= OPERATIONS and lost == 0, f"vm{vm}"
        check_account(lab.mediator, SEED + vm, letters)


def test_every_turn_is_that_of_the_highest_priority_and_of_who_came_first(attack):
    events = turns_that_were_had(attack.events)
    assert order_problems(events, POOLS) == []
    has = {event["vm"]: (event["pool"], event["priority"]) for event in events
           if event.get("event") == "process"}
    levels = {"low": 0, "medium": 1, "high": 2}
    assert has == {vm: (pool, levels[priority]) for vm, (pool, priority) in VMS.items()}


def test_the_check_of_the_order_can_fail(attack):
    """As if nobody had a priority: then who is high went before its turn, for somebody waited."""
    events = [{**event, "priority": 0} if "priority" in event else event
              for event in turns_that_were_had(attack.events)]
    assert order_problems(events, POOLS) != []


def test_the_mediators_memory_stays_flat(attack, summary):
    growth_kib = attack.rss_kib["after"] - attack.rss_kib["before"]
    assert growth_kib <= GROWTH_KIB, attack.rss_kib
    summary(f"{attack.rss_kib['before']} KiB, then {growth_kib:+} KiB over {attack.crashes} crashes, "
            f"{attack.rude[FLOOD][2]} answers to the flood and "
            f"{sum(answered for answered, _, _ in attack.honest.values())} to the five")


def test_each_vm_is_kept_to_its_own_worker_and_none_is_shut_out(attack):
    most = dict(attack.most_workers)
    # It may open the next session while one still ends.
    assert 1 <= most.pop(CRASH) <= SESSIONS_MAX
    assert most == dict.fromkeys(most, 1)
    assert len(attack.workers_of_honest) == len(HONEST), "one had a second worker"
    assert {vm: status["state"] for vm, status in attack.vms.items()} == dict.fromkeys(VMS, "active")


def test_faults_are_counted_for_the_vm_that_has_them(attack):
    faults = {vm: dict(status["faults"]) for vm, status in attack.vms.items()}
    none = dict.fromkeys(faults[CRASH], 0)
    # One that was ending anyhow when it was killed is none.
    assert 0 < faults[CRASH].pop("worker") <= attack.crashes
    assert set(faults.pop(CRASH).values()) == {0}
    assert faults == dict.fromkeys(faults, none)


def test_a_vm_whose_worker_dies_is_told_of_each_operation_once(lab, attack):
    answered, lost, letters = attack.crashed
    assert answered > 0 and lost >= 1
    check_account(lab.mediator, SEED + CRASH, letters)


def test_who_takes_no_answers_gets_no_more_than_its_ring_holds(attack):
    submitted, taken, answered = attack.rude[MUTE]
    assert answered == RING_ENTRIES
    assert taken <= submitted <= 2 * RING_ENTRIES


def test_who_floods_is_answered_in_its_turn(attack):
    _, taken, answered = attack.rude[FLOOD]
    assert 0 < answered <= taken


def test_afterwards_all_are_served_and_nothing_is_left_behind(lab, attack):
    for vm in VMS:
        assert "PONG" in lab.guest(vm).check("vgpu-client --channel window --timeout 120 PING", 240)
    wait_until(lambda: not lab.workers() and not any(map(lab.session_files, VMS)),
               "the end of all workers and sessions")
