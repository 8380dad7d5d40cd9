# SPDX-License-Identifier: GPL-2.0-or-later
"""window-load in guests, and whether its account agrees with what workers did.

    one = Account(guest, 11, "--sessions 2")      starts it; 11 is its seed and its name
    one.wait_progress()
    answered, lost, letters = one.end()
    check_account(mediator, 11, letters)          each operation ran as often as it should

See tests/vm/guest/window-load.c for what it does and for the letters.
"""

import re
import signal
import time


def wait_until(condition, what, timeout=360):
    """what: a text, or a function that makes one."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what() if callable(what) else what}"
        time.sleep(0.01)


class Account:
    """window-load in a guest."""

    def __init__(self, guest, number, options=""):
        self.guest = guest
        self.number = number
        self.job = guest.spawn(f"exec window-load --seed {number} {options} /dev/vgpu0 "
                               f"/tmp/account-{number}")

    def answered(self):
        """So far; of one that has not ended."""
        assert not self.job.done(), self.job.output[-400:]
        said = re.findall(r"^progress (\d+)", self.job.output, re.MULTILINE)
        return int(said[-1]) if said else 0

    def wait_progress(self, count=20, timeout=360):
        goal = self.answered() + count
        wait_until(lambda: self.answered() >= goal, lambda: self.job.output[-400:], timeout)

    def end(self):
        """Returns (answered, lost) and the account, a letter an operation."""
        if not self.job.done():
            self.job.kill(signal.SIGTERM)
        return self.wait(240)

    def wait(self, timeout):
        """As end(), of one that ends by itself."""
        status, output = self.job.wait(timeout)
        assert status == 0, output[-400:]
        answered, lost, _ = map(int, re.search(r"^done (\d+) (\d+) (\d+)", output,
                                               re.MULTILINE).groups())
        return answered, lost, self.guest.check(f"cat /tmp/account-{self.number}")


def executions(mediator, number):
    """How often each of the load's operations was begun."""
    counts = {}
    for line in mediator.executions():
        found = re.search(r"cookie=(\d+) opcode=\d+$", line)
        if found and int(found[1]) >> 32 == number:
            at = (int(found[1]) & 0xFFFFFFFF) - 1
            counts[at] = counts.get(at, 0) + 1
    return counts


def check_account(mediator, number, account):
    counts = executions(mediator, number)
    assert "u" not in account
    assert [at for at, count in counts.items() if count > 1] == []
    assert [at for at, letter in enumerate(account) if letter == "o" and at not in counts] == []
    assert set(counts) <= set(range(len(account)))
