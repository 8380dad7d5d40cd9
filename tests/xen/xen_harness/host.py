# SPDX-License-Identifier: Apache-2.0
"""The Xen channel's host: registry, mediator and vgpu-xen in Dom0.

    with Host(dom0) as host:
        host.register(7, guest, pool="B", priority="high")
        host.start()                       # both programs
        host.wait_offered(guest)
        host.watch.kill()                  # -9; start() is its next life
        host.mediator.restart()

A program is a job of Dom0's agent, so its log is here as it is written, and how it ended
is known.  The registry is made by vgpu-admin on this machine, where that is quick, and put
into Dom0; host.admin() is the one of Dom0, for those who mean it.
"""

import contextlib
import json
import re
import subprocess
import time

from harness import paths, process

from .files import STEP_TIMEOUT_S

WAIT_S = 90
POLL_S = 0.1
DIRECTORY = "/run/vgpu-test"
CONFIG = f"{DIRECTORY}/mediator.conf"
DATABASE = f"{DIRECTORY}/vgpu.db"
SETTINGS = {
    "channels": "window", "share": f"{DIRECTORY}/share", "state_dir": f"{DIRECTORY}/state",
    "run_dir": f"{DIRECTORY}/run", "database": DATABASE, "worker": "/usr/bin/vgpu-worker",
    "log_format": "json", "worker_memory_mib": 0, "quarantine_faults": 0,
    "device_memory_mib": 32, "operation_limit_ms": 120000}


