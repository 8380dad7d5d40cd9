# SPDX-License-Identifier: Apache-2.0
"""In which order should the requests have run?  An opinion of its own.

Nothing here asks the scheduler or shares a line with it.  The rules are those
that the documentation promises:

    one request at a time on a device
    of those that wait: the highest priority first
    inside one priority: who came first
    pools that share a device: one queue ("shared"), or turns ("independent")

What came when, and what ran when, is the mediator's log; what was asked and
answered is also what each guest itself wrote down.  The two must agree.  Of what
goes through a window the mediator knows turns and nothing more: there the log has
to have a turn for each request, and the answers are the guest's word.

    Request   what a guest says that it sent, and what it got
    check()   all of it: the list of what is wrong, empty when all is right
"""

import json
import re

PRIORITY_NAMES = {0: "low", 1: "medium", 2: "high"}


class Request:
    """One line of a guest's own record."""

    def __init__(self, vm, pool, priority, command, answer=None, channel="file"):
        self.vm, self.pool, self.priority = vm, pool, priority
        self.command, self.answer = command, answer
        self.channel = channel

    @classmethod
    def from_client(cls, line):
        """From what `vgpu-client --json` printed."""
        record = json.loads(line)
        answer = record.get("answer")
        answer = answer and f"{answer['status']}:{answer['message']}"
        if (record.get("channel") or {}).get("kind") == "window":
            device = record["device"]
            return cls(device["vm_id"], device["pool"], device["priority"], record["request"],
                       answer, "window")
        pool, priority, vm, command = record["request"].split(":", 3)
        return cls(int(vm), pool, int(priority), command, answer)

    def __repr__(self):
        return (f"vm{self.vm} {self.pool} {PRIORITY_NAMES.get(self.priority)} "
                f"{self.command!r} -> {self.answer!r}")


class _Waiting:
    """The requests that wait for one device, in the order of their arrival."""

    def __init__(self, mode):
        self.mode = mode
        self.entries = []
        self.turns = []  # independent: pools with work, the next one first

    def add(self, entry):
        self.entries.append(entry)
        if entry["pool"] not in self.turns:
            self.turns.append(entry["pool"])

    def next(self):
        candidates = self.entries
        if self.mode == "independent" and candidates:
            candidates = [entry for entry in candidates if entry["pool"] == self.turns[0]]
        # max() keeps the first of equals: who came first.
        return max(candidates, key=lambda entry: entry["priority"], default=None)

    def take(self, entry):
        self.entries.remove(entry)
        self.turns.remove(entry["pool"])
        if any(other["pool"] == entry["pool"] for other in self.entries):
            self.turns.append(entry["pool"])


def _key(event):
    return event["vm"], event.get("channel", "file"), event["sequence"]


def _name(entry):
    return f"vm{entry['vm']} ({PRIORITY_NAMES.get(entry['priority'], entry['priority'])})"


def order_problems(events, devices=None, mode="shared"):
    """Walks the log: was each request that ran the one whose turn it was?

    devices: {pool: device}; a pool that is not named is on the device "cpu".
    """
    devices = devices or {}
    waiting, problems = {}, []
    for event in events:
        if event.get("event") == "queue":
            device = devices.get(event["pool"], "cpu")
            waiting.setdefault(device, _Waiting(mode)).add(event)
        elif event.get("event") == "process":
            device = devices.get(event["pool"], "cpu")
            queue = waiting.setdefault(device, _Waiting(mode))
            entry = next((entry for entry in queue.entries if _key(entry) == _key(event)), None)
            if entry is None:
                problems.append(f"vm{event['vm']} ran number {event['sequence']}, which did not wait")
                continue
            expected = queue.next()
            if entry is not expected:
                problems.append(f"{_name(entry)} ran when it was the turn of {_name(expected)}")
            queue.take(entry)
    for queue in waiting.values():
        problems += [f"{_name(entry)} still waits" for entry in queue.entries]
    return problems


