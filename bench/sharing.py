#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""How fairly real VMs share one device: ratios, measured side by side in one run.

usage: bench/sharing.py [--quick] [--only PART]... [--json FILE]

Parts:
  priority   what a high-priority VM waits for a launch and its end, alone and beside seven
             low-priority VMs of both pools that keep the device busy
  shares     the device time of two VMs with the weights 75 and 25, both with more to do than
             there is
  attackers  what a VM waits beside one that floods, one whose worker dies again and again, and
             one that takes no answers; these on a core and a device of their own

The device is the backend `cpu`, and its kernels take a millisecond each without needing a core,
so it is the device that is short and not the host's processors.  What is compared is measured in
turn, and a figure is the median over the rounds.
Prints a table with goals and verdicts and writes build/bench-vms.json: flat keys, one number each;
`machine.*` says where.  `make bench-vms` builds what this needs.
"""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests/vm"), str(ROOT / "tests/func")]

from control_support import Control  # noqa: E402  (the path comes first)
from harness import accel, paths, process  # noqa: E402
from harness.windows import WindowLab  # noqa: E402
from window import machine, median, pinning_worker, verdict  # noqa: E402

ONE_DEVICE = {"A": "cpu", "B": "cpu"}
# The log of executions is for tests: it costs a write(2) an operation.
PLAIN = {"execution_log": None, "quarantine_faults": 0}
KERNEL_US = 1000
GRANT_US = 2000  # the mediator's default
WEIGHTS = {1: 75, 2: 25}
MANNERS = ["flood", "crash", "mute"]
LONG_S = 600  # of what is ended from outside
SETTLE_S = 1

# (key, unit, goal, True: at most)
GOALS = [
    ("priority.alone.p99_us", "us", None, True),
    ("priority.beside.p99_us", "us", None, True),
    ("priority.beside.goal_us", "us", None, True),
    ("priority.beside_over_goal.ratio", "", 1.0, True),
    ("shares.heavier.percent", "%", None, True),
    ("shares.off_by.percent", "%", 5.0, True),
    *[row for manner in MANNERS for row in [
        (f"attackers.{manner}.alone.p99_us", "us", None, True),
        (f"attackers.{manner}.beside.p99_us", "us", None, True),
        (f"attackers.{manner}.p99.ratio", "", 1.1, True)]],
]


class Bench:
    def __init__(self, quick):
        self.rounds = 1 if quick else 3
        self.seconds = 1 if quick else 4
        self.values = {}
        self.notes = []

    def put(self, key, value):
        self.values[key] = round(float(value), 3)


@contextlib.contextmanager
def lab_of(vms, **settings):
    with WindowLab(vms, **{**PLAIN, **settings}) as lab:
        lab.start()
        lab.boot()
        lab.wait_linked(0)
        yield lab


def p99_us(guest, seconds, meanwhile=lambda: None):
    """Of launches with their end, one after the other."""
    job = guest.spawn(f"vgpu-load latency {seconds} asleep")
    while not job.done():
        meanwhile()
        time.sleep(0.05)
    status, output = job.wait(1)
    if status != 0:
        raise RuntimeError(f"{guest.name}: its load failed: {output}")
    return json.loads(output)["launch_sync_p99_us"]


def saturate(guest):
    return guest.spawn(f"exec vgpu-load saturate {KERNEL_US} {LONG_S} asleep")


@contextlib.contextmanager
def at_work(jobs):
    """They have begun when this begins, and have ended when it is over."""
    time.sleep(SETTLE_S)
    try:
        yield
        for job in jobs:
            if job.done():
                raise RuntimeError(f"{job.guest.name}: its load ended too early: {job.wait()}")
    finally:
        for job in jobs:
            job.kill(signal.SIGKILL)
        for job in jobs:
            job.wait(60)


# --- the parts ---------------------------------------------------------------------------


def part_priority(bench):
    vms = {1: ("A", "high"), **{vm: ("AB"[vm % 2], "low") for vm in range(2, 9)}}
    alone, beside = [], []
    with lab_of(vms, pools=ONE_DEVICE) as lab:
        for _ in range(bench.rounds):
            alone.append(p99_us(lab.guest(1), bench.seconds))
            with at_work([saturate(lab.guest(vm)) for vm in range(2, 9)]):
                beside.append(p99_us(lab.guest(1), bench.seconds))
    goal_us = 1.1 * median(alone) + GRANT_US
    bench.put("priority.alone.p99_us", median(alone))
    bench.put("priority.beside.p99_us", median(beside))
    bench.put("priority.beside.goal_us", goal_us)
    bench.put("priority.beside_over_goal.ratio", median(beside) / goal_us)


def device_us(lab):
    """{vm: device time so far}"""
    with Control(lab.run / "control.sock") as control:
        return {vm["vm_id"]: vm["device_us"] for vm in control.call("status")["vms"]}


def percent_of_first(before, after):
    used = {vm: after[vm] - before[vm] for vm in WEIGHTS}
    return 100 * used[1] / max(1, sum(used.values()))


def part_shares(bench):
    vms = {1: ("A", "medium"), 2: ("B", "medium")}
    percents = []
    with lab_of(vms, pools=ONE_DEVICE, weights=WEIGHTS, policy="wfq") as lab:
        with at_work([saturate(lab.guest(vm)) for vm in vms]):
            for _ in range(bench.rounds):
                before = device_us(lab)
                time.sleep(bench.seconds)
                percents.append(percent_of_first(before, device_us(lab)))
    bench.put("shares.heavier.percent", median(percents))
    bench.put("shares.off_by.percent", max(abs(percent - WEIGHTS[1]) for percent in percents))


def crash(lab, vm):
    for pid in lab.workers(vm):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def attacker(lab, manner):
    """(what VM 2 runs, what the host does to it again and again)"""
    if manner == "crash":
        load = "exec window-load --seed 1 --think-us 5000 /dev/vgpu0 /tmp/account"
        return load, lambda: crash(lab, 2)
    return f"exec rude {manner} /dev/vgpu0", lambda: None


def cores_apart():
    """The victim's and the attacker's; None where there is one core only."""
    count = os.cpu_count() or 1
    if count < 2:
        return None
    return {1: "0,1", 2: "2,3"} if count >= 4 else {1: "0", 2: "1"}


def part_attackers(bench):
    cores = cores_apart()
    if cores is None:
        bench.notes.append("attackers: needs two cores")
        return
    vms = {1: ("A", "medium"), 2: ("B", "medium")}
    directory = process.run_directory("bench-vms")
    directory.chmod(0o755)
    try:
        with lab_of(vms, pools={"A": "cpu:0", "B": "cpu:1"},
                    worker=pinning_worker(directory, cores)) as lab:
            for vm, where in cores.items():
                process.run(["taskset", "-a", "-p", "-c", where, lab.guest(vm).process.pid])
            for manner in MANNERS:
                beside_attacker(bench, lab, manner)
    finally:
        process.remove_directory(directory)


def beside_attacker(bench, lab, manner):
    victim, bad = lab.guest(1), lab.guest(2)
    load, meanwhile = attacker(lab, manner)
    alone, beside = [], []
    for _ in range(bench.rounds):
        alone.append(p99_us(victim, bench.seconds))
        with at_work([bad.spawn(load)]):
            beside.append(p99_us(victim, bench.seconds, meanwhile))
    key = f"attackers.{manner}"
    bench.put(f"{key}.alone.p99_us", median(alone))
    bench.put(f"{key}.beside.p99_us", median(beside))
    bench.put(f"{key}.p99.ratio", median([b / a for a, b in zip(alone, beside)]))


# --- all ---------------------------------------------------------------------------------

PARTS = {"priority": part_priority, "shares": part_shares, "attackers": part_attackers}


def table(values):
    lines = [f"{'key':36} {'value':>12} {'unit':4} {'goal':>8}"]
    for key, unit, goal, at_most in GOALS:
        if key in values:
            sign = "" if goal is None else f"<= {goal:g}"
            lines.append(f"{key:36} {values[key]:12,.3f} {unit:4} {sign:>8} "
                         f"{verdict(values[key], goal, at_most)}".rstrip())
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="short, one round: for tests")
    parser.add_argument("--only", action="append", choices=PARTS, help="these parts, not all")
    parser.add_argument("--json", type=pathlib.Path, default=paths.BUILD / "bench-vms.json")
    arguments = parser.parse_args()
    process.install_cleanup()
    bench = Bench(arguments.quick)
    bench.values.update(machine())
    bench.values["machine.accel"] = accel.accelerator()
    for part in arguments.only or PARTS:
        began = time.monotonic()
        PARTS[part](bench)
        print(f"bench-vms: {part} took {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
    arguments.json.write_text(json.dumps(bench.values, indent=1, sort_keys=True) + "\n")
    print(table(bench.values))
    for note in bench.notes:
        print(f"not measured: {note}")
    print(f"wrote {arguments.json}")


if __name__ == "__main__":
    main()
