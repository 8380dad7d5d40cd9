# SPDX-License-Identifier: Apache-2.0
"""Exactly one matching answer for every request, wherever the mediator is killed.

Clients in threads ask for sums that nobody else asks for: VM 7's 12th request
adds 7000012 and a number of its own.  So an answer tells whose it is, and one
that belongs to somebody else, comes twice, or never, is seen.  Workers count
what they run in the execution log.

Only files: what is about the journal's points, answers written into a file, and work
that runs again; test_window_kill.py has the window's kills and points.
"""

import collections
import os
import random
import re
import threading
import time

import pytest
from support import WAIT_S, both_channels, has_fault_points, is_worker, wait_until

pytestmark = pytest.mark.threads

SEED = int(os.environ.get("VGPU_TEST_SEED", "20240607"))

MEDIATOR_POINTS = ["journaled", "ready", "taken", "dispatch", "result", "answering", "answered",
                   "idle"]
WORKER_POINTS = ["worker_before_start", "worker_started", "worker_before_done", "worker_done"]


class Client:
    """One VM's client in a thread of its own.

    A good one, as ours is, sets 0:Ready, puts the request, polls for the answer.
    An old one never sets 0:Ready: it waits for an answer that is another one.
    """

    def __init__(self, vm, old=False, spins=False, seed=0):
        self.vm = vm
        self.old = old
        self.spins = spins  # some requests take time
        self.random = random.Random(seed)
        self.asked = 0
        self.answered = 0
        self.errors = []  # error answers
        self.failure = None
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._work)

    def _choose(self):
        """A request and the only right answer to it."""
        if self.spins and self.random.random() < 0.3:
            spin_ms = self.random.randrange(5, 50)
            return f"SPIN {spin_ms}", f"1:Spun {spin_ms} ms"
        a, b = self.vm.vm_id * 1000000 + self.asked, self.random.randrange(10**6)
        return f"{a}:{b}", f"1:{a} + {b} = {a + b}"

    def _ask(self):
        command, expected = self._choose()
        before = self.vm.answer()
        if not self.old:
            self.vm.ready()
            before = None
        self.asked += 1
        (self.vm.put if self.random.random() < 0.5 else self.vm.put_renamed)(command)
        answer = wait_until(lambda: self._news(before), f"an answer to {command}", WAIT_S)
        if answer.startswith("2:"):
            self.errors.append(answer)
        else:
            assert answer == expected, f"{answer!r} to {command}"
        self.answered += 1

    def _news(self, before):
        answer = self.vm.answer()
        return answer if answer != before else None

    def _work(self):
        try:
            while not self.ending.is_set():
                self._ask()
        except Exception as failure:
            self.failure = failure


class Clients:
    """One client a VM; ends them, and with an exception shows the first failure."""

    def __init__(self, m, old=(), spins=False):
        self.all = [Client(m.vm(vm_id), vm_id in old, spins, SEED + vm_id) for vm_id in m.vms]

    def __enter__(self):
        for client in self.all:
            client.thread.start()
        return self

    def __exit__(self, *_):
        for client in self.all:
            client.ending.set()
        for client in self.all:
            client.thread.join()

    def check(self):
        failures = [client.failure for client in self.all if client.failure]
        assert not failures, failures

    @property
    def answered(self):
        return sum(client.answered for client in self.all)


def check_all_answered_once(m, clients, allowed_errors=()):
    """After the last answer: nothing more comes, and nothing ran twice."""
    clients.check()
    for client in clients.all:
        assert client.answered == client.asked
        unexpected = [answer for answer in client.errors
                      if not any(re.search(allowed, answer) for allowed in allowed_errors)]
        assert not unexpected, unexpected
        client.vm.ready()
    m.wait_looks()
    for client in clients.all:  # no second answer
        assert client.vm.answer() is None, client.vm.answer()


def count_again(m):
    """How often something was run once more."""
    counts = collections.Counter(m.executions())
    return sum(count - 1 for count in counts.values()), counts


def wait_progress(m, clients, count=1):
    """Until some more answers have come."""
    goal = clients.answered + count

    def progressed():
        clients.check()
        return clients.answered >= goal
    wait_until(progressed, lambda: f"{count} more answers:\n{m.tail()}")