def registry_problems(events, vms):
    """Were all queued with the pool and priority that they have?

    vms: {vm: (pool, priority)}.
    """
    problems = []
    for event in events:
        if event.get("event") in ("queue", "process"):
            has = (event["pool"], event["priority"])
            if has != vms.get(event["vm"]):
                problems.append(f"vm{event['vm']}: {event['event']} says pool and priority {has}, "
                                f"it has {vms.get(event['vm'])}")
    return problems


def _window_problems(events, requests):
    """As answer_problems(), for VMs whose requests went through their window."""
    problems = []
    turns = [event["vm"] for event in events
             if event.get("event") == "process" and event.get("channel") == "window"]
    for vm in sorted(set(turns) | {request.vm for request in requests}):
        sent = [request for request in requests if request.vm == vm]
        if turns.count(vm) != len(sent):
            problems.append(f"vm{vm} sent {len(sent)} requests and had {turns.count(vm)} turns")
        problems += [f"{request!r}: that is not the answer to it" for request in sent
                     if not answer_fits(request.command, request.answer)]
    return problems


def answer_problems(events, requests):
    """Has each request that a guest sent run once, and got its own answer?"""
    problems = _window_problems(events, [r for r in requests if r.channel == "window"])
    requests = [request for request in requests if request.channel == "file"]
    ran, answered = {}, {}
    for event in events:
        if event.get("channel") == "window":
            continue
        if event.get("event") == "process":
            ran.setdefault(event["vm"], []).append(event)
        elif event.get("event") == "response":
            answered.setdefault(_key(event), []).append(event["answer"])
    by_vm = {}
    for request in requests:
        by_vm.setdefault(request.vm, []).append(request)
    for vm in sorted(set(ran) | set(by_vm)):
        sent_commands = [request.command for request in by_vm.get(vm, [])]
        ran_commands = [event["command"] for event in ran.get(vm, [])]
        if sent_commands != ran_commands:
            problems.append(f"vm{vm} sent {sent_commands}, and of it ran {ran_commands}")
            continue
        for request, event in zip(by_vm[vm], ran[vm]):
            logged = answered.get(_key(event), [])
            if len(logged) != 1:
                problems.append(f"{request!r}: {len(logged)} answers in the log")
            elif logged[0] != request.answer:
                problems.append(f"{request!r}: the log says {logged[0]!r}")
            elif not answer_fits(request.command, request.answer):
                problems.append(f"{request!r}: that is not the answer to it")
    return problems


def answer_fits(command, answer):
    """Is it a right answer to this command, as far as one can tell here?"""
    if answer is None or not answer.startswith("1:"):
        return False
    message = answer[2:]
    sum_of = re.fullmatch(r"(-?\d+):(-?\d+)", command)
    if sum_of:
        a, b = map(int, sum_of.groups())
        return message == f"{a} + {b} = {a + b}"
    words = command.split()
    if words[0] == "SPIN":
        return message == f"Spun {words[1]} ms"
    if words[0] == "VECTOR_ADD" and len(words) == 1:
        return message.startswith("Vector add PASSED: 1024 elements, 0 errors")
    if words[0] == "MATRIX_MUL":
        return "PASSED" in message and "0 errors" in message and f"{words[1]}x{words[1]}" in message
    return True


def check(events, requests, vms, devices=None, mode="shared"):
    """(order problems, other problems), both empty when all is right."""
    others = registry_problems(events, vms) + answer_problems(events, requests)
    return order_problems(events, devices, mode), others


def verdict(events, requests, vms, devices=None, mode="shared"):
    """(one line, True if all is right, the list of what is wrong)."""
    order, others = check(events, requests, vms, devices, mode)
    answered = sum(1 for request in requests if request.answer is not None
                   and answer_fits(request.command, request.answer))
    right = "order right" if not order else "order wrong"
    fine = not order and not others and answered == len(requests) and len(requests) > 0
    text = f"demo: {right}, {answered} of {len(requests)} answered"
    if not order and not fine:
        text += f", {max(len(others), 1)} other problem{'s' if len(others) > 1 else ''}"
    return text, fine, order + others
