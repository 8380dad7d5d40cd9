#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""How fast the channels are, measured side by side in one run.

usage: bench/window.py [--quick] [--only PART]... [--output FILE]

Parts:
  sched         the scheduler at 10,000 waiting VMs
  local         a process on this host at a VM's socket
  instructions  what an operation costs the guest's library, and a launch the worker (callgrind)
  guest         a real guest: its window, its own memory
  file          the same guest: files over real NFS, at their fastest
  idle          what an open session costs while nobody submits
  hostile       a guest beside one that scribbles over its window
  scale         1, 2 and 8 real guests at once

Prints a table and writes build/bench.json: flat keys, one number each; `machine.*`
says where.  Every ping counted has passed the guest's library, validation, grant
and accounting in its session's worker.  A figure is the median of several short
runs, so that what else the machine does for a moment does not count.  `make bench`
builds what this needs.
"""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/vm"))

import launches  # noqa: E402  (the path comes first)
from harness import Lab, accel, paths, process  # noqa: E402  (the path comes first)
from harness.mediator import Mediator  # noqa: E402

VMS = {vm: ("A", "medium") for vm in range(1, 9)}
# The log of executions is for tests: it costs a write(2) an operation.
PLAIN = {"execution_log": None}
FASTEST_FILES = {"poll_min_ms": 1, "poll_max_ms": 1, "response_hold_ms": 0}
BATCH = 256

# (key, unit, target, True: at most; False: at least).  A target is DESIGN's, or None.
TARGETS = [
    ("local.ping.poll.p50_us", "us", 1.0, True),
    ("local.ping.poll.p99_us", "us", None, True),
    ("local.ping.sleep.p50_us", "us", None, True),
    ("local.ping.wake.p50_us", "us", 15.0, True),
    ("host.wake.p50_us", "us", None, True),
    ("local.pings_per_s", "1/s", None, False),
    ("local.copy_gbps", "GB/s", None, False),
    ("window.ping.poll.p50_us", "us", 1.0, True),
    ("window.ping.poll.p99_us", "us", None, True),
    ("window.ping.sleep.p50_us", "us", None, True),
    ("window.ping.wake.p50_us", "us", None, True),
    ("window.pings_per_s", "1/s", 300000, False),
    ("window.pings_per_s.vms_1", "1/s", None, False),
    ("window.pings_per_s.vms_2", "1/s", None, False),
    ("window.pings_per_s.vms_8", "1/s", None, False),
    ("file.pings_per_s", "1/s", None, False),
    ("window.over_file.ratio", "", 500, False),
    ("window.copy_gbps", "GB/s", None, False),
    ("guest.memcpy_gbps", "GB/s", None, False),
    ("idle.cpu_pct", "%", None, True),
    ("idle.mediator.cpu_pct", "%", 1.0, True),
    ("idle.worker.cpu_pct", "%", 1.0, True),
    ("idle.guest.cpu_pct", "%", 1.0, True),
    ("submit.instructions", "", None, True),
    ("submit.single.instructions", "", None, True),
    ("complete.instructions", "", None, True),
    ("complete.single.instructions", "", None, True),
    ("worker_launch_async.instructions", "", None, True),
    ("worker_launch_async.driver_calls", "", None, True),
    ("worker_launch_sync.instructions", "", None, True),
    ("worker_launch_sync.driver_calls", "", None, True),
    ("hostile.victim_slowdown_ratio", "", None, True),
    ("hostile.victim_latency_ratio", "", None, True),
    ("sched.ready_ns", "ns", 100, True),
    ("sched.next_ns", "ns", 100, True),
    ("sched.wfq_next_ns", "ns", None, True),
    ("sched.list_ns", "ns", None, True),
    ("sched.heap_ns", "ns", None, True),
    ("metrics.record_ns", "ns", 100, True),
    ("metrics.record_10000_ns", "ns", None, True),
    ("metrics.line_ns", "ns", None, True),
    ("metrics.histogram_bytes", "B", None, True),
]


class Bench:
    def __init__(self, quick):
        self.quick = quick
        self.seconds = 0.2 if quick else 1
        self.repeats = 1 if quick else 5
        self.values = {}
        self.notes = []
        self._stack = contextlib.ExitStack()
        self._lab = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._stack.close()

    def put(self, key, value):
        self.values[key] = round(float(value), 3)

    def ratio(self, key, upper, lower):
        if self.values.get(upper) and self.values.get(lower):
            self.put(key, self.values[upper] / self.values[lower])

    def say(self, text):
        print(f"bench: {text}", file=sys.stderr, flush=True)

    def uses_guests(self):
        return self._lab is not None

    # --- where it is measured ------------------------------------------------------

    def lab(self):
        """Guests and their NFS server, when the first part needs them."""
        if self._lab is None:
            self._lab = self._stack.enter_context(Lab(VMS, window=True))
        return self._lab

    @contextlib.contextmanager
    def alone(self):
        """A mediator without guests; gives the socket of VM 1."""
        directory = process.run_directory("bench")
        mediator = Mediator(directory, directory / "share", {1: {"pool": "A"}}, channels="window",
                            run_dir=directory / "run", **PLAIN)
        try:
            mediator.start()
            yield directory / "run/vm1.sock"
        finally:
            mediator.end()
            process.remove_directory(directory)

    @contextlib.contextmanager
    def guests(self, *vms, **settings):
        """Those guests with the module loaded, and a mediator for them."""
        lab = self.lab()
        booted = lab.boot(*vms)
        for guest in booted:
            guest.check("test -c /dev/vgpu0 || modprobe vgpu_guest")
        mediator = lab.start_mediator(**{**PLAIN, **settings})
        try:
            for vm in vms:
                mediator.wait_event("link", vm=vm)
            yield mediator, booted
        finally:
            mediator.stop()


def median(values):
    values = sorted(values)
    return (values[(len(values) - 1) // 2] + values[len(values) // 2]) / 2


def medians(records):
    """The median of each number over several runs of the client."""
    return {key: median([record[key] for record in records]) for key, value in records[0].items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)}


def machine():
    model = re.search(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text(),
                      re.MULTILINE)
    return {"machine.cpu": model[1] if model else "unknown", "machine.cores": os.cpu_count(),
            "machine.kernel": platform.release(), "machine.date": time.strftime("%Y-%m-%d")}


WINDOW_NAMES = {"ping_poll_p50_us": "ping.poll.p50_us", "ping_poll_p99_us": "ping.poll.p99_us",
                "ping_sleep_p50_us": "ping.sleep.p50_us",
                "ping_wake_p50_us": "ping.wake.p50_us", "pings_per_s": "pings_per_s",
                "copy_gbps": "copy_gbps"}


def take(bench, prefix, record):
    for name, key in WINDOW_NAMES.items():
        bench.put(prefix + key, record[name])


def client_words(bench, mode, seconds=None):
    return ["--json", "bench", "--mode", mode, "--seconds", str(seconds or bench.seconds)]


def in_guest(bench, guest, mode, seconds=None):
    """One run of one mode in a guest."""
    words = " ".join(client_words(bench, mode, seconds))
    return json.loads(guest.check(f"vgpu-client {words}", 120))


def repeated(bench, run, modes):
    """Medians over runs in turn, so that a slow moment meets all modes."""
    records = []
    for _ in range(bench.repeats):
        records.append({})
        for mode in modes:
            records[-1].update(run(mode))
    return medians(records)


# --- parts that need no guest --------------------------------------------------------


def part_sched(bench):
    done = subprocess.run([paths.BUILD / "bench/bench_sched", "--json"], check=True,
                          stdout=subprocess.PIPE, text=True)
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def worst(what, figure):
        """Over shared and independent pools, and all depths."""
        return max(row[figure] for row in rows if row["what"] == what and row["waiting"] == 10000)

    bench.put("sched.ready_ns", worst("strict", "ready_ns"))
    bench.put("sched.next_ns", worst("strict", "next_ns"))
    bench.put("sched.wfq_next_ns", worst("wfq", "next_ns"))
    bench.put("sched.list_ns", worst("list", "next_ns"))
    bench.put("sched.heap_ns", worst("heap", "next_ns"))


def part_metrics(bench):
    done = subprocess.run([paths.BUILD / "bench/bench_metrics", "--json"], check=True,
                          stdout=subprocess.PIPE, text=True)
    for key, value in json.loads(done.stdout).items():
        bench.put(key, value)


def part_local(bench):
    with bench.alone() as socket:
        def run(mode):
            argv = [paths.client(), "--socket", socket, *client_words(bench, mode)]
            return json.loads(subprocess.run(argv, check=True, stdout=subprocess.PIPE,
                                             text=True).stdout)
        def run_or_wake(mode):
            if mode != "host":
                return run(mode)
            argv = [paths.BUILD / "bench/bench_wake", str(bench.seconds)]
            return {"host": float(subprocess.run(argv, check=True, stdout=subprocess.PIPE).stdout)}
        record = repeated(bench, run_or_wake, ["poll", "sleep", "wake", "host", "batch", "copy"])
        take(bench, "local.", record)
        bench.put("host.wake.p50_us", record["host"])


def instructions(socket, function, count, batch):
    """Inside of `function`, an operation."""
    output = socket.parent / f"callgrind-{function}-{batch}"
    subprocess.run(["valgrind", "--tool=callgrind", f"--toggle-collect={function}",
                    "--collect-atstart=no", f"--callgrind-out-file={output}",
                    paths.BUILD / "bench/bench_ring", socket, str(count), str(batch)], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=300)
    total = re.search(r"^(?:summary|totals): (\d+)", output.read_text(), re.MULTILINE)
    return int(total[1]) / count


def part_instructions(bench):
    with bench.alone() as socket:
        for name, function in [("submit", "vgpu_submit"), ("complete", "vgpu_poll")]:
            bench.put(f"{name}.instructions", instructions(socket, function, 100 * BATCH, BATCH))
            bench.put(f"{name}.single.instructions", instructions(socket, function, 500, 1))
    for key, value in launches.measure(bench.quick).items():
        bench.put(key, value)


# --- real guests ---------------------------------------------------------------------


def part_guest(bench):
    with bench.guests(1) as (_, [guest]):
        record = repeated(bench, lambda mode: in_guest(bench, guest, mode),
                          ["poll", "sleep", "wake", "batch", "copy", "memcpy"])
    take(bench, "window.", record)
    bench.put("guest.memcpy_gbps", record["memcpy_gbps"])


def part_file(bench):
    with bench.guests(1, **FASTEST_FILES) as (_, [guest]):
        record = repeated(bench, lambda mode: in_guest(bench, guest, mode), ["file"])
    bench.put("file.pings_per_s", record["file_pings_per_s"])


def cpu_ns(pid):
    """CPU time of all threads of a process of this host."""
    total = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        total += int((task / "schedstat").read_text().split()[0])
    return total


def part_idle(bench):
    """Host processes by what the kernel says of them, the guest's by getrusage() there."""
    wait_s = 1 if bench.quick else 5
    with bench.guests(1, log_level="debug") as (mediator, [guest]):
        job = guest.spawn("vgpu-client " + " ".join(client_words(bench, "idle", wait_s + 2)))
        pids = {"mediator": mediator.process.pid,
                "worker": mediator.wait_event("process", vm=1)["worker_pid"]}
        time.sleep(1)  # what opening cost is not meant
        began_ns = time.monotonic_ns()
        before = {name: cpu_ns(pid) for name, pid in pids.items()}
        time.sleep(wait_s)
        after = {name: cpu_ns(pid) for name, pid in pids.items()}
        took_ns = time.monotonic_ns() - began_ns
        used = {name: 100 * (after[name] - before[name]) / took_ns for name in pids}
        used["guest"] = json.loads(job.wait(60)[1])["idle_cpu_pct"]
    for name, percent in used.items():
        bench.put(f"idle.{name}.cpu_pct", percent)
    bench.put("idle.cpu_pct", sum(used.values()))


