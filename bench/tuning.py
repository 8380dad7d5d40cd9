# SPDX-License-Identifier: Apache-2.0
"""What the data path's knobs do, measured on the cpu backend: for scripts/tuning-doc.

A mediator of its own for each value, and programs of this host at its VMs' sockets
(bench_load.c), or at its share.  A point is the median of ROUNDS runs, and the values
take turns, so that a slow moment of the machine meets all of them.
"""

import collections
import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
for directory in ("scripts", "bench", "tests/vm"):
    sys.path.insert(0, str(ROOT / directory))

from doc_plot import Curves  # noqa: E402  (the path comes first)
from harness import paths, process  # noqa: E402  (the path comes first)
from harness.mediator import Mediator  # noqa: E402  (the path comes first)
from window import cpu_ns, machine, median, pinning_worker  # noqa: E402  (the path comes first)

ROUNDS, SECONDS, LOOK_S = 5, 0.4, 0.05
# Workers have one core, the mediator and the programs the other: what they do to each other on one
# is not the knobs'.
CORES = sorted(os.sched_getaffinity(0))
ON_PROGRAMS_CORE = ["taskset", "-c", str(CORES[-1])]
VMS = {1: {"pool": "A", "priority": "high"}, 2: {"pool": "A", "priority": "low"},
       3: {"pool": "A", "priority": "low"}}


def worker_percent(pid, running):
    """Of a processor, between the first and the last look at it while `running` does."""
    looks = []
    while running.poll() is None:
        try:
            looks.append((time.monotonic_ns(), cpu_ns(pid)))
        except (FileNotFoundError, ProcessLookupError):
            break
        time.sleep(LOOK_S)
    if len(looks) < 2:
        return 0.0
    return 100 * (looks[-1][1] - looks[0][1]) / (looks[-1][0] - looks[0][0])


class Place:
    """A mediator without guests."""

    def __init__(self, vms=None, **settings):
        self.directory = process.run_directory("tuning")
        vms = vms or VMS
        self.directory.chmod(0o755)  # the workers' user runs what lies there
        worker = pinning_worker(self.directory, dict.fromkeys(vms, CORES[0]))
        settings = {"channels": "window", "run_dir": self.directory / "run", "log_level": "debug",
                    "execution_log": None, "worker": worker, **settings}
        self.mediator = Mediator(self.directory, self.directory / "share", vms, **settings)

    def __enter__(self):
        try:
            self.mediator.start()
            process.share_precedence(self.mediator.process.pid)
            os.sched_setaffinity(self.mediator.process.pid, CORES[-1:])
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *exception):
        self.end()

    def end(self):
        self.mediator.end()
        process.remove_directory(self.directory)

    def load_words(self, vm, **numbers):
        numbers = {"run_ms": int(SECONDS * 1000), **numbers}
        return [*ON_PROGRAMS_CORE, paths.BUILD / "bench/bench_load",
                self.directory / f"run/vm{vm}.sock",
                *(f"{key}={number}" for key, number in numbers.items())]

    def load(self, vm=1, **numbers):
        """What bench_load says of it, and worker_pct: of a processor that its worker took."""
        before = self.mediator.mark()
        with subprocess.Popen(self.load_words(vm, **numbers), stdout=subprocess.PIPE, text=True,
                              stdin=subprocess.DEVNULL) as running:
            pid = self.mediator.wait_event("process", vm=vm, after=before)["worker_pid"]
            percent = worker_percent(pid, running)
            said = running.communicate()[0]
        if running.returncode != 0:
            raise SystemExit(f"tuning: bench_load failed: {running.args}")
        return {**json.loads(said), "worker_pct": percent}

    @contextlib.contextmanager
    def beside(self, vm, **numbers):
        """While another VM does that."""
        other = process.Process("load", self.load_words(vm, run_ms=600000, **numbers))
        try:
            process.share_precedence(other.pid)
            self.mediator.wait_event("process", vm=vm)
            yield
        finally:
            other.kill()

    def client(self, mode, *words):
        """What vgpu-client's benchmark says, as it says it."""
        argv = [*ON_PROGRAMS_CORE, paths.client(), "--json", "bench", "--mode", mode, "--seconds", str(SECONDS), *words]
        done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True,
                              stdin=subprocess.DEVNULL)
        return json.loads(done.stdout)


def rounds(points):
    """{key: {name: the median of what points[key]() returned}}, in turns."""
    records = collections.defaultdict(list)
    for number in range(ROUNDS):
        for key, measure in points.items():
            records[key].append(measure())
        print(f"tuning: round {number + 1} of {ROUNDS}", file=sys.stderr, flush=True)
    return {key: {name: median([record[name] for record in found]) for name in found[0]}
            for key, found in records.items()}


def where(command):
    """The command, and the machine and day that its figures are of."""
    values = machine()
    return (f"{command}\n{values['machine.date']}, {values['machine.cpu']}, "
            f"{values['machine.cores']} cores, cpu backend; workers on one core, "
            "all else on another;\n"
            f"median of {ROUNDS} runs of {SECONDS} s; {os.getloadavg()[0]:.0f} programs ran or waited to "
            "run at the end\n")


def curves(command, x_title, xs, panels):
    """panels: [(title, is its axis logarithmic, {name: function of x})]"""
    return Curves(where(command), x_title, xs,
                  [(title, logarithmic, {name: [value(x) for x in xs]
                                         for name, value in series.items()})
                   for title, logarithmic, series in panels])


