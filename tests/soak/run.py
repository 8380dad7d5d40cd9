#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Many real VMs, both pools, mixed load, faults, one restart of the mediator.

usage: tests/soak/run.py [--duration SECONDS] [--vms N] [--seed N] [--output DIR] [--plan]

What is done when follows from the arguments (plan.py); what is right is judged at the
end (verdict.py); DIR gets the report (report.py).  Exit status: 0 passed, 1 failed,
2 wrong arguments.  `make soak` builds what this needs.

    boot, a few at a time ▶ at rest: what is held ▶ load and faults ▶ at rest: the same is held
"""

import os
import pathlib
import random
import signal
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "vm")]

import load  # noqa: E402  (the path comes first)
import plan  # noqa: E402
import report  # noqa: E402
import verdict  # noqa: E402
from harness import accel, process  # noqa: E402
from harness.guest import GuestError  # noqa: E402
from harness.mediator import MediatorError  # noqa: E402
from harness.windows import WindowLab  # noqa: E402

GUEST_MEMORY_MIB = 128
BOOTING_AT_A_TIME = 10
MODULE_S = 240  # for a guest to be up again, or to have a session, while all others work
REST_S = 60
SAMPLE_EVERY_S = 1
THINK_US = 600000  # of a session, between bursts of up to 16 operations
FILE_THINK_S = 1
DOWN_S = 0.5       # the mediator, at its restart
OPERATION_LIMIT_MS = 120000  # a slow machine is no fault of a guest


def say(text):
    print(f"soak: {text}", file=sys.stderr, flush=True)


def descriptors(pid):
    """{what: how many} that the process holds; numbers in names do not count."""
    found = {}
    for path in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            what = os.readlink(path).partition(":[")[0]
        except OSError:
            continue
        found[what] = found.get(what, 0) + 1
    return found


def memory_kib(pid):
    """The process's own memory: without what it shares with guests and workers."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/{pid}/status has no RssAnon: this kernel is too old")