def part_scale(bench):
    """Started together; each tells its own rate over its own time."""
    seconds = bench.seconds if bench.quick else 5
    with bench.guests(*VMS) as (_, guests):
        for count in (1, 2, 8):
            words = " ".join(client_words(bench, "batch", seconds))
            jobs = [guest.spawn(f"vgpu-client {words}") for guest in guests[:count]]
            bench.put(f"window.pings_per_s.vms_{count}",
                      sum(json.loads(job.wait(240)[1])["pings_per_s"] for job in jobs))


# --- beside an attacker ----------------------------------------------------------------


def pinning_worker(directory, cores):
    """A program in the worker's place that takes each VM's worker to that VM's cores."""
    cases = "".join(f"*' --vm {vm} '*) cores={where} ;;\n" for vm, where in cores.items())
    program = directory / "pinned-worker"
    program.write_text(f"#!/bin/sh\ncase \" $* \" in\n{cases}esac\n"
                       f"exec taskset -c \"$cores\" {paths.worker()} \"$@\"\n")
    program.chmod(0o755)
    return program


def part_hostile(bench):
    """Victim and attacker on cores, and devices, of their own."""
    count = os.cpu_count() or 1
    if count < 2:
        bench.notes.append("hostile: needs two cores")
        return
    cores = {1: "0,1", 2: "2,3"} if count >= 4 else {1: "0", 2: "1"}
    lab = bench.lab()
    settings = {"vms": {1: ("A", "medium"), 2: ("B", "medium")},
                "pools": {"A": "cpu:0", "B": "cpu:1"}, "worker": pinning_worker(lab.directory, cores)}
    if count < 4:
        settings["spin_us"] = 0  # its guest has the same core
    alone, beside = [], []
    with bench.guests(1, 2, **settings) as (_, [victim, attacker]):
        for vm, guest in [(1, victim), (2, attacker)]:
            process.run(["taskset", "-a", "-p", "-c", cores[vm], guest.process.pid])
        for seed in range(bench.repeats):
            alone.append(victim_figures(bench, victim))
            job = attacker.spawn(f"scribbler node {seed + 1} 60 /dev/vgpu0")
            time.sleep(0.5)
            beside.append(victim_figures(bench, victim))
            job.kill(9)
            job.wait(30)
        for vm, guest in [(1, victim), (2, attacker)]:
            process.run(["taskset", "-a", "-p", "-c", f"0-{count - 1}", guest.process.pid])
    alone, beside = medians(alone), medians(beside)
    bench.put("hostile.victim_slowdown_ratio", alone["pings_per_s"] / beside["pings_per_s"])
    bench.put("hostile.victim_latency_ratio",
              beside["ping_sleep_p50_us"] / alone["ping_sleep_p50_us"])


