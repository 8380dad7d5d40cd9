# SPDX-License-Identifier: Apache-2.0
"""The loads of a soak: window-load in a guest, vgpu-client at a VM's directory.

Neither prints while it runs: a guest that is reset in the middle of a word would
leave half of it.  What they have to say is asked for in the end.
"""

import collections
import json
import random
import re
import signal
import subprocess
import threading

from harness import paths
from harness.load import answer_fits

END_S = 120  # for what is under way; a machine with many guests is slow
FILE_TIMEOUT_S = 90
FILE_COMMANDS = ["{0}:{1}", "{0}:{1}", "PING", "VECTOR_ADD", "MATRIX_MUL 16", "SPIN 5"]


class GuestLoad:
    """window-load in a guest: ping, text, SPIN, memory, launches, copies; each answer checked.

    number: in all its cookies, of no other load.  account: b"" when there is none,
    because the client or the guest ended without a chance to write it.
    """

    def __init__(self, guest, vm_id, number, sessions, think_us):
        self.guest, self.vm_id, self.number = guest, vm_id, number
        self.account = b""
        self.answered = self.lost = self.reopened = 0
        self.how = "running"
        self.job = guest.spawn(
            f"exec window-load --sessions {sessions} --seed {number} --think-us {think_us} "
            f"/dev/vgpu0 /tmp/account-{number} >/tmp/said-{number} 2>&1")

    def kill(self):
        """As if its program had crashed."""
        self.job.kill(signal.SIGKILL)
        self.job.wait(END_S)
        self.how = "killed"

    def forget(self):
        """Its guest was reset."""
        self.how = "reset"

    def ask_to_end(self):
        if self.how == "running":
            self.job.kill(signal.SIGTERM)

    def finish(self):
        """After ask_to_end(): takes its account.  Returns a problem, or None."""
        if self.how != "running":
            return None
        status, _ = self.job.wait(END_S)
        self.how = "ended"
        said = self.guest.run(f"tail -n 2 /tmp/said-{self.number}", END_S)[1]
        done = re.search(r"^done (\d+) (\d+) (\d+)$", said, re.MULTILINE)
        if status != 0 or not done:
            return f"vm{self.vm_id}: load {self.number}: status {status}: {said.strip()}"
        self.answered, self.lost, self.reopened = map(int, done.groups())
        self.account = self.guest.check(f"cat /tmp/account-{self.number}", END_S).encode()
        return None

    def ended_by_itself(self):
        """It must not: then an answer was wrong."""
        return self.how == "running" and self.job.done()


class FileLoad(threading.Thread):
    """One request after the other through a VM's directory, by vgpu-client on the host.

    right: answered as it should be.  told: answered with an error.  problems: wrong
    answers, and requests without one.
    """

    def __init__(self, vm_id, pool, priority, share, seed, think_s):
        super().__init__(daemon=True, name=f"files of vm{vm_id}")
        self.vm_id, self.think_s = vm_id, think_s
        self.rng = random.Random(seed * 1000 + vm_id)
        self.ended = threading.Event()
        self.client = None
        self.right, self.told, self.problems = 0, collections.Counter(), []
        self.argv = [str(paths.client()), "--channel", "file", "--share", str(share), "--json",
                     "--timeout", str(FILE_TIMEOUT_S), "--pool", pool, "--priority", priority,
                     "--vm-id", str(vm_id)]

    def run(self):
        while not self.ended.wait(self.think_s * self.rng.uniform(0.5, 1.5)):
            self.request(self.rng.choice(FILE_COMMANDS).format(self.rng.randrange(10**6),
                                                               self.rng.randrange(10**6)))

    def request(self, command):
        """Sends one, waits for its answer, and judges it."""
        self.client = subprocess.Popen([*self.argv, command], stdin=subprocess.DEVNULL,
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        output, errors = self.client.communicate()
        try:
            self.judge(command, self.client.returncode, output, errors)
        except ValueError as error:
            self.problems.append(f"vm{self.vm_id}: file request {command}: {error}")

    def judge(self, command, status, output, errors=""):
        """Of one request; raises ValueError for what is no JSON."""
        answer = (json.loads(output) if output else {}).get("answer")
        said = f"{answer['status']}:{answer['message']}" if answer else None
        if status == 1 and answer:
            self.told[answer["message"]] += 1
        elif status == 0 and answer_fits(command, said):
            self.right += 1
        else:
            self.problems.append(f"vm{self.vm_id}: file request {command}: status {status}, "
                                 f"answer {said}: {(errors or output).strip()[-200:]}")

    def ask_to_end(self):
        self.ended.set()

    def finish(self):
        """After ask_to_end(): until the last request has its answer."""
        self.join(2 * FILE_TIMEOUT_S)
        if self.is_alive():
            self.problems.append(f"vm{self.vm_id}: a file request does not end")
            self.abandon()

    def abandon(self):
        """At once, whatever it waits for."""
        self.ended.set()
        if self.is_alive() and self.client:
            self.client.kill()
            self.join()