def wait_until(condition, what, timeout=WAIT_S):
    """what: a text, or a function that makes one."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, \
            f"not within {timeout} s: {what() if callable(what) else what}"
        time.sleep(POLL_S)


class Service:
    """One of our programs in Dom0; `ready` stands in its log when it serves."""

    def __init__(self, dom0, command, ready):
        self.dom0 = dom0
        self.command = command
        self.name = command.split()[0]
        self.ready = ready
        self.lives = []

    def start(self):
        job = self.dom0.spawn(f"echo pid $$; exec {self.command}")
        self.lives.append(job)
        job.wait_output(self.ready, WAIT_S)
        return self

    @property
    def pid(self):
        return int(re.match(r"pid (\d+)\n", self.lives[-1].output)[1])

    @property
    def output(self):
        """Of all its lives."""
        return "".join(job.output for job in self.lives)

    def running(self):
        return bool(self.lives) and not self.lives[-1].done()

    def _end(self, number):
        self.dom0.check(f"kill -{number} {self.pid}", STEP_TIMEOUT_S)
        return self.lives[-1].wait(STEP_TIMEOUT_S)[0]

    def stop(self):
        """SIGTERM, to it alone; returns the exit status."""
        return self._end(15)

    def kill(self):
        return self._end(9)

    def restart(self):
        self.stop()
        return self.start()

    def wait_output(self, text):
        """In its life of now."""
        job = self.lives[-1]
        wait_until(lambda: text in job.output, lambda: f"{text!r} in: {job.output[-2000:]}")


class Host:
    """settings: more keys of [mediator]."""

    def __init__(self, dom0, **settings):
        self.dom0 = dom0
        self.directory = process.run_directory("xen-host")
        self.mediator = Service(dom0, f"vgpu-mediator --config {CONFIG}", '"event":"ready"')
        self.watch = Service(dom0, f"vgpu-xen --config {CONFIG}", "serves from domain")
        self._settings = {**SETTINGS, **settings}
        self._admin("init")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # --- life -------------------------------------------------------------------

    def start(self):
        self.dom0.check(f"rm -rf {DIRECTORY}; mkdir -p {DIRECTORY}")
        self._put_config(self._settings)
        self._put_registry()
        self.mediator.start()
        self.watch.start()
        return self

    @contextlib.contextmanager
    def with_settings(self, **settings):
        """A mediator that has these too, started anew, and the usual one afterwards."""
        self._put_config({**self._settings, **settings})
        self.mediator.restart()
        try:
            yield
        finally:
            self._put_config(self._settings)
            self.mediator.restart()

    def _put_config(self, settings):
        text = "".join(f"{key}={value}\n" for key, value in settings.items())
        self.dom0.put(f"[mediator]\n{text}".encode(), CONFIG)

    def close(self):
        """Ends both, and what they left; Dom0 lives longer than a test file."""
        if self.dom0.alive():
            for service in [self.watch, self.mediator]:
                if service.running():
                    service.stop()
            for pid in self.workers():
                self.dom0.run(f"kill -9 {pid}")
            self.dom0.run(f"rm -rf {DIRECTORY}")
        process.remove_directory(self.directory)

    def report(self):
        """For a failure: the ends of both logs, and how each life ended."""
        parts = []
        for service in [self.mediator, self.watch]:
            ends = [job.status for job in service.lives]
            parts.append(f"--- {service.command}: ends {ends}\n{service.output[-4000:]}")
        return "\n".join(parts)

    # --- the registry ---------------------------------------------------------------

    def _admin(self, command, *words):
        done = subprocess.run(
            [paths.BUILD / "src/admin/vgpu-admin", command, "--database",
             self.directory / "vgpu.db", "--socket", self.directory / "nobody.sock",
             "--toolstack", "none", *map(str, words)], stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        assert done.returncode == 0, done.stdout

    def _put_registry(self):
        """All at once: both programs may be about to read it."""
        data = (self.directory / "vgpu.db").read_bytes()
        self.dom0.put(data, f"{DATABASE}.new")
        self.dom0.check(f"rm -f {DATABASE}-wal {DATABASE}-shm; mv {DATABASE}.new {DATABASE}")

    def change(self, command, *words):
        """As vgpu-admin does it, with the mediator told."""
        self._admin(command, *words)
        if self.mediator.running():
            self._put_registry()
            self.dom0.check(f"kill -HUP {self.mediator.pid}")

    def admin(self, words):
        """vgpu-admin of Dom0 itself, which finds Dom0's xl: (exit status, output)."""
        return self.dom0.run(f"vgpu-admin --config {CONFIG} {words}", STEP_TIMEOUT_S)

    def register(self, vm_id, guest, pool="A", priority="medium"):
        self.change("register-vm", guest.name, "--vm-id", vm_id, "--uuid", guest.uuid, "--pool", pool,
                    "--priority", priority, "--channels", "window", "--owner", 100100 + vm_id)

    def wait_offered(self, guest):
        self.watch.wait_output(f"domain {guest.id} is vm ")

    # --- what is there -----------------------------------------------------------------

    def events(self, event=None, **fields):
        """The mediator's events of all its lives, or those of one kind with these fields."""
        found = [json.loads(line) for line in self.mediator.output.splitlines()
                 if line.startswith("{") and line.endswith("}")]
        return [entry for entry in found
                if (event is None or entry.get("event") == event)
                and all(entry.get(key) == value for key, value in fields.items())]

    def wait_event(self, event, count=1, **fields):
        wait_until(lambda: len(self.events(event, **fields)) >= count or not self.mediator.running(),
                   lambda: f"{count} events {event} {fields}: {self.mediator.output[-2000:]}")
        assert self.mediator.running(), self.report()
        return self.events(event, **fields)[count - 1]

    def _named(self, name):
        """Process ids, by how the name begins that the kernel knows."""
        output = self.dom0.run(f"grep -l '^{name}' /proc/[0-9]*/comm 2>/dev/null")[1]
        return [int(pid) for pid in re.findall(r"/proc/(\d+)/comm", output)]

    def brokers(self):
        return self._named("vgpu-xen-broker")

    def workers(self):
        return self._named("vgpu-w[0-9]")

    def nodes(self, guest, side):
        """Names of the guest's sessions in XenStore, as the "frontend" or "backend" has them."""
        status, output = self.dom0.run(
            f"xenstore-list /local/domain/{guest.id}/data/vgpu/{side} 2>/dev/null")
        names = output.split() if status == 0 else []
        return sorted(name for name in names if re.fullmatch("[0-9a-f]{16}", name))

    def free_kib(self):
        """Memory that Dom0 could give, caches of files left aside."""
        text = self.dom0.check("cat /proc/meminfo")
        return sum(int(re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[1])
                   for name in ["MemFree", "SReclaimable"])

    def held(self):
        """(event channels that Dom0 has open, pages that a domain has granted and another
        has mapped), as Xen counts them."""
        said = self.dom0.check("xl dmesg -c >/dev/null; xl debug-keys eg; xl dmesg", STEP_TIMEOUT_S)
        _, _, own = said.partition("Event channel information for domain 0:")
        own = own.partition("Event channel information for domain")[0]
        assert own and "gnttab_usage_print_all ] done" in said, said
        return (len(re.findall(r"^\(XEN\)\s+\d+ \[\d/\d/", own, re.MULTILINE)),
                len(re.findall(r"^\(XEN\)\s*\[0x[0-9a-f]+\]", said, re.MULTILINE)))

    def counts(self):
        """What must be again as it was when all sessions have ended."""
        channels, grants = self.held()
        return {"brokers": len(self.brokers()), "workers": len(self.workers()),
                "event channels": channels, "grants": grants}

    def all_counts(self):
        """counts(), all programs of Dom0, and the files that our two have open."""
        return {**self.counts(), "programs": self._count("grep -la . /proc/[0-9]*/cmdline"),
                **{service.name: self._count(f"ls /proc/{service.pid}/fd")
                   for service in [self.mediator, self.watch]}}

    def _count(self, command):
        return int(self.dom0.check(f"{command} 2>/dev/null | wc -l"))

    def resident_kib(self):
        """Memory of our two programs, by name."""
        return {service.name: int(self.dom0.check(
            f"sed -n 's/^VmRSS:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/{service.pid}/status"))
                for service in [self.mediator, self.watch]}

    def wait_idle(self):
        """Until no session is left."""
        wait_until(lambda: not self.brokers() and not self.workers(), self.report)

    def wait_counts(self, before, count=None):
        """Until counts(), or count(), are as before."""
        found = {}

        def are_there():
            found.update((count or self.counts)())
            return found == before

        with contextlib.suppress(AssertionError):
            wait_until(are_there, "")
        assert found == before, self.report()
