#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""The main job, to look at: three real VMs share one device, in the right order.

usage: demo/run.py [--policy strict|fifo] [--channel window|file]

Each VM has a vgpu-stub device that tells its pool and priority and shares memory
with the host, its window.  In every round all three send a request through it,
the least important one first; the mediator holds them until all three wait, then
lets the scheduler choose.  What the scheduler should have chosen is computed
apart from it, in order.py.

Then one of them shows the difference: the window against files over a real NFS
server, which is how a VM without the device's window would send.

--policy fifo runs the mediator first come, first served: the check must then
say `order wrong`.  --channel file plays the rounds over NFS.

The last line is the verdict.  Exit status: 0 all right, 1 not, 130 interrupted.
`make demo` builds what this needs and calls it.
"""

import argparse
import json
import os
import pathlib
import sys
import time
import traceback

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent / "tests/vm"))

from harness import Lab, process  # noqa: E402  (the paths come first)
from order import PRIORITY_NAMES, Request, verdict  # noqa: E402

VMS = {1: ("A", "low"), 2: ("A", "high"), 3: ("B", "medium")}
LEVELS = {name: number for number, name in PRIORITY_NAMES.items()}
ROUNDS = [
    {1: "VECTOR_ADD", 3: "VECTOR_ADD", 2: "VECTOR_ADD"},
    {3: "MATRIX_MUL 128", 1: "MATRIX_MUL 64", 2: "MATRIX_MUL 256"},
    {1: "1000:1", 3: "3000:3", 2: "2000:2"},
    {3: "SPIN 300", 1: "SPIN 400", 2: "SPIN 200"},
]
ANSWER_TIMEOUT_S = 60


class Screen:
    """Lines for a person; colours only where a terminal shows them."""

    COLOURS = {"high": "31", "medium": "33", "low": "36", "good": "32", "bad": "31", "dim": "2"}

    def __init__(self):
        self.coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        self.began = time.monotonic()

    def colour(self, name, text):
        return f"\033[{self.COLOURS[name]}m{text}\033[0m" if self.coloured else text

    def say(self, text=""):
        print(text, flush=True)

    def step(self, text):
        self.say(self.colour("dim", f"{time.monotonic() - self.began:6.1f} s  {text}"))


class View:
    """The mediator's events as a live table."""

    def __init__(self, screen):
        self.screen = screen
        self.seen = 0
        self.place = 0
        self.vms = {}
        self.commands = {}  # what was sent: of a window the mediator knows turns only

    def _command(self, event):
        return event.get("command") or self.commands[event["vm"]]

    def show(self, events):
        for event in events[self.seen:]:
            kind = event.get("event")
            if kind == "queue":
                self.vms[event["vm"]] = (event["pool"], PRIORITY_NAMES[event["priority"]])
                self._line(event["vm"], "asks", self._command(event))
            elif kind == "process":
                self.place += 1
                self._line(event["vm"], f"runs {self.place}.", self._command(event))
            elif kind == "response":
                self._line(event["vm"], "answered", event["answer"])
            elif kind == "returned":
                self._line(event["vm"], "done", "")
        self.seen = len(events)

    def _line(self, vm, what, text):
        pool, priority = self.vms.get(vm, VMS[vm])
        name = self.screen.colour(priority, f"{priority:8}")
        since = time.monotonic() - self.screen.began
        self.screen.say(f"{since:6.1f} s  vm{vm:<2} {pool:4} {name}  {what:10} {text}")


def seen_by(guest):
    """The device, in the guest's own words."""
    device = json.loads(guest.check("vgpu-client --json info"))["devices"][0]
    says = {register["name"]: register["meaning"] for register in device["registers"]}
    return (f"vgpu-stub at {device['address']}: {says['pool_id']}, "
            f"priority {says['priority']}, vm {says['vm_id']}")