def victim_figures(bench, victim):
    return {**in_guest(bench, victim, "batch"), **in_guest(bench, victim, "sleep")}


# --- all -----------------------------------------------------------------------------

PARTS = {"sched": part_sched, "metrics": part_metrics, "local": part_local, "instructions": part_instructions,
         "guest": part_guest, "file": part_file, "idle": part_idle, "hostile": part_hostile,
         "scale": part_scale}


def verdict(value, target, at_most):
    if target is None:
        return ""
    return "met" if (value <= target if at_most else value >= target) else "MISSED"


def table(values):
    lines = [f"{'key':34} {'value':>14} {'unit':5} {'target':>12}"]
    for key, unit, target, at_most in TARGETS:
        if key in values:
            sign = "" if target is None else f"{'<=' if at_most else '>='} {target:g}"
            lines.append(f"{key:34} {values[key]:14,.3f} {unit:5} {sign:>12} "
                         f"{verdict(values[key], target, at_most)}".rstrip())
    return "\n".join(lines)


def measure(bench, parts):
    bench.values.update(machine())
    for part in parts:
        began = time.monotonic()
        PARTS[part](bench)
        bench.say(f"{part} took {time.monotonic() - began:.1f} s")
    bench.ratio("window.over_file.ratio", "window.pings_per_s", "file.pings_per_s")
    if bench.uses_guests():
        bench.values["machine.accel"] = accel.accelerator()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="short runs, once each: for tests")
    parser.add_argument("--only", action="append", choices=PARTS, help="these parts, not all")
    parser.add_argument("--output", type=pathlib.Path, default=paths.BUILD / "bench.json")
    arguments = parser.parse_args()
    process.install_cleanup()
    with Bench(arguments.quick) as bench:
        measure(bench, arguments.only or PARTS)
    arguments.output.write_text(json.dumps(bench.values, indent=1, sort_keys=True) + "\n")
    print(table(bench.values))
    for note in bench.notes:
        print(f"not measured: {note}")
    print(f"wrote {arguments.output}")


if __name__ == "__main__":
    main()
