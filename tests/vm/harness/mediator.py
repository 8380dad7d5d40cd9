# SPDX-License-Identifier: Apache-2.0
"""vgpu-mediator with a generated configuration, and its JSON log as events."""

import json
import pathlib
import time

from . import paths
from .process import Process, end_marked

START_TIMEOUT_S = 90
POLL_S = 0.01
PRIORITIES = {0: "low", 1: "medium", 2: "high", "low": "low", "medium": "medium", "high": "high"}


class MediatorError(Exception):
    pass


class Mediator:
    """vms: {vm_id: {"pool": "A", "priority": "high", "owner": "UID:GID", ...}}
    pools: {"A": "cpu", "B": "cpu:1"}; pools_mode: "shared" or "independent";
    settings: other keys of [mediator]; None leaves a key out.

    One object is one state directory: start() after kill() is a restart, and
    the events of all its lives stand in one list.

    channel: with "window" the end of a turn ("returned", or "lost" with its worker)
    is what "response" means.
    """

    def __init__(self, directory, share, vms, pools=None, pools_mode=None, arguments=(),
                 channel="file", **settings):
        self.channel = channel
        self.vms = set(vms)
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.state_dir = self.directory / "state"
        self.log = self.directory / "log.json"
        self.execution_log = self.directory / "executions"
        self.config = self.directory / "mediator.conf"
        self.arguments = list(arguments)
        self.process = None
        self._events = []
        self._log_at = 0
        self._lives = 0
        settings = {
            "share": share, "state_dir": self.state_dir, "log": self.log, "log_format": "json",
            "worker": paths.worker(), "execution_log": self.execution_log,
            "worker_memory_mib": 0, "quarantine_faults": 0, **settings}
        if pools_mode is not None:
            settings["pools"] = pools_mode
        self.config.write_text(self._config_text(settings, pools or {}, vms))

    @staticmethod
    def _config_text(settings, pools, vms):
        text = "[mediator]\n" + "".join(f"{key}={value}\n" for key, value in settings.items()
                                        if value is not None)
        for pool, device in pools.items():
            text += f"\n[pool {pool}]\ndevice={device}\n"
        for vm_id, vm in vms.items():
            text += f"\n[vm {vm_id}]\n" + "".join(
                f"{key}={PRIORITIES[value] if key == 'priority' else value}\n"
                for key, value in vm.items())
        return text

    # --- life -------------------------------------------------------------------

    def start(self):
        self.events()
        before = len(self._events)
        self._lives += 1
        self.process = Process(
            "mediator", [paths.mediator(), "--config", self.config, *self.arguments],
            log=self.directory / "mediator.out")
        self.wait_event("ready", START_TIMEOUT_S, after=before)
        return self

    def stop(self):
        """SIGTERM; returns the exit status."""
        status = self.process.stop(patience=30)
        self.process = None
        return status

    def kill(self):
        """As if the power had gone, for the mediator alone."""
        self.process.kill()
        self.process = None

    def end(self):
        """Ends it and what it started, whatever state it is in."""
        if self.process is not None:
            self.process.stop(patience=5)
            self.process = None
        end_marked([self.state_dir], patience=2)

    def running(self):
        return self.process is not None and self.process.running()

    # --- log --------------------------------------------------------------------

    def events(self, event=None, **fields):
        """All events so far, or those of one kind with these fields."""
        self._read_log()
        return [entry for entry in self._events if self._matches(entry, event, fields)]

    def wait_event(self, event, timeout=120, after=0, count=1, **fields):
        """Until `count` such events stand in the log behind the first `after`
        events; returns the last of them."""
        deadline = time.monotonic() + timeout
        while True:
            self._read_log()
            found = [entry for entry in self._events[after:]
                     if self._matches(entry, event, fields)]
            if len(found) >= count:
                return found[count - 1]
            if self.process is None or not self.process.running():
                raise MediatorError(f"the mediator has ended:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise MediatorError(f"{len(found)} of {count} events {event} {fields} within "
                                    f"{timeout} s:\n{self.log_tail()}")
            time.sleep(POLL_S)

    def _matches(self, entry, event, fields):
        names = {event}
        if self.channel == "window" and event == "response":
            names = {"response", "returned", "lost"}
        return ((event is None or entry.get("event") in names)
                and all(entry.get(key) == value for key, value in fields.items()))

    def mark(self):
        """A place in the log, for `after`."""
        self._read_log()
        return len(self._events)

    def executions(self):
        if not self.execution_log.exists():
            return []
        return self.execution_log.read_text(errors="replace").splitlines()

    def log_tail(self, lines=40):
        text = ""
        for path in [self.directory / "mediator.out", self.log]:
            if path.exists():
                text += f"--- {path.name}\n" + "\n".join(
                    path.read_text(errors="replace").splitlines()[-lines:]) + "\n"
        return text

    def _read_log(self):
        if not self.log.exists():
            return
        with open(self.log, "rb") as log:
            log.seek(self._log_at)
            data = log.read()
        whole = data[:data.rfind(b"\n") + 1]
        self._log_at += len(whole)
        for line in whole.splitlines():
            entry = json.loads(line)
            entry["life"] = self._lives
            self._events.append(entry)


def vm(pool, priority, uid, **more):
    """A [vm] section as Mediator takes it."""
    return {"pool": pool, "priority": priority, "owner": f"{uid}:{uid}", "mode": "0700", **more}
