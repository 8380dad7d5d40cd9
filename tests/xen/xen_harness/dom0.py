# SPDX-License-Identifier: Apache-2.0
"""The machine that runs Xen, seen from its Dom0.

    dom0 = Dom0(directory).boot()     # Dom0(directory, full=True): worker domains, HVM guests
    dom0.check("xl info")
    guest = dom0.domain("pv1", kind="pv").boot()
    guest.check("uname -r")
    dom0.stop()                 # pulls the plug: guests end with it

       harness        virtio-serial     Dom0                          guest
    Dom0.run     ───── port 1 ───────── agent
    Domain.run   ───── port 2 ───────── relay ── /dev/pts/N ── hvc0 ── agent
    another      ───── port 3 ───────── relay ── …

A relay is a job of Dom0's agent, so that its end tells the end of the guest's console.
"""

import shlex
import socket
import struct
import threading

from harness import process
from harness.guest import PORT_BYTES, Guest, GuestError

from . import files, image
from .domain import Domain
from .files import STEP_TIMEOUT_S

# Without `-smap` Dom0 faults at once, without `-rdtscp` PVH guests do; two threads or
# two processors stall now and then.  With `xsave` and `fsgsbase` programs of Dom0 and of
# guests that work at the same time lose registers: data changes, busybox crashes.  With
# `erms` all copy and clear byte by byte, each byte an instruction to translated code.
ACCELERATOR = "tcg,thread=single,tb-size=256"
# The machine's time is its instructions, 2 ns each: on a busy host it gets slower and
# notices nothing, where with the host's time its guests miss ticks and may panic.
CLOCK = "shift=1"
PROCESSOR = "max,-smap,-rdtscp,-xsave,-fsgsbase,-erms"
MEMORY_MIB = 2048
DOM0_MIB = 768
XEN_OPTIONS = (f"console=com1 com1=115200,8n1 noreboot bootscrub=0 dom0_mem={DOM0_MIB}M,"
               f"max:{DOM0_MIB}M dom0_max_vcpus=1 guest_loglvl=all conring_size=256k")
KERNEL_OPTIONS = ("console=hvc0 quiet panic=-1 nokaslr apparmor=0 cryptomgr.notests "
                  "init_on_alloc=0 rodata=off")
BOOT_TIMEOUT_S = 300
PORTS = range(2, 10)  # for that many guests at once


class Port:
    """One more virtio-serial port; what comes goes to whoever has taken it."""

    def __init__(self, number):
        self.number = number
        self.user = None
        self._ours, self.theirs = socket.socketpair()
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO,
                              struct.pack("ll", STEP_TIMEOUT_S, 0))
        self._reader = threading.Thread(target=self._read, daemon=True, name=f"port {number}")

    def start(self):
        """QEMU has its end."""
        self.theirs.close()
        self._reader.start()

    def send(self, data):
        self._ours.sendall(data)

    def close(self):
        """QEMU has ended."""
        self._reader.join(10)
        self._ours.close()

    def _read(self):
        try:
            while data := self._ours.recv(PORT_BYTES):
                user = self.user
                if user is not None:
                    user.feed(data)
        except (OSError, ValueError) as error:
            if self.user is not None:
                self.user.lose(f"its port failed: {error}")


class Dom0(Guest):
    def __init__(self, directory, name="dom0", full=False):
        super().__init__(name, directory, memory_mib=MEMORY_MIB)
        self.full = full
        self.domains = []
        self.ports = []
        self._free_ports = []

    # --- life ---------------------------------------------------------------

    def argv(self, agent_fd=None, monitor_fd=None):
        made = image.get(self.full)
        ports = []
        for port in self.ports:
            ports += ["-chardev", f"socket,id=port{port.number},fd={port.theirs.fileno()}",
                      "-device", f"virtserialport,chardev=port{port.number},nr={port.number}"]
        return [
            self.qemu, "-name", self.name, "-accel", ACCELERATOR, "-icount", CLOCK, "-M", "q35",
            "-cpu", PROCESSOR, "-smp", "1", "-m", str(self.memory_mib), "-nodefaults",
            "-display", "none", "-nic", "none", "-no-reboot", "-serial", f"file:{self.console}",
            "-kernel", str(made.hypervisor), "-append", XEN_OPTIONS,
            "-initrd", f"{made.vmlinux} {KERNEL_OPTIONS},{made.dom0}",
            "-chardev", f"socket,id=agent,fd={agent_fd}",
            "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,nr=1",
            *ports, "-chardev", f"socket,id=monitor,fd={monitor_fd}",
            "-mon", "chardev=monitor,mode=control"]

    def start(self):
        self.ports = [Port(number) for number in PORTS]
        self._free_ports = list(self.ports)
        self.pass_fds = [port.theirs.fileno() for port in self.ports]
        super().start()
        process.share_precedence(self.process.pid)
        for port in self.ports:
            port.start()
        return self

    def boot(self, timeout=BOOT_TIMEOUT_S):
        return super().boot(timeout)

    def stop(self):
        """At once; also after power_off()."""
        if self.process is None:
            return
        super().stop()
        for domain in self.domains:
            domain.lose("its Dom0 was stopped")
        for port in self.ports:
            port.close()
        self.ports = []

    def power_off(self, timeout=STEP_TIMEOUT_S):
        """In order, as an administrator does it; QEMU ends."""
        self.spawn("sync; poweroff -f")
        self.process.wait(timeout)
        self.stop()

    # --- guests -------------------------------------------------------------

    def domain(self, name, **options):
        """A Domain of this Dom0, not yet created; see there for the options."""
        made = Domain(self, name, **options)
        self.domains.append(made)
        return made

    def destroy_all(self):
        """Ends every guest, also those that a test forgot."""
        for domain in self.domains:
            domain.destroy()
        self.domains = []

    def take_port(self, user):
        if not self._free_ports:
            raise GuestError(f"{self.name}: its {len(self.ports)} ports are taken: too many guests "
                             "at once; destroy() one")
        port = self._free_ports.pop()
        port.user = user
        return port

    def return_port(self, port):
        port.user = None
        self._free_ports.append(port)

    # --- XenStore and files -------------------------------------------------

    def store_read(self, path):
        """A node's value; None when there is no such node."""
        status, output = self.run(f"xenstore-read {shlex.quote(path)} 2>/dev/null", STEP_TIMEOUT_S)
        return output.rstrip("\n") if status == 0 else None

    def store_write(self, path, value):
        self.check(f"xenstore-write {shlex.quote(path)} {shlex.quote(value)}", STEP_TIMEOUT_S)

    def put(self, data, path):
        files.put(self, data, path)

    def get(self, path):
        return files.get(self, path)

    def report(self):
        """For a failure: what Xen, Dom0 and the guests said last."""
        text = self.console_tail(40)
        if self.alive() and self._said_hello:
            try:
                text += "\n--- xl list\n" + self.run(
                    "xl list; for f in /var/log/xen/*.log /var/log/xen/console/*; do "
                    "[ -f $f ] && echo \"--- $f\" && tail -n 20 $f; done; "
                    "echo '--- xl dmesg'; xl dmesg | tail -n 15", 30)[1]
            except GuestError as error:
                text += f"\n{error}"
        return text + "".join(f"\n{domain.report()}" for domain in self.domains)
