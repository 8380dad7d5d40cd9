# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests with windows and their mediator, without NFS.

    with WindowLab({1: ("A", "low"), 2: ("B", "low")}) as lab:
        lab.start()                    # the mediator
        lab.boot(1, 2)                 # guests, the module loaded
        lab.guest(1).check("vgpu-client --channel window PING")

Several devices: each VM may have a pool, so a device, of its own.
"""

import contextlib
import os
import pathlib

from . import paths
from .guest import Guest
from .mediator import Mediator
from .process import end_marked, remove_directory, run_directory

SESSION_MEMORY_FD = 4


class WindowLab:
    """vms: {vm_id: (pool, priority)}.  build: another build directory's programs.
    weights: {vm_id: weight}, of those that have one.  memory_mib: of each guest.
    settings: of the mediator; `channels` is "window" by itself.
    """

    def __init__(self, vms, pools=None, build=None, weights=None, memory_mib=192, **settings):
        self.vms = dict(vms)
        self.build = build
        self.memory_mib = memory_mib
        self.directory = run_directory("windows")
        self.run = self.directory / "run"
        self.share = self.directory / "share"
        self.mediator = Mediator(
            self.directory / "mediator", self.share,
            {vm_id: {"pool": pool, "priority": priority,
                     **({"weight": weights[vm_id]} if vm_id in (weights or {}) else {})}
             for vm_id, (pool, priority) in vms.items()},
            pools=pools, run_dir=self.run,
            **({"worker": build / "src/exec/vgpu-worker"} if build else {}),
            **{"channels": "window", **settings})
        self._guests = {}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def start(self):
        """The mediator, of `build` if there is one."""
        usual = paths.BUILD
        paths.BUILD = self.build or usual
        try:
            return self.mediator.start()
        finally:
            paths.BUILD = usual

    def guest(self, vm_id):
        """The guest as it is, or a new one to be booted."""
        known = self._guests.get(vm_id)
        if known is None or known.ended:
            pool, priority = self.vms[vm_id]
            known = Guest(f"vm{vm_id}", self.directory, pool, priority, vm_id, append="vgpu.module",
                          socket_path=self.run / f"vm{vm_id}.sock", sessions=4, window_mib=16,
                          memory_mib=self.memory_mib)
            # Guest says -no-reboot; the last one counts.
            known.options += ["-action", "reboot=reset"]
            self._guests[vm_id] = known
        return known

    def boot(self, *vm_ids):
        fresh = [guest for guest in map(self.guest, vm_ids or self.vms) if guest.process is None]
        for guest in fresh:
            guest.start()
        for guest in fresh:
            guest.wait_ready()
        return [self.guest(vm_id) for vm_id in vm_ids or self.vms]

    def wait_linked(self, after, *vm_ids):
        """Until the devices have found the mediator."""
        for vm_id in vm_ids or self.vms:
            self.mediator.wait_event("link", vm=vm_id, after=after)

    def mediator_pid(self):
        return self.mediator.process.pid

    def workers(self, vm_id=None):
        """Ids of the session workers that live, of one VM or of all."""
        return self._workers_at(f"{self.run}/sessions/vm{'' if vm_id is None else f'{vm_id}-'}")

    def file_workers(self):
        """Ids of those that live and run what comes through the VMs' directories."""
        return self._workers_at(f"{self.mediator.state_dir}/vm")

    @staticmethod
    def _workers_at(start):
        """By where the memory of their session lies."""
        found = []
        for path in pathlib.Path("/proc").glob("[0-9]*/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(path / str(SESSION_MEMORY_FD)).startswith(start) and \
                        "vgpu-worker" in (path.parent / "cmdline").read_text():
                    found.append(int(path.parent.name))
        return found

    def session_files(self, vm_id):
        return sorted(path.name for path in (self.run / "sessions").glob(f"vm{vm_id}-*"))

    def report(self):
        parts = [self.mediator.log_tail()]
        parts += [guest.console_tail(10) for guest in self._guests.values() if guest.process]
        return "\n".join(parts)

    def close(self):
        for guest in self._guests.values():
            with contextlib.suppress(OSError):
                guest.stop()
        self.mediator.end()
        end_marked([self.directory], patience=2)
        remove_directory(self.directory)
