# SPDX-License-Identifier: Apache-2.0
"""tests/xen/load.c in a guest: a session that works, and checks every answer.

    load = Load(guest, "pause_ms=50")
    load.wait_progress()
    load.end()                       # SIGTERM: returns how many rounds were right
"""

import re
import signal

from .files import STEP_TIMEOUT_S
from .host import wait_until


class Load:
    def __init__(self, guest, options=""):
        self.guest = guest
        self.job = guest.spawn(f"exec vgpu-xen-load {options}")

    @property
    def output(self):
        return self.job.output

    def rounds(self):
        said = re.findall(r"^(?:progress|done) (\d+)$", self.output, re.MULTILINE)
        return int(said[-1]) if said else 0

    def sessions(self):
        """[(VM, pool, priority, transport)] of those that it has had."""
        return [(int(vm), pool, int(priority), transport) for vm, pool, priority, transport in
                re.findall(r"^session (\d+) (.) (\d) (\w+)$", self.output, re.MULTILINE)]

    def wait_progress(self, count=3):
        """Until it has done so many rounds more."""
        goal = self.rounds() + count
        wait_until(lambda: self.rounds() >= goal or self.job.done(), lambda: self.output[-400:])
        assert self.rounds() >= goal, self.output[-400:]

    def kill(self):
        self.job.kill(signal.SIGKILL)
        self.job.wait(STEP_TIMEOUT_S)

    def end(self):
        if not self.job.done():
            self.job.kill(signal.SIGTERM)
        return self.wait()

    def wait(self):
        """As end(), of one that ends by itself."""
        status, output = self.job.wait(STEP_TIMEOUT_S)
        assert status == 0, output[-400:]
        return self.rounds()

    def wait_closed(self):
        """Until it has ended because its session had; returns what it was told."""
        status, output = self.job.wait(STEP_TIMEOUT_S)
        assert status == 3, output[-400:]
        return re.search(r"^closed (.*)$", output, re.MULTILINE)[1]