def test_every_request_has_one_matching_answer_over_200_kills_of_the_mediator(mediator, summary):
    rng = random.Random(SEED)
    m = mediator(vms={i: ("AB"[i % 2], i % 3) for i in range(1, 7)}, start=False,
                 pools={"A": "cpu:0", "B": "cpu:1"}, poll_max_ms=5)
    points = MEDIATOR_POINTS if has_fault_points() else []
    rounds = [(point, count) for count in (1, 2, 5) for point in points]
    rounds += [None] * (210 - len(rounds))
    rng.shuffle(rounds)
    begin = time.monotonic()
    m.start()
    start_s = min(time.monotonic() - begin, 0.05)
    with Clients(m, old={5, 6}) as clients:
        for i, round_ in enumerate(rounds):
            m.kill()
            if round_ is None:
                m.launch()
                # From within its first instants to the middle of full work.
                time.sleep(start_s * rng.choice([0.5, 2, 5]) * rng.random())
                if i % 10 == 0:
                    wait_progress(m, clients, len(m.vms))
            else:
                m.launch(fault=f"{round_[0]}:{round_[1]}")
                m.wait_killed()
                m.launch()
            clients.check()
        wait_progress(m, clients, 20)
    check_all_answered_once(m, clients)
    again, counts = count_again(m)
    requests = sum(client.asked for client in clients.all)
    summary(f"mediator killed {len(rounds)} times over {requests} requests, "
            f"{sum(counts.values())} executions, {again} again")
    # A worker outlives the mediator, so nothing is ever cut off.
    assert again == 0, [key for key, count in counts.items() if count > 1]
    assert sum(counts.values()) == requests


@pytest.mark.fault_points
@pytest.mark.parametrize("channel, point", [("file", point) for point in MEDIATOR_POINTS] +
                         [("window", "window_grant")])
def test_request_is_answered_once_when_the_mediator_dies_at(mediator, point):
    m = mediator(start=False)
    vm = m.vm(1)
    m.launch(fault=f"{point}:1")
    vm.wait_directory()
    vm.ready()
    vm.put("20:22")
    m.wait_killed()
    m.start()
    m.wait_looks()
    assert vm.wait_answer() == "1:20 + 22 = 42"
    assert m.executions() == [(1, 1)]
    vm.ready()
    m.wait_looks()
    assert vm.answer() is None
    assert vm.ask("1:1") == "1:1 + 1 = 2"
    assert m.executions() == [(1, 1), (1, 2)]


@pytest.mark.fault_points
def test_answer_is_given_when_the_write_of_it_was_cut_off_after_the_time_had_changed(mediator):
    """What write(2) does when SIGKILL comes before it has copied the first byte."""
    m = mediator(start=False)
    vm = m.vm(1)
    m.launch(fault="answering:1")
    vm.wait_directory()
    vm.ready()
    vm.put("20:22")
    m.wait_killed()
    os.utime(vm.response)
    m.start()
    assert vm.wait_answer() == "1:20 + 22 = 42"
    assert m.executions() == [(1, 1)]


@pytest.mark.fault_points
@pytest.mark.parametrize("clear", ["remove", "empty"])
def test_answer_that_the_client_cleared_away_is_not_given_again(mediator, clear):
    m = mediator(start=False)
    vm = m.vm(1)
    m.launch(fault="answered:1")
    vm.wait_directory()
    vm.put("20:22")
    m.wait_killed()
    assert vm.wait_answer() == "1:20 + 22 = 42"
    if clear == "remove":
        vm.response.unlink()
    else:
        vm.response.write_text("")
    m.start()
    m.wait_looks()
    assert vm.answer() is None
    assert vm.ask("3:4") == "1:3 + 4 = 7"
    assert m.executions() == [(1, 1), (1, 2)]


