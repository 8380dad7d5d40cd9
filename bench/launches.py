# SPDX-License-Identifier: Apache-2.0
"""What a launch costs a session's worker, counted and not timed: any host gives the same.

The worker of a real mediator runs under callgrind, on a double of NVIDIA's library whose work
has ended when a call returns.  bench_launch.c lets it always have the next operation.  The
difference of two runs is that of their operations: start and end do not count.  Nor does what
the double does, and what it calls.

The worker cannot confine itself there, since valgrind has no seccomp(2): a double of that
library is loaded before it.  No instruction of an operation differs by that.
"""

import collections
import shutil
import subprocess
import time

from harness import paths, process
from harness.mediator import Mediator

COUNTS, QUICK_COUNTS = (2000, 12000), (200, 1200)
START_S = 120
# A worker writes what it has counted when it is about to sleep.
CALLGRIND = ["valgrind", "--quiet", "--vgdb=no", "--tool=callgrind", "--dump-before=epoll_wait",
             "--compress-strings=no", "--compress-pos=no"]
DRIVER = "libcuda.so.1"


class Profile:
    """What callgrind counted, of one or several of its files."""

    def __init__(self, texts=()):
        self.instructions = 0  # without those behind calls of the driver
        self.calls = collections.Counter()  # of the driver's functions
        for text in texts:
            self._add(text.splitlines())

    def _add(self, lines):
        """A line "calls=COUNT" is followed by one with the cost of all that was called."""
        own = called = name = ""
        count = None
        for line in lines:
            word, _, value = line.partition("=")
            if word == "ob":
                own = value
            elif word == "cob":
                called = value
            elif word == "cfn":
                name = value
            elif word == "calls":
                count = int(value.split()[0])
            elif line[:1].isdigit():
                self._add_cost(int(line.split()[1]), own, called or own, name, count)
                if count is not None:
                    called, count = "", None

    def _add_cost(self, cost, own, called, name, count):
        if count is None:
            self.instructions += cost
        elif called.endswith(DRIVER) and not own.endswith(DRIVER):
            self.instructions -= cost
            self.calls[name] += count


def write_worker(directory):
    """A program in the worker's place: it, under callgrind.  Its user may write there."""
    output = directory / "profiles"
    output.mkdir()
    output.chmod(0o777)
    program = directory / "counted-worker"
    words = [*CALLGRIND, f"--callgrind-out-file={output / 'profile'}", str(paths.worker())]
    program.write_text(f"#!/bin/sh\nexport LD_PRELOAD={paths.BUILD}/tests/doubles/fake_seccomp.so\n"
                       f"exec {' '.join(words)} \"$@\"\n")
    program.chmod(0o755)
    return program


def make_mediator(directory):
    directory.chmod(0o755)
    library = directory / DRIVER
    shutil.copy(paths.BUILD / "tests/doubles/fake_cuda.so", library)
    library.with_name(DRIVER + ".conf").write_text("engines 0\n")
    return Mediator(directory / "mediator", directory / "share", {1: {"pool": "A"}},
                    pools={"A": "cuda:0"}, channels="window", run_dir=directory / "run",
                    worker=write_worker(directory), cuda_library=library, execution_log=None)


def wait_for_profile(directory, launches):
    """Until the worker sleeps behind so many of them."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        texts = [path.read_text() for path in (directory / "profiles").glob("profile.*")]
        profile = Profile(text for text in texts if "\ntotals: " in text)
        if profile.calls["cuLaunchKernel"] >= launches:
            return profile
        time.sleep(0.05)
    raise SystemExit(f"launches: the worker told of {profile.calls['cuLaunchKernel']} launches "
                     f"within {START_S} s, expected {launches}")


def profile_of(count, every):
    """Of a worker that did `count` launches, with a synchronisation behind each `every`."""
    directory = process.run_directory("launches")
    mediator = make_mediator(directory)
    try:
        mediator.start()
        argv = [paths.BUILD / "bench/bench_launch", directory / "run/vm1.sock", str(count),
                str(every)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True) as client:
            if client.stdout.readline() != "done\n":
                raise SystemExit(f"launches: bench_launch failed\n{mediator.log_tail()}")
            profile = wait_for_profile(directory, count)
            client.communicate()
        return profile
    finally:
        mediator.end()
        process.remove_directory(directory)


def measure(quick):
    """{key: of one launch, and of one launch with a synchronisation behind it}"""
    few, many = QUICK_COUNTS if quick else COUNTS
    values = {}
    for name, every in [("worker_launch_async", many + 1), ("worker_launch_sync", 1)]:
        before, after = profile_of(few, every), profile_of(many, every)
        calls = sum((after.calls - before.calls).values())
        values[f"{name}.instructions"] = \
            (after.instructions - before.instructions) / (many - few)
        values[f"{name}.driver_calls"] = calls / (many - few)
    return values
