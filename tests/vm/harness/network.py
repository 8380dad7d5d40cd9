# SPDX-License-Identifier: Apache-2.0
"""A private network: one namespace for the server, one for each VM.

    namespace of VM 1              namespace of the server
    ┌───────────────────────┐      ┌──────────────────────────────┐
    │ guest ─ slirp ─ 10.77.0.11 ══ veth ══ bridge 10.77.0.1       │
    └───────────────────────┘      │                    nfs-ganesha │
    namespace of VM 2              │                              │
    │ guest ─ slirp ─ 10.77.0.12 ══ veth ══ bridge               │

QEMU runs inside its VM's namespace with user-mode networking, so whatever the
guest does, the server sees it under the address of that namespace: a guest
can no more take another's address than it can leave its namespace.

The namespaces have no names.  Each one lives as long as one sleeping process
that holds it, and the kernel removes it, with its interfaces, when that
process ends.
"""

import os
import time

from .process import Process, run

SERVER = "10.77.0.1"


def address_of(slot):
    """The address under which the server sees the VM in `slot` (1, 2, …)."""
    if not 1 <= slot <= 200:
        raise ValueError(f"slot {slot}: expected 1 to 200")
    return f"10.77.0.{slot + 10}"


class Network:
    def __init__(self):
        self._holders = {}
        self.server = self._hold("server")
        run(["ip", "link", "set", "lo", "up"], self.server)
        run(["ip", "link", "add", "bridge", "type", "bridge"], self.server)
        run(["ip", "addr", "add", f"{SERVER}/24", "dev", "bridge"], self.server)
        run(["ip", "link", "set", "bridge", "up"], self.server)

    def namespace(self, slot):
        """The process id whose network namespace is that of the VM in `slot`."""
        if slot not in self._holders:
            holder = self._hold(slot)
            here = f"vm{slot}"
            run(["ip", "link", "add", here, "type", "veth", "peer", "name", "eth0", "netns",
                 str(holder)], self.server)
            run(["ip", "link", "set", here, "master", "bridge", "up"], self.server)
            run(["ip", "link", "set", "lo", "up"], holder)
            run(["ip", "addr", "add", f"{address_of(slot)}/24", "dev", "eth0"], holder)
            run(["ip", "link", "set", "eth0", "up"], holder)
        return self._holders[slot].pid

    def _hold(self, key):
        holder = Process(f"namespace {key}", ["unshare", "--net", "sleep", "infinity"])
        self._holders[key] = holder
        # setpriv and unshare replace themselves: the id stays, the namespace
        # changes once unshare has done its work.
        mine = os.readlink("/proc/self/ns/net")
        deadline = time.monotonic() + 10
        while os.readlink(f"/proc/{holder.pid}/ns/net") == mine:
            if not holder.running() or time.monotonic() > deadline:
                raise RuntimeError("no network namespace; is this root? (unshare --net)")
            time.sleep(0.002)
        return holder.pid

    def stop(self):
        for holder in reversed(list(self._holders.values())):
            holder.kill()
        self._holders.clear()
