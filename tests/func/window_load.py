# SPDX-License-Identifier: Apache-2.0
"""Programs that keep windows busy and keep an account (tests/vm/guest/window-load.c)."""

import os
import pathlib
import re
import signal
import subprocess

from support import REPOSITORY, WAIT_S, wait_until

SOURCE = REPOSITORY / "tests/vm/guest/window-load.c"

# A worker that is killed while it writes a line leaves the beginning of one.
_EXECUTION = re.compile(rb"\d+ vm=(\d+) slot=\d+ generation=\d+ sequence=\d+ cookie=(\d+) "
                        rb"opcode=\d+$")


def build(directory):
    path = pathlib.Path(directory) / "window-load"
    subprocess.run(["cc", "-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror",
                    f"-I{REPOSITORY}/include", "-o", path, SOURCE], check=True)
    return path


class Load:
    """One process with sessions of one VM.  `number` makes its cookies its own."""

    def __init__(self, program, m, vm_id, number, sessions=2, think_us=5000, steady=False,
                 operations=None):
        self.m = m
        self.vm_id = vm_id
        self.number = number
        self.sessions = sessions
        self.account_path = m.directory / f"account-{number}"
        self.output_path = m.directory / f"load-{number}"
        argv = ["setpriv", "--pdeathsig", "KILL", program, "--sessions", sessions, "--seed", number,
                "--think-us", think_us, m.state / "run" / f"vm{vm_id}.sock", self.account_path]
        if steady:
            argv.insert(4, "--steady")
        if operations:
            argv[4:4] = ["--operations", operations]
        with open(self.output_path, "wb") as output:
            self.process = subprocess.Popen(list(map(str, argv)), stdin=subprocess.DEVNULL,
                                            stdout=output, stderr=output)

    def _line(self, word):
        """(answered, lost, reopened) of the last such line."""
        with open(self.output_path, "rb") as output:
            output.seek(max(0, os.fstat(output.fileno()).st_size - 200))
            lines = output.read().split(b"\n")[:-1]
        for line in reversed(lines):
            words = line.decode(errors="replace").split()
            if len(words) == 4 and words[0] == word:
                return tuple(map(int, words[1:]))
        return (0, 0, 0)

    @property
    def answered(self):
        return self._line("progress")[0]

    def check(self):
        assert self.process.poll() is None, self.why()

    def why(self):
        return (f"load {self.number} of vm{self.vm_id}: status {self.process.poll()}: "
                f"{self.output_path.read_text(errors='replace')[-300:]}\n{self.m.tail()}")

    def end(self, number=signal.SIGTERM, timeout=4 * WAIT_S):
        """In order: everything is answered.  Returns (answered, lost, reopened)."""
        if self.process.poll() is None and number:
            self.process.send_signal(number)
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError("has not ended: " + self.why()) from None
        assert status == 0, self.why()
        return self._line("done")

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def account(self):
        """One letter an operation, the first one's at 0."""
        return self.account_path.read_bytes()


class Loads:
    """Several, ended whatever happens."""

    def __init__(self, m, program):
        self.m = m
        self.program = program
        self.all = []

    def add(self, vm_id, **options):
        self.all.append(Load(self.program, self.m, vm_id, len(self.all) + 1, **options))
        return self.all[-1]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for one in self.all:
            one.kill()

    def check(self):
        for one in self.all:
            one.check()

    def wait_progress(self, count=20):
        """Until each has had some more answers."""
        goals = [(one, one.answered + count) for one in self.all]
        for one, goal in goals:
            wait_until(lambda one=one, goal=goal: one.check() or one.answered >= goal,
                       lambda one=one: "more answers: " + one.why(), 4 * WAIT_S)

    def end(self):
        """Ends all; returns the sums of (answered, lost, reopened)."""
        for one in self.all:
            one.process.send_signal(signal.SIGTERM)
        return tuple(map(sum, zip(*[one.end(None) for one in self.all])))

    def executions(self):
        """How often each operation was begun, by load: {number: counts by operation}."""
        counts = {one.number: bytearray(len(one.account)) for one in self.all}
        own = {(one.vm_id, one.number) for one in self.all}
        unknown = 0
        with open(self.m.execution_log, "rb") as log:
            for line in log:
                found = _EXECUTION.search(line.rstrip(b"\n"))
                if not found:
                    unknown += 1
                    continue
                cookie = int(found[2])
                if (int(found[1]), cookie >> 32) in own:  # else of another owner
                    counts[cookie >> 32][(cookie & 0xFFFFFFFF) - 1] += 1
        return counts, unknown

    def check_executions(self, kills):
        """Ended well: ran once.  Ended otherwise: at most once.  Returns counts by letter."""
        counts, unknown = self.executions()
        assert unknown <= kills, f"{unknown} torn lines in the execution log"
        letters = {}
        for one in self.all:
            account, times = one.account, counts[one.number]
            for letter in set(account):
                letters[chr(letter)] = letters.get(chr(letter), 0) + account.count(letter)
            twice = [at for at, count in enumerate(times) if count > 1]
            assert not twice, f"load {one.number}: ran twice: {twice[:5]} of {len(twice)}"
            never = [at for at, (letter, count) in enumerate(zip(account, times))
                     if letter == ord("o") and count == 0]
            assert not never, f"load {one.number}: answered, never run: {never[:5]}"
        return letters