# --- waiting ---------------------------------------------------------------------------

SPINS_US, SPIN_PAUSE_US = [0, 20, 100, 200, 500, 1000], 200


def spin():
    def point(whose, spin_us):
        def measure():
            with Place(spin_us=spin_us if whose == "worker" else 0) as place:
                return place.load(pause_us=SPIN_PAUSE_US,
                                  spin_us=spin_us if whose == "program" else 0)
        return measure

    found = rounds({(whose, spin_us): point(whose, spin_us)
                    for whose in ("worker", "program") for spin_us in SPINS_US})

    def series(name_of):
        return {f"{whose} spins": lambda x, whose=whose: found[whose, x][name_of(whose)]
                for whose in ("worker", "program")}

    return curves(f"bench_load SOCKET pause_us={SPIN_PAUSE_US} spin_us=N|0, the mediator's spin_us=0|N",
                  "spin_us", SPINS_US,
                  [("ping: median, us", False, series(lambda whose: "p50_us")),
                   ("who spins: processor time, % of one", False, series(
                       lambda whose: "worker_pct" if whose == "worker" else "cpu_pct"))])


# --- in flight -------------------------------------------------------------------------

DEPTHS = [1, 2, 4, 8, 16, 32, 128, 256]


def depth():
    with Place() as place:
        found = rounds({number: lambda number=number: place.load(depth=number)
                        for number in DEPTHS})
    return curves("bench_load SOCKET depth=N", "operations", DEPTHS,
                  [("pings a second", True,
                    {"N in flight, published one by one": lambda x: found[x]["per_s"]}),
                   ("ping: median, us", True,
                    {"N in flight, published one by one": lambda x: found[x]["p50_us"]})])


# --- copies ----------------------------------------------------------------------------

COPIES_KIB = [4, 16, 64, 256, 1024, 4096]
COPY_WAYS = {"heap": (1, 65536), "own, window of 2 MiB": (0, 2048),
             "own, window of 16 MiB": (0, 16384)}


def copy():
    with Place() as place:
        def point(way, kib):
            heap, window_kib = COPY_WAYS[way]
            return lambda: place.load(copy_kib=kib, heap=heap, window_kib=window_kib)
        found = rounds({(way, kib): point(way, kib) for way in COPY_WAYS for kib in COPIES_KIB})
    return curves("bench_load SOCKET copy_kib=N heap=1|0 window_kib=65536|2048|16384",
                  "KiB", COPIES_KIB,
                  [("copy to the device and back, GB/s", False,
                    {f"memory: {way}": lambda x, way=way: found[way, x]["gbps"]
                     for way in COPY_WAYS})])


# --- two VMs -----------------------------------------------------------------------------

GRANTS_US = [500, 2000, 5000, 10000, 20000]
WORK = {"work_us": 200, "depth": 32}


def neighbour():
    def point(protect_ms, grant_us):
        def measure():
            with Place(grant_us=grant_us, protect_ms=protect_ms) as place, \
                    place.beside(2, **WORK), place.beside(3, **WORK):
                return place.load(pause_us=5000)
        return measure

    found = rounds({(protect_ms, grant_us): point(protect_ms, grant_us)
                    for protect_ms in (0, 100) for grant_us in GRANTS_US})
    return curves("bench_load HIGH pause_us=5000, beside two of bench_load LOW work_us=200 "
                  "depth=32",
                  "grant_us", GRANTS_US,
                  [(f"high, beside two low VMs: {title}, ms", True,
                    {f"protect_ms={protect_ms}":
                         lambda x, protect_ms=protect_ms, name=name:
                             found[protect_ms, x][name] / 1000 for protect_ms in (0, 100)})
                   for title, name in [("median", "p50_us"), ("99 % within", "p99_us")]])


# --- limits ----------------------------------------------------------------------------

RATES = [100, 1000, 10000, 100000]


def rate():
    def point(request_rate):
        def measure():
            with Place(vms={1: {"pool": "A", "request_rate": request_rate}}) as place:
                return place.load(depth=32)
        return measure

    found = rounds({request_rate: point(request_rate) for request_rate in RATES})
    return curves("bench_load SOCKET depth=32", "request_rate", RATES,
                  [("pings a second", True, {"answered": lambda x: found[x]["per_s"],
                                             "the limit": lambda x: x})])


# --- files -------------------------------------------------------------------------------

POLLS_MS = [1, 5, 20, 50]


def file():
    def point(idle_ms, poll_ms):
        def measure():
            with Place(channels="file", poll_min_ms=poll_ms, response_hold_ms=0,
                       worker_idle_ms=idle_ms) as place:
                record = place.client("file", "--dir", place.directory / "share/vm1", "--pool", "A",
                                      "--priority", "2", "--vm-id", "1")
            return {"ms": 1000 / record["file_pings_per_s"]}
        return measure

    found = rounds({(idle_ms, poll_ms): point(idle_ms, poll_ms)
                    for idle_ms in (0, 30000) for poll_ms in POLLS_MS})
    return curves("vgpu-client --dir SHARE/vm1 bench --mode file, a local share",
                  "poll_min_ms", POLLS_MS,
                  [("request through files: mean, ms", False,
                    {f"worker_idle_ms={idle_ms}": lambda x, idle_ms=idle_ms:
                         found[idle_ms, x]["ms"] for idle_ms in (30000, 0)})])


FIGURES = {figure.__name__: figure
           for figure in (spin, depth, copy, neighbour, rate, file)}
