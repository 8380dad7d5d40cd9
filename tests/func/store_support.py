# SPDX-License-Identifier: Apache-2.0
"""What the tests of the registry share: store_probe.c and a second opinion.

The second opinion is Python's own sqlite3, so that the store does not judge itself.
"""

import os
import select
import signal
import sqlite3
import subprocess
import time

from support import BUILD, WAIT_S, is_sanitized

PROBE = BUILD / "tests/func/store_probe"


def rounds(number):
    """So many, or fewer where a sanitizer makes each slow: there it is the code that
    is looked at, and chance had its many rounds in the plain build."""
    return number // 5 if is_sanitized() else number


def probe(*arguments, status=0, **options):
    """Runs it to its end; returns what it printed."""
    done = subprocess.run([PROBE, *map(str, arguments)], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=2 * WAIT_S, check=False,
                          **options)
    assert done.returncode == status, (arguments, done.returncode, done.stdout, done.stderr)
    return done.stdout


def refusal(*arguments, **options):
    """(errno value, message) of a command that must be refused."""
    last = probe(*arguments, status=1, **options).splitlines()[-1]
    word, code, message = last.split(" ", 2)
    assert word == "error", last
    return int(code), message


def show(file):
    """{left, right, memory, sessions, events} of a database that verifies."""
    numbers = map(int, probe("show", file).split())
    return dict(zip(["left", "right", "memory", "sessions", "events"], numbers))


class Running:
    """A command that goes on; `lines` are what it has acknowledged so far."""

    def __init__(self, *arguments, **options):
        self._out = b""
        self.process = subprocess.Popen([PROBE, *map(str, arguments)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, **options)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.kill()

    @property
    def lines(self):
        """Whole lines only: half a line is no acknowledgement."""
        return self._out.decode().split("\n")[:-1]

    def wait_lines(self, count, timeout=WAIT_S):
        deadline = time.monotonic() + timeout
        while len(self.lines) < count:
            left = deadline - time.monotonic()
            assert left > 0, f"{len(self.lines)} of {count} lines: {self.lines[-3:]}"
            if select.select([self.process.stdout], [], [], left)[0]:
                data = os.read(self.process.stdout.fileno(), 65536)
                assert data, f"it ended after {self.lines[-3:]}"
                self._out += data
        return self.lines

    def finish(self, timeout=2 * WAIT_S):
        """To its own end, which must be good."""
        out, _ = self.process.communicate(timeout=timeout)
        self._out += out
        assert self.process.returncode == 0, self.lines[-3:]
        return self.lines

    def kill(self):
        """SIGKILL; returns all that it has acknowledged."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        if self.process.stdout and not self.process.stdout.closed:
            self._out += self.process.stdout.read()
            self.process.stdout.close()
            self.process.stdin.close()
        self.process.wait()
        return self.lines


def query(file, sql):
    """Rows, as another program reads them."""
    with sqlite3.connect(f"file:{file}?mode=rw", uri=True, timeout=WAIT_S) as database:
        rows = database.execute(sql).fetchall()
    database.close()
    return rows


def check_counted(file, acknowledged, before=0):
    """Sound pages; both VMs have one number; each step from 1 on has its two events;
    what was acknowledged is there, and at most one step more.  Returns the number."""
    assert query(file, "PRAGMA integrity_check") == [("ok",)]
    assert query(file, "PRAGMA foreign_key_check") == []
    [(left,), (right,)] = query(file, "SELECT operation_limit_ms FROM vms ORDER BY vm_id")
    assert left == right
    last = acknowledged[-1] if acknowledged else before
    assert last <= left <= last + 1, (last, left)
    events = [after for (after,) in
              query(file, "SELECT after FROM events WHERE action = 'count' ORDER BY id")]
    assert events == [f'{{"operation_limit_ms":{number}}}'
                      for number in range(1, left + 1) for _ in range(2)]
    return left