@pytest.mark.fault_points
@pytest.mark.parametrize("point", ["answered", "idle"])
def test_answer_that_the_client_took_while_nobody_ran_is_not_given_to_its_next_request(
        mediator, point):
    m = mediator(start=False)
    vm = m.vm(1)
    m.launch(fault=f"{point}:1")
    vm.wait_directory()
    vm.ready()
    vm.put("20:22")
    m.wait_killed()
    assert vm.wait_answer() == "1:20 + 22 = 42"
    vm.ready()
    vm.put("3:4")  # same file, perhaps within the same tick of its clock
    seen = []
    m.start()
    answer = wait_until(lambda: seen.append(vm.answer()) or seen[-1], "an answer")
    assert answer == "1:3 + 4 = 7"
    assert set(seen) <= {None, answer}
    assert m.executions() == [(1, 1), (1, 2)]


@pytest.mark.fault_points
@pytest.mark.parametrize("point", ["journaled", "ready", "taken", "answering", "answered", "idle"])
@pytest.mark.parametrize("put", ["malformed", "hostile"])
def test_refusal_is_given_once_when_the_mediator_dies_at(mediator, point, put):
    m = mediator(start=False)
    vm = m.vm(1)
    m.launch(fault=f"{point}:1")
    vm.wait_directory()
    vm.ready()
    if put == "malformed":
        vm.put_raw(b"A:9:1:PING\n")
    else:
        (vm.directory / "link").symlink_to("nowhere")
        (vm.directory / "link").rename(vm.request)
    m.wait_killed()
    m.start()
    assert vm.wait_answer().startswith("2:priority '9'" if put == "malformed"
                                       else "2:request.txt is a symbolic link")
    vm.ready()
    m.wait_looks()
    assert vm.answer() is None
    assert not m.executions()
    assert vm.ask("PING") == "1:PONG"


@pytest.mark.fault_points
def test_same_malformed_request_in_the_same_file_again_is_refused_again(mediator):
    m = mediator(start=False)
    vm = m.vm(1)
    m.launch(fault="answered:1")
    vm.wait_directory()
    vm.ready()
    vm.request.write_bytes(b"A:9:1:PING\n")
    m.wait_killed()
    assert vm.wait_answer().startswith("2:priority '9'")
    vm.ready()
    vm.request.write_bytes(b"A:8:1:PING\n")  # as long, as old, in the same file
    m.start()
    assert vm.wait_answer().startswith("2:priority '8'")


@pytest.mark.fault_points
@pytest.mark.parametrize("point", ["journaled", "ready", "taken", "dispatch", "result",
                                   "answering"])
def test_answer_is_withheld_when_the_client_moved_on_while_nobody_ran(mediator, point):
    m = mediator(start=False)
    vm = m.vm(1)
    m.launch(fault=f"{point}:1")
    vm.wait_directory()
    vm.ready()
    vm.put("20:22")
    m.wait_killed()
    vm.ready()
    vm.put_renamed("3:4")
    m.start()
    assert vm.wait_answer() == "1:3 + 4 = 7"
    m.wait_event("response", count=1)
    assert [e["answer"] for e in m.events("response")] == ["1:3 + 4 = 7"]


@both_channels
def test_work_that_outlives_the_mediator_is_waited_for_and_its_result_is_the_answer(
        mediator, channel):
    m = mediator(vms={1: ("A", 0), 2: ("A", 2)})
    m.vm(1).put("SPIN 3000")
    m.wait_event("process")
    wait_until(lambda: (1, 1) in m.executions(), "the execution's begin")
    m.queue(2)
    m.kill()
    after = m.mark()
    m.start()
    assert m.vm(1).wait_answer() == "1:Spun 3000 ms"
    assert m.vm(2).wait_answer() == "1:PONG 2"
    if channel == "file":
        assert m.wait_event("recovery", vm=1)["how"] == "had run; its result is the answer"
        assert m.order(after=after) == [2]  # VM 1's did not run again
    assert m.executions() == [(1, 1), (2, 1)]


def test_work_that_was_cut_off_with_its_mediator_runs_again_and_that_is_logged(mediator):
    m = mediator()
    pid = m.occupy(1)
    m.kill()
    m.release(pid)
    wait_until(lambda: not is_worker(pid), "the worker's end")
    m.launch()
    assert m.wait_event("recovery")["how"] == "was cut off while it ran; it runs again"
    again = m.wait_event("process", count=2)["worker_pid"]
    wait_until(lambda: len(m.executions()) == 2, "its second begin")
    m.release(again)
    assert m.vm(1).wait_answer().startswith("2:worker killed")
    assert m.executions() == [(1, 1), (1, 1)]


