# SPDX-License-Identifier: Apache-2.0
"""Commands in a machine, by tests/vm/guest/agent.c at the other end of some stream.

    status, output = machine.run("uname -r")
    job = machine.spawn("vgpu-client --timeout 30")     # in the background
    status, output = job.wait(40)

An Agent is a machine that has such an agent.  Whoever owns the stream calls feed()
with what comes and lose() when nothing can come any more, and gives _send_bytes().
"""

import signal
import threading


class GuestError(Exception):
    pass


class Job:
    """A command that runs in a machine."""

    def __init__(self, machine, number, script, on_end):
        self.machine = machine
        self.number = number
        self.script = script
        self.on_end = on_end
        self.status = None
        self._output = bytearray()

    @property
    def output(self):
        """What it has printed so far, stdout and stderr in one."""
        with self.machine._changed:
            return self._output.decode(errors="replace")

    def done(self):
        return self.status is not None

    def wait(self, timeout=120):
        """Returns (status, output)."""
        with self.machine._changed:
            ended = self.machine._changed.wait_for(
                lambda: self.status is not None or self.machine._lost, timeout)
        if self.status is None:
            why = self.machine._lost if ended else f"no end within {timeout} s"
            raise GuestError(f"{self.machine.name}: {self.script!r}: {why}; it printed: "
                             f"{self.output!r}\n{self.machine.console_tail()}")
        return self.status, self.output

    def wait_output(self, text, timeout=120):
        """Until `text` stands in its output, or it ended."""
        with self.machine._changed:
            self.machine._changed.wait_for(
                lambda: text.encode() in self._output or self.status is not None
                or self.machine._lost, timeout)
        if text not in self.output:
            raise GuestError(f"{self.machine.name}: {self.script!r} did not print {text!r} "
                             f"within {timeout} s but: {self.output!r}")

    def kill(self, number=signal.SIGTERM):
        self.machine._send(f"KILL {self.number} {int(number)}\n".encode())


class Agent:
    def __init__(self, name):
        self.name = name
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._jobs = {}
        self._last_job = 0
        self._lost = None
        self._said_hello = False
        self._unread = bytearray()

    def console_tail(self):
        """What its console said last, for messages."""
        return ""

    def ready(self):
        """Its agent has answered; raises when the machine has ended instead."""
        with self._changed:
            if self._lost:
                raise GuestError(f"{self.name}: {self._lost}\n{self.console_tail()}")
            return self._said_hello

    # --- commands -----------------------------------------------------------

    def spawn(self, script, on_end=None):
        """Starts `sh -c script` in the machine; returns a Job.  on_end() is called when
        it has ended, by the thread that feeds, and must not wait."""
        data = script.encode()
        with self._changed:
            self._last_job += 1
            job = Job(self, self._last_job, script, on_end)
            self._jobs[job.number] = job
        self._send(f"RUN {job.number} {len(data)}\n".encode() + data)
        return job

    def run(self, script, timeout=120):
        """Returns (status, output)."""
        return self.spawn(script).wait(timeout)

    def check(self, script, timeout=120):
        """Returns the output; another status than 0 raises."""
        status, output = self.run(script, timeout)
        if status != 0:
            raise GuestError(f"{self.name}: {script!r}: status {status}: {output}")
        return output

    def _send(self, data):
        with self._sending:
            try:
                self._send_bytes(data)
            except OSError as error:
                raise GuestError(f"{self.name}: the machine is gone: {error}\n"
                                 f"{self.console_tail()}") from error

    def _send_bytes(self, data):
        raise NotImplementedError

    # --- what the agent says ------------------------------------------------

    def feed(self, data):
        """More of the stream; whole messages of it are handled."""
        with self._changed:
            self._unread += data
            while self._take_message():
                pass
            self._changed.notify_all()

    def lose(self, why):
        """Nothing will come any more: all who wait are told."""
        with self._changed:
            self._lost = why
            self._changed.notify_all()

    def _take_message(self):
        line, newline, rest = self._unread.partition(b"\n")
        words = bytes(line).split()
        if not newline:
            return False
        if words[:1] == [b"OUT"] and len(words) == 3:
            size = int(words[2])
            if len(rest) < size:
                return False
            self._jobs[int(words[1])]._output += rest[:size]
            rest = rest[size:]
        elif words == [b"HELLO"]:
            self._hello()
        elif words[:1] == [b"END"] and len(words) == 3:
            job = self._jobs.pop(int(words[1]))
            job.status = int(words[2])
            if job.on_end:
                job.on_end()
        else:
            self._other_line(bytes(line))
        self._unread = rest
        return True

    def _hello(self):
        self._said_hello = True

    def _other_line(self, line):
        """A line that is no agent's."""
        raise ValueError(f"the agent said {line!r}")