def play_round(lab, mediator, view, commands, channel):
    """All send, one after the other; returns what each guest wrote down."""
    jobs = {}
    done = "response" if channel == "file" else "returned"
    answered = len(mediator.events(done))
    view.commands = commands
    for vm, command in commands.items():
        before = mediator.mark()
        jobs[vm] = lab.guest(vm).spawn(f"vgpu-client --json --channel {channel} "
                                       f"--timeout {ANSWER_TIMEOUT_S} {command}")
        mediator.wait_event("queue", after=before, vm=vm)
        view.show(mediator.events())
    while not all(job.done() for job in jobs.values()):
        view.show(mediator.events())
        time.sleep(0.02)
    mediator.wait_event(done, count=answered + len(commands))
    view.show(mediator.events())
    if channel == "window":
        for vm, job in jobs.items():
            record = json.loads(job.wait()[1].splitlines()[-1])
            view.screen.say(f"{'':9} vm{vm:<2} got {record['answer']['message']}")
    return [Request.from_client(line) for job in jobs.values()
            for line in job.wait()[1].splitlines() if line.startswith("{")]


def show_difference(screen, lab):
    """One VM, nobody else, each channel at its best."""
    guest = lab.guest(2)
    mediator = lab.start_mediator(poll_min_ms=1)
    mediator.wait_event("link", vm=2)
    screen.step("vm2 measures both channels, alone, for a second each")
    bench = json.loads(guest.check("vgpu-client --json bench --seconds 1", 120))
    mediator.stop()
    window, files = bench["pings_per_s"], bench["file_pings_per_s"]
    screen.say(f"\n  window          {bench['ping_poll_p50_us']:10.1f} us a request, one at a time"
               f"{window:14,.0f} a second in batches")
    screen.say(f"  files over NFS  {1e6 / files:10.1f} us a request, one at a time"
               f"{files:14,.0f} a second")
    screen.say(f"  the window answers {window / files:,.0f} times as many")


def play(screen, policy, channel):
    """Returns the verdict's line and whether all was right."""
    screen.step("starting an NFS server with one export a VM")
    with Lab(VMS, window=True) as lab:
        screen.step("booting three VMs, each with a vgpu-stub device and its kernel module")
        for guest in lab.boot():
            guest.check("modprobe vgpu_guest")
            screen.step(f"{guest.name} is up after {guest.boot_s:.1f} s and sees {seen_by(guest)}")
        mediator = lab.start_mediator(policy=policy, arguments=["--hold-until", str(len(VMS))])
        mediator.wait_event("link", count=len(VMS))
        view = View(screen)
        requests = []
        for number, commands in enumerate(ROUNDS, 1):
            screen.say(f"\nround {number} of {len(ROUNDS)}: sent in the order "
                       + ", ".join(f"vm{vm} ({VMS[vm][1]})" for vm in commands))
            requests += play_round(lab, mediator, view, commands, channel)
        mediator.stop()
        registry = {vm: (pool, LEVELS[priority]) for vm, (pool, priority) in VMS.items()}
        text, fine, problems = verdict(mediator.events(), requests, registry)
        screen.say()
        show_difference(screen, lab)
        screen.say()
        for problem in problems:
            screen.say(screen.colour("bad", f"  {problem}"))
        screen.step("ending the VMs, the NFS server and their networks")
    return text, fine


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--policy", choices=["strict", "fifo"], default="strict",
                        help="the mediator's scheduling; fifo shows that the check can fail")
    parser.add_argument("--channel", choices=["window", "file"], default="window",
                        help="how the requests of the rounds travel")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        print("demo: needs root: it makes network namespaces and runs an NFS server",
              file=sys.stderr)
        return 1
    process.install_cleanup()
    screen = Screen()
    try:
        text, fine = play(screen, arguments.policy, arguments.channel)
    except KeyboardInterrupt:
        screen.say("demo: interrupted, all was cleaned up")
        return 130
    except Exception as error:  # noqa: BLE001  (a demo ends with a verdict, whatever happens)
        traceback.print_exc(limit=-2, file=sys.stdout)
        screen.say(screen.colour("bad", f"demo: could not be played: {error!r}"))
        return 1
    screen.say(screen.colour("good" if fine else "bad", text))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