class Soak:
    def __init__(self, options, lab):
        self.options, self.lab = options, lab
        self.started = time.monotonic()
        self.deadline = self.started + options.duration
        self.rng = random.Random(options.seed)
        self.problems = []
        self.loads = {}      # vm_id: the one that runs
        self.past = []       # loads that have ended
        self.files = []
        self.booting = {}    # vm_id: until when it must be up again
        self.lives = [[]]    # samples of the mediator's memory
        self.faults = dict.fromkeys(["worker", "file_worker", "client", "reset", "mediator"], 0)
        self.skipped = 0
        self.last_number = 0
        self.next_sample = 0

    # --- up ---------------------------------------------------------------------

    def boot(self):
        """A few at a time; returns the seconds until all were up."""
        waiting, booting = list(self.lab.vms), {}
        limit = self.started + self.options.duration * plan.BOOT_SHARE
        while waiting or booting:
            while waiting and len(booting) < BOOTING_AT_A_TIME:
                vm_id = waiting.pop(0)
                booting[vm_id] = self.lab.guest(vm_id).start()
            for vm_id, guest in list(booting.items()):
                if guest.ready():
                    del booting[vm_id]
            if time.monotonic() > limit:
                up = len(self.lab.vms) - len(waiting) - len(booting)
                raise RuntimeError(f"{up} of {len(self.lab.vms)} guests are up within "
                                   f"{limit - self.started:.0f} s: give more "
                                   "time (DURATION) or fewer guests (--vms)")
            time.sleep(0.05)
        for vm_id in self.lab.vms:
            self.await_module(vm_id)
        return time.monotonic() - self.started

    def await_module(self, vm_id):
        """Until a session can be opened."""
        script = ("n=0; until session open close | grep -q 'open 0'; do "
                  "n=$((n + 1)); [ $n -lt 200 ] || exit 1; usleep 200000; done")
        self.lab.guest(vm_id).check(script, MODULE_S)

    # --- at rest ----------------------------------------------------------------

    def held(self):
        """What is held while nobody has a session."""
        deadline = time.monotonic() + REST_S
        while self.lab.workers() and time.monotonic() < deadline:
            time.sleep(0.2)
        pid = self.lab.mediator_pid()
        roots = [self.lab.run, self.lab.mediator.state_dir]
        return {"descriptors": descriptors(pid), "workers": self.lab.workers(),
                "files": sorted(str(path.relative_to(self.lab.directory))
                                for root in roots for path in root.rglob("*"))}

    # --- load -------------------------------------------------------------------

    def start_load(self, vm_id):
        self.last_number += 1
        self.loads[vm_id] = load.GuestLoad(self.lab.guest(vm_id), vm_id, self.last_number,
                                           plan.sessions_of(vm_id), THINK_US)

    def open_files(self):
        for vm_id in plan.file_vms(self.options.vms):
            pool, priority = self.lab.vms[vm_id]
            self.files.append(load.FileLoad(vm_id, pool, priority, self.lab.share,
                                            self.options.seed, FILE_THINK_S))
            # The mediator's own session for it stays, so it is there before what is held is seen.
            self.files[-1].request("PING")

    def retire(self, vm_id):
        self.past.append(self.loads.pop(vm_id))
        return self.past[-1]

    def look(self):
        """What is to be done all the time."""
        now = time.monotonic()
        if now >= self.next_sample:
            self.next_sample = now + SAMPLE_EVERY_S
            self.lives[-1].append((round(now - self.started, 1),
                                   memory_kib(self.lab.mediator_pid())))
        for vm_id, until in list(self.booting.items()):
            if self.lab.guest(vm_id).ready():
                del self.booting[vm_id]
                self.start_load(vm_id)
            elif now > until:
                raise RuntimeError(f"vm{vm_id} is not up again\n"
                                   f"{self.lab.guest(vm_id).console_tail()}")
        for one in list(self.loads.values()):
            if one.ended_by_itself():
                self.problems.append(one.finish() or f"vm{one.vm_id}: load {one.number} ended")
                self.retire(one.vm_id)

    # --- faults -----------------------------------------------------------------

    def fault(self, kind):
        done = getattr(self, f"fault_{kind}")()
        self.faults[kind] += done
        self.skipped += not done

    def fault_worker(self):
        return self.kill_one(self.lab.workers())

    def fault_file_worker(self):
        return self.kill_one(self.lab.file_workers())

    def kill_one(self, living):
        if not living:
            return False
        try:
            os.kill(self.rng.choice(living), signal.SIGKILL)
        except ProcessLookupError:
            return False  # its client was faster
        return True

    def fault_client(self):
        if not self.loads:
            return False
        vm_id = self.rng.choice(sorted(self.loads))
        self.retire(vm_id).kill()
        self.start_load(vm_id)
        return True

    def fault_reset(self):
        if not self.loads:
            return False
        vm_id = self.rng.choice(sorted(self.loads))
        self.retire(vm_id).forget()
        self.lab.guest(vm_id).reset()
        self.booting[vm_id] = time.monotonic() + MODULE_S
        return True

    def fault_mediator(self):
        self.lab.mediator.kill()
        time.sleep(DOWN_S)
        self.lives.append([])
        self.lab.mediator.start()
        return True

    # --- all of it --------------------------------------------------------------

    def run_load(self):
        """Returns how many seconds it lasted."""
        began = time.monotonic()
        load_s = self.deadline - plan.END_RESERVE_S - began
        for vm_id in self.lab.vms:
            self.start_load(vm_id)
        for one in self.files:
            one.start()
        for at, kind in plan.faults(self.options.seed, load_s):
            while time.monotonic() < began + at:
                self.look()
                time.sleep(0.1)
            self.fault(kind)
        while time.monotonic() < began + load_s or self.booting:
            self.look()
            time.sleep(0.1)
        return time.monotonic() - began

    def end_load(self):
        every = [*self.loads.values(), *self.files]
        for one in every:
            one.ask_to_end()
        for one in self.files:
            one.finish()
            self.problems += one.problems
        for vm_id in list(self.loads):
            try:
                problem = self.retire(vm_id).finish()
            except GuestError as error:
                problem = f"vm{vm_id}: its load does not end: {error}"
            self.problems += [problem] if problem else []

    def judge(self, before, after):
        """Returns the figures; problems are added."""
        with open(self.lab.mediator.execution_log, "rb") as lines:
            executions = verdict.Executions(lines, {one.number: one.vm_id for one in self.past})
        for one in self.past:
            self.problems += verdict.account_problems(one.number, one.account,
                                                      executions.counts[one.number])
        again = {(event["vm"], event["sequence"])
                 for event in self.lab.mediator.events("recovery") if "again" in event["how"]}
        self.problems += verdict.file_problems(executions, again)
        self.problems += verdict.idle_problems(
            {vm_id: sum(executions.begun(one.number) for one in self.past if one.vm_id == vm_id)
             for vm_id in self.lab.vms},
            {one.vm_id: one.right for one in self.files}, self.faults)
        self.problems += verdict.memory_problems(self.lives)
        self.problems += verdict.leak_problems(before, after)
        if executions.torn > self.faults["worker"] + self.faults["file_worker"]:
            self.problems.append(f"execution log: {executions.torn} torn lines")
        return self.figures(executions, before, after)

    def figures(self, executions, before, after):
        letters = verdict.letters(one.account for one in self.past)
        told = {}
        for one in self.files:
            for text, count in one.told.items():
                told[text] = told.get(text, 0) + count
        return {
            "window": {
                "operations_begun": sum(executions.begun(one.number) for one in self.past),
                "right": letters.get("o", 0), "device_lost": letters.get("l", 0),
                "closed_by_client": letters.get("a", 0), "quiet_unknown": letters.get("q", 0),
                "unanswered": letters.get("u", 0),
                "loads": len(self.past),
                "loads_with_account": sum(one.how == "ended" for one in self.past)},
            "file": {"right": sum(one.right for one in self.files), "told": told},
            "faults": {**self.faults, "skipped": self.skipped},
            "mediator": {
                "memory_kib": [[life[0][1], life[-1][1]] if life else [] for life in self.lives],
                "growth_kib": [verdict.growth_kib(life) for life in self.lives],
                "descriptors": [sum(held["descriptors"].values()) for held in (before, after)],
                "files": [len(held["files"]) for held in (before, after)]}}

    def run(self):
        """Returns the result for the report."""
        result = {"command": plan.command(self.options),
                  "date": report.now(), "source": report.source(),
                  "machine": report.machine(accel.accelerator()),
                  "duration_s": self.options.duration, "vms": self.options.vms,
                  "guest_memory_mib": GUEST_MEMORY_MIB, "seed": self.options.seed,
                  "problems": self.problems}
        try:
            self.lab.start()
            result["boot_s"] = round(self.boot(), 1)
            say(f"{self.options.vms} guests are up after {result['boot_s']} s")
            self.open_files()
            before = self.held()
            result["load_s"] = round(self.run_load(), 1)
            say("the load ends")
            self.end_load()
            after = self.held()
            result.update(self.judge(before, after))
            self.stop_mediator()
            result["samples"] = self.lives
        except (RuntimeError, OSError, GuestError, MediatorError) as error:
            self.problems.append(f"could not go on: {error}")
        finally:
            for one in self.files:
                one.abandon()
        result["took_s"] = round(time.monotonic() - self.started, 1)
        return result

    def stop_mediator(self):
        status = self.lab.mediator.stop()
        if status != 0:
            self.problems.append(f"the mediator ended with status {status}")
        left = process.end_marked([self.lab.directory / "mediator"], patience=5)
        self.problems += [f"process {pid} outlived the mediator" for pid in left]


def main(argv=None):
    options = plan.arguments(argv)
    print(plan.text(options), flush=True)
    if options.plan:
        return 0
    process.install_cleanup()
    with WindowLab(plan.vms(options.vms), pools=plan.POOLS, memory_mib=GUEST_MEMORY_MIB,
                   channels="file window", operation_limit_ms=OPERATION_LIMIT_MS) as lab:
        soak = Soak(options, lab)
        result = soak.run()
        if soak.problems:
            say(lab.mediator.log_tail())
    data, words = report.write(result, options.output)
    print(words.read_text(), end="")
    say(f"report: {data} and {words}")
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
