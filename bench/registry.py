#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""How long vgpu-admin takes with many VMs in its database.

usage: bench/registry.py [--vms N] [--live N] [--runs N]

Makes a database of N VMs (10,000) and times list-vms; then one of as many as a
mediator can serve with this process's bound on open files (or --live), starts the
mediator, and times status, list-vms and a change that the mediator applies.  Figures are
medians of several runs of the whole program.  VGPU_BUILD_DIR names the build (build).
"""

import argparse
import contextlib
import os
import pathlib
import resource
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
BUILD = pathlib.Path(os.environ.get("VGPU_BUILD_DIR", ROOT / "build")).resolve()
ADMIN = BUILD / "src/admin/vgpu-admin"
MEDIATOR = BUILD / "src/mediator/vgpu-mediator"
FILES_A_VM = 26
FILES_OF_ITS_OWN = 64
READY_S = 300


class Registry:
    """A configuration and a database of so many VMs in a directory."""

    def __init__(self, place, count):
        self.place = pathlib.Path(place)
        self.config = self.place / "mediator.conf"
        self.config.write_text(f"[mediator]\nshare = {place}/share\nstate_dir = {place}/state\n"
                               f"database = {place}/vgpu.db\nchannels = file window\n"
                               "[admin]\ntoolstack = none\n")
        self.run("init")
        with contextlib.closing(sqlite3.connect(self.place / "vgpu.db")) as rows:
            rows.executemany(
                "INSERT INTO vms (vm_id, name, pool, priority, created_us) VALUES (?, ?, ?, ?, ?)",
                [(number, f"vm{number}", "AB"[number % 2], number % 3, number)
                 for number in range(1, count + 1)])
            rows.commit()

    def run(self, *words):
        return subprocess.run([ADMIN, words[0], "--config", self.config, *words[1:]], check=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True).stdout

    def median_ms(self, runs, *words):
        taken = []
        for _ in range(runs):
            begin = time.perf_counter()
            self.run(*words)
            taken.append((time.perf_counter() - begin) * 1000)
        return statistics.median(taken)


@contextlib.contextmanager
def serving(registry):
    log = registry.place / "log"
    with open(log, "w", encoding="utf-8") as stream:
        mediator = subprocess.Popen([MEDIATOR, "--config", registry.config], stdout=stream,
                                    stderr=stream, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + READY_S
        while "READY" not in log.read_text(encoding="utf-8"):
            if mediator.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the mediator did not start: {log.read_text(encoding='utf-8')[-2000:]}")
            time.sleep(0.05)
        yield mediator
    finally:
        mediator.terminate()
        mediator.wait()


def show(what, count, value, unit):
    print(f"{what:34} {count:8,} VMs {value:10,.1f} {unit}", flush=True)


def measure_offline(count, runs):
    with tempfile.TemporaryDirectory() as place:
        registry = Registry(place, count)
        for words in (["list-vms"], ["list-vms", "--json"], ["list-vms", "--pool", "A"],
                      ["show-vm", f"vm{count}"]):
            show(" ".join(words).replace(f"vm{count}", "NAME"), count,
                 registry.median_ms(runs, *words), "ms")


def measure_live(count, runs):
    with tempfile.TemporaryDirectory() as place:
        registry = Registry(place, count)
        with serving(registry) as mediator:
            files = len(os.listdir(f"/proc/{mediator.pid}/fd"))
            show("open files of the mediator", count, files, "")
            for words in (["status"], ["status", "--json"], ["list-vms"]):
                show(f"{' '.join(words)}, mediator up", count, registry.median_ms(runs, *words),
                     "ms")
            priorities = iter(["low", "medium", "high"] * runs)
            show("set-priority, applied", count, statistics.median(
                registry.median_ms(1, "set-priority", "1", next(priorities))
                for _ in range(runs)), "ms")


def main():
    parser = argparse.ArgumentParser(description="How long vgpu-admin takes with many VMs.")
    most = (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - FILES_OF_ITS_OWN) // FILES_A_VM
    parser.add_argument("--vms", type=int, default=10000, metavar="N")
    parser.add_argument("--live", type=int, default=min(most, 10000), metavar="N")
    parser.add_argument("--runs", type=int, default=9, metavar="N")
    options = parser.parse_args()
    measure_offline(options.vms, options.runs)
    measure_live(options.live, options.runs)


if __name__ == "__main__":
    main()
