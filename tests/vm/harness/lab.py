# SPDX-License-Identifier: Apache-2.0
"""A laboratory: one share with real NFS, its guests, and its mediator.

    with Lab({1: ("A", "low"), 2: ("A", "high")}) as lab:
        lab.boot()                        # all guests, side by side, share mounted
        mediator = lab.start_mediator()   # the same VMs registered
        lab.guest(2).check("vgpu-client")

Guests stay up while mediators come and go: a mediator gets a fresh state
directory and an empty share each time.
"""

import os
import shutil

from .guest import Guest
from .mediator import Mediator, vm
from .network import SERVER, Network, address_of
from .nfs import Export, NfsServer
from .process import end_marked, remove_directory, run_directory

FIRST_UID = 100000


def uid_of(vm_id):
    """The owner of a VM's directory on the host; no user of any system."""
    return FIRST_UID + vm_id


class Lab:
    """vms: {vm_id: (pool, priority)}, as the guests' devices say it.

    window: the devices have a window, and mediators serve it; their sockets stay
    in one place, where the devices of running guests find the next mediator.

    channel: what spawn_loop() uses.  With "window" each operation is scheduled by
    itself and its turns stand in the log, so that tests of order mean the same.
    """

    def __init__(self, vms, hard=True, window=False, channel="file"):
        self.vms = dict(vms)
        self.hard = hard
        self.channel = channel
        self.window = window or channel == "window"
        self.directory = run_directory("lab")
        self.share = self.directory / "share"
        self.share.mkdir()
        self.run = self.directory / "run"
        self._mediators = []
        self._guests = {}
        self.network = Network()
        self._slots = {vm_id: slot for slot, vm_id in enumerate(self.vms, 1)}
        self.nfs = NfsServer(self.directory / "nfs", self.network, [
            Export(vm_id, self.vm_directory(vm_id), address_of(slot), uid_of(vm_id), uid_of(vm_id))
            for vm_id, slot in self._slots.items()])
        self.nfs.start()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()

    def vm_directory(self, vm_id):
        """Where the VM's directory lies on the host."""
        return self.share / f"vm{vm_id}"

    def socket_path(self, vm_id):
        """Where the VM's device finds the mediator; None: it has no window."""
        return self.run / f"vm{vm_id}.sock" if self.window else None

    # --- guests -----------------------------------------------------------------

    def guest(self, vm_id):
        """The guest, as it is: booted by boot(), or to be booted."""
        known = self._guests.get(vm_id)
        if known is None or known.ended or (known.process is not None and not known.alive()):
            pool, priority = self.vms[vm_id]
            known = Guest(f"vm{vm_id}", self.directory / "guests", pool, priority, vm_id,
                          namespace=self.network.namespace(self._slots[vm_id]),
                          socket_path=self.socket_path(vm_id))
            known.channel = self.channel
            self._guests[vm_id] = known
        return known

    def boot(self, *vm_ids):
        """Boots those (default: all) that are not up, and mounts their share."""
        wanted = [(vm_id, self.guest(vm_id)) for vm_id in vm_ids or self.vms]
        fresh = [(vm_id, guest) for vm_id, guest in wanted if guest.process is None]
        for _, guest in fresh:
            guest.start()
        for vm_id, guest in fresh:
            guest.wait_ready()
        # The slow part, loading NFS, side by side too.
        more = " && modprobe vgpu_guest" if self.channel == "window" else ""
        jobs = [guest.spawn("guest-network && modprobe nfsv4" + more) for _, guest in fresh]
        for (vm_id, guest), job in zip(fresh, jobs):
            status, output = job.wait(60)
            if status != 0:
                raise RuntimeError(f"{guest.name}: no network or no NFS: {output}")
            guest.mount_share(SERVER, vm_id, self.hard)
        return [guest for _, guest in wanted]

    def remount(self, vm_id, hard):
        """Mounts the share anew, if it is not mounted so already."""
        guest = self.guest(vm_id)
        directory = f"/mnt/vgpu/vm{vm_id}"
        wanted = ",hard," if hard else ",soft,"
        if wanted not in guest.check(f"grep {directory} /proc/mounts"):
            guest.check(f"umount {directory}")
            guest.mount_share(SERVER, vm_id, hard)

    # --- mediator ---------------------------------------------------------------

    def registry(self, vms=None):
        """The [vm] sections for {vm_id: (pool, priority)}, default: all as they are."""
        return {vm_id: vm(pool, priority, uid_of(vm_id))
                for vm_id, (pool, priority) in (self.vms if vms is None else vms).items()}

    def start_mediator(self, vms=None, **settings):
        """A new mediator on an emptied share; see Mediator for `settings`."""
        self.end_mediators()
        self.empty_share()
        if self.window:
            settings = {"run_dir": self.run, **settings}
        if self.channel == "window":
            settings = {"grant_ops": 1, "log_level": "debug", "channel": "window", **settings}
        mediator = Mediator(self.directory / f"mediator-{len(self._mediators) + 1}", self.share,
                            self.registry(vms), **settings)
        self._mediators.append(mediator)
        mediator.start()
        if mediator.channel == "window":
            for vm_id in mediator.vms & {vm for vm, guest in self._guests.items()
                                         if guest.process is not None and guest.alive()}:
                mediator.wait_event("link", vm=vm_id)
        return mediator

    def end_mediators(self):
        for mediator in self._mediators:
            mediator.end()

    def empty_share(self):
        """Removes what lies in the VMs' directories; they themselves are exported."""
        for path in self.share.iterdir():
            if path.name in {f"vm{vm_id}" for vm_id in self.vms}:
                for entry in path.iterdir():
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
                os.chown(path, uid_of(int(path.name[2:])), uid_of(int(path.name[2:])))
                path.chmod(0o700)
            else:
                shutil.rmtree(path)

    # --- end --------------------------------------------------------------------

    def report(self):
        """What a failed test wants to know."""
        parts = [self.nfs.log_tail(10)]
        parts += [mediator.log_tail() for mediator in self._mediators[-1:]]
        parts += [guest.console_tail(10) for guest in self._guests.values() if guest.process]
        return "\n".join(parts)

    def close(self):
        for step in [self.end_mediators, self._stop_guests, self.nfs.stop, self.network.stop]:
            try:
                step()
            except OSError:
                pass  # the rest must end all the same
        end_marked([self.directory], patience=0)
        remove_directory(self.directory)

    def _stop_guests(self):
        for guest in self._guests.values():
            guest.stop()