def test_result_is_taken_over_when_its_vms_directory_comes_late(mediator):
    m = mediator(vms={1: ("A", 1)}, unregistered="accept")
    vm = m.vm(55)
    vm.directory.mkdir()
    vm.put("SPIN 100")
    m.wait_event("process", vm=55)
    wait_until(lambda: (55, 1) in m.executions(), "the execution's begin")
    pid = m.events("process")[0]["worker_pid"]
    m.kill()
    vm.directory.rename(m.directory / "away")
    wait_until(lambda: not is_worker(pid), "the worker's end")
    m.start()
    m.wait_looks()
    (m.directory / "away").rename(vm.directory)
    assert vm.wait_answer() == "1:Spun 100 ms"
    assert m.executions() == [(55, 1)]
    assert vm.ask("PING") == "1:PONG"


@both_channels
def test_killed_workers_cost_at_most_one_error_answer_each(mediator, channel, summary):
    rng = random.Random(SEED)
    m = mediator(vms={i: ("AB"[i % 2], i % 3) for i in range(1, 5)},
                 pools={"A": "cpu:0", "B": "cpu:1"}, poll_max_ms=5)
    m.allow_error("no worker could be started")
    kills = 0
    with Clients(m, spins=True) as clients:
        while kills < 60:
            pids = {e["vm"]: e["worker_pid"] for e in m.events("process")}
            victims = [pid for pid in pids.values() if is_worker(pid)]
            if victims:
                m.release(rng.choice(victims))
                kills += 1
            time.sleep(rng.random() * 0.03)
            clients.check()
        wait_progress(m, clients, 10)
    check_all_answered_once(m, clients, [f"^{m.killed_answer()}",
                                        "^2:no worker could be started"])
    errors = sum(len(client.errors) for client in clients.all)
    again, counts = count_again(m)
    summary(f"workers killed {kills} times over {clients.answered} requests, "
            f"{errors} error answers, " +
            (f"{again} executions again" if channel == "file" else "each session counts anew"))
    assert errors <= kills
    assert clients.answered - errors <= sum(counts.values()) <= clients.answered
    assert channel == "window" or again == 0  # each of its sessions counts from 1


@pytest.mark.fault_points
@pytest.mark.parametrize("point, answer", [
    ("worker_started", r"2:worker killed by signal 9 \(SIGKILL\) while it ran this request.*"),
    ("worker_before_done", r"2:worker killed by signal 9 \(SIGKILL\) while it ran this request.*"),
    ("worker_done", r"1:20 \+ 22 = 42"),  # it stands in the record
])
def test_worker_that_dies_at_a_point_gives_one_answer(mediator, point, answer):
    m = mediator(start=False)
    m.start(fault=f"{point}:1")
    assert re.fullmatch(answer, m.vm(1).ask("20:22"))
    assert m.executions() == [(1, 1)]
    m.wait_event("response")
    m.vm(1).ready()
    m.wait_looks()
    assert m.vm(1).answer() is None


@pytest.mark.fault_points
def test_workers_that_always_die_before_they_begin_are_an_error(mediator):
    m = mediator(start=False)
    m.allow_error("no worker could be started")
    m.start(fault="worker_before_start:1")
    assert m.vm(1).ask("20:22").startswith("2:no worker could be started for this VM")
    assert m.executions() == []


@pytest.mark.fault_points
@pytest.mark.parametrize("point", WORKER_POINTS)
def test_mediator_and_worker_that_die_together_still_give_one_answer(mediator, point):
    m = mediator(start=False)
    m.launch(fault=f"{point}:1")
    m.vm(1).wait_directory()
    m.vm(1).ready()
    m.vm(1).put("20:22")
    pid = m.wait_event("process")["worker_pid"]
    m.kill()
    wait_until(lambda: not is_worker(pid), "the worker's end")
    m.start()
    answer = m.vm(1).wait_answer()
    # Or the mediator was fast enough to see its worker die.
    assert answer == "1:20 + 22 = 42" or answer.startswith("2:")
    m.vm(1).ready()
    m.wait_looks()
    assert m.vm(1).answer() is None
    assert len(m.executions()) <= 2
