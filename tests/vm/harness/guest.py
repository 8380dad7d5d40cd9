# SPDX-License-Identifier: Apache-2.0
"""A virtual machine: QEMU, the vgpu-stub device, and commands inside it.

    guest = Guest("vm1", directory, pool="A", priority="low", vm_id=1)
    guest.start()                      # QEMU runs; start several, then wait
    guest.wait_ready()
    status, output = guest.run("uname -r")
    job = guest.spawn("vgpu-client --timeout 30")     # in the background
    status, output = job.wait(40)
    guest.stop()

Commands go through a virtio-serial port to tests/vm/guest/agent.c, so kernel
messages never mix with answers; the console is a file, kept for failures.
start() belongs to the main thread (see process.py); all else may be anywhere.
"""

import json
import os
import pathlib
import signal
import socket
import threading
import time

from . import accel, image, paths
from .process import Process

BOOT_TIMEOUT_S = 90
# After the first three: what costs time under TCG and matters to no test here.
KERNEL_OPTIONS = ("console=ttyS0 panic=-1 quiet mitigations=off nokaslr apparmor=0 "
                  "cryptomgr.notests")
PORT_BYTES = 65536


class GuestError(Exception):
    pass


class Job:
    """A command that runs in a guest."""

    def __init__(self, guest, number, script):
        self.guest = guest
        self.number = number
        self.script = script
        self.status = None
        self._output = bytearray()

    @property
    def output(self):
        """What it has printed so far, stdout and stderr in one."""
        with self.guest._changed:
            return self._output.decode(errors="replace")

    def done(self):
        return self.status is not None

    def wait(self, timeout=30):
        """Returns (status, output)."""
        with self.guest._changed:
            ended = self.guest._changed.wait_for(
                lambda: self.status is not None or self.guest._lost, timeout)
        if self.status is None:
            why = self.guest._lost if ended else f"no end within {timeout} s"
            raise GuestError(f"{self.guest.name}: {self.script!r}: {why}; it printed: "
                             f"{self.output!r}\n{self.guest.console_tail()}")
        return self.status, self.output

    def wait_output(self, text, timeout=30):
        """Until `text` stands in its output, or it ended."""
        with self.guest._changed:
            self.guest._changed.wait_for(
                lambda: text.encode() in self._output or self.status is not None
                or self.guest._lost, timeout)
        if text not in self.output:
            raise GuestError(f"{self.guest.name}: {self.script!r} did not print {text!r} "
                             f"within {timeout} s but: {self.output!r}")

    def kill(self, number=signal.SIGTERM):
        self.guest._send(f"KILL {self.number} {int(number)}\n".encode())


class Guest:
    """`pool`, `priority`, `vm_id` None: a guest without the device.

    namespace: process id whose network namespace QEMU runs in, None: no network.
    options:   more arguments for QEMU.      append: more for the kernel.
    qemu:      another QEMU; preload=None then says that it has the device built in.
    """

    def __init__(self, name, directory, pool=None, priority=None, vm_id=None, namespace=None,
                 options=(), append="", qemu="qemu-system-x86_64", preload="device",
                 memory_mib=128, lspci=False):
        self.name = name
        self.directory = pathlib.Path(directory)
        self.console = self.directory / f"{name}.console"
        self.namespace = namespace
        self.options = list(options)
        self.append = append
        self.qemu = qemu
        self.memory_mib = memory_mib
        self.lspci = lspci
        self.device = None
        if vm_id is not None:
            self.device = f"vgpu-stub,pool_id={pool},priority={priority},vm_id={vm_id}"
        self.preload = preload
        self.process = None
        self.boot_s = None
        self.ended = False  # one object, one life
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._jobs = {}
        self._last_job = 0
        self._lost = None
        self._said_hello = False

    # --- life ---------------------------------------------------------------

    def argv(self, agent_fd=None, monitor_fd=None):
        """QEMU's command line; without descriptors it is one to look at."""
        made = image.get(lspci=self.lspci)
        network = ["-nic", "none"]
        if self.namespace is not None:
            network = ["-netdev", "user,id=net,ipv6=off", "-device",
                       "virtio-net-pci,netdev=net,romfile="]
        device = ["-device", self.device] if self.device else []
        return [
            self.qemu, "-name", self.name, "-accel", accel.accelerator(), "-M", "q35",
            "-m", str(self.memory_mib), "-smp", "1", "-nodefaults", "-display", "none",
            "-no-reboot", "-serial", f"file:{self.console}",
            "-kernel", str(made.vmlinux), "-initrd", str(made.initramfs),
            "-append", f"{KERNEL_OPTIONS} vgpu.name={self.name} {self.append}".strip(),
            "-chardev", f"socket,id=agent,fd={agent_fd}",
            "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=agent,nr=1",
            "-chardev", f"socket,id=monitor,fd={monitor_fd}",
            "-mon", "chardev=monitor,mode=control",
            *network, *device, *self.options]

    def start(self):
        self.directory.mkdir(parents=True, exist_ok=True)
        ours, agent = socket.socketpair()
        self._monitor, monitor = socket.socketpair()
        preload = self.preload
        if preload == "device":
            preload = paths.device() if self.device else None
        self._started = time.monotonic()
        try:
            self.process = Process(
                self.name, self.argv(agent.fileno(), monitor.fileno()), preload=preload,
                log=self.directory / f"{self.name}.qemu.log", namespace=self.namespace,
                pass_fds=[agent.fileno(), monitor.fileno()])
        finally:
            agent.close()
            monitor.close()
        self._port = ours
        self._reader = threading.Thread(target=self._read_port, daemon=True,
                                        name=f"{self.name} reader")
        self._reader.start()
        return self

    def wait_ready(self, timeout=BOOT_TIMEOUT_S):
        with self._changed:
            self._changed.wait_for(lambda: self._said_hello or self._lost, timeout)
        if not self._said_hello:
            why = self._lost or f"no sign of life within {timeout} s"
            raise GuestError(f"{self.name}: {why}\n{self.process.output()}\n{self.console_tail()}")
        return self

    def boot(self, timeout=BOOT_TIMEOUT_S):
        return self.start().wait_ready(timeout)

    def alive(self):
        return self.process is not None and self.process.running() and not self._lost

    def stop(self):
        """At once, like pulling the plug: guests hold nothing that is worth a shutdown."""
        if self.process is None:
            return
        self.ended = True
        self.process.kill()
        self._reader.join(10)
        self._port.close()
        self._monitor.close()
        self.process = None

    # --- commands -----------------------------------------------------------

    def spawn(self, script):
        """Starts `sh -c script` in the guest; returns a Job."""
        data = script.encode()
        with self._changed:
            self._last_job += 1
            job = Job(self, self._last_job, script)
            self._jobs[job.number] = job
        self._send(f"RUN {job.number} {len(data)}\n".encode() + data)
        return job

    def run(self, script, timeout=30):
        """Returns (status, output)."""
        return self.spawn(script).wait(timeout)

    def check(self, script, timeout=30):
        """Returns the output; another status than 0 raises."""
        status, output = self.run(script, timeout)
        if status != 0:
            raise GuestError(f"{self.name}: {script!r}: status {status}: {output}")
        return output

    def console_text(self):
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def console_tail(self, lines=30):
        return f"--- console of {self.name}\n" + "\n".join(self.console_text().splitlines()[-lines:])

    # --- network and share --------------------------------------------------

    def network_up(self):
        self.check("guest-network")

    def mount_script(self, server, pseudo, directory, hard=True, version="4.1", extra=""):
        """See docs/nfs.md for why these options."""
        kind = "hard" if hard else "soft,timeo=30,retrans=2"
        more = f",{extra}" if extra else ""
        return (f"mkdir -p {directory} && mount -t nfs4 -o addr={server},clientaddr=10.0.2.15,"
                f"vers={version},proto=tcp,{kind},actimeo=1,lookupcache=none,nosharecache{more} "
                f"{server}:{pseudo} {directory}")

    def mount_share(self, server, vm_id, hard=True, version="4.1", extra=""):
        """Mounts this VM's export at /mnt/vgpu/vm<id>."""
        self.network_up()
        directory = f"/mnt/vgpu/vm{vm_id}"
        self.check("modprobe nfsv4 && "
                   + self.mount_script(server, f"/vm{vm_id}", directory, hard, version, extra), 60)
        return directory

    # --- QEMU's monitor -----------------------------------------------------

    def monitor(self, command, timeout=10, **arguments):
        """One QMP command; returns the whole answer, errors included."""
        self._monitor.settimeout(timeout)
        if not hasattr(self, "_monitor_file"):
            self._monitor_file = self._monitor.makefile("rw")
            self._monitor_file.readline()  # the greeting
            self._monitor_ask({"execute": "qmp_capabilities"})
        return self._monitor_ask({"execute": command, "arguments": arguments})

    def _monitor_ask(self, question):
        self._monitor_file.write(json.dumps(question) + "\n")
        self._monitor_file.flush()
        while True:
            line = self._monitor_file.readline()
            if not line:
                raise GuestError(f"{self.name}: QEMU's monitor has gone")
            answer = json.loads(line)
            if "return" in answer or "error" in answer:
                return answer

    # --- the port -----------------------------------------------------------

    def _send(self, data):
        with self._sending:
            try:
                self._port.sendall(data)
            except OSError as error:
                raise GuestError(f"{self.name}: the guest is gone: {error}\n"
                                 f"{self.console_tail()}") from error

    def _read_port(self):
        stream = self._port.makefile("rb", PORT_BYTES)
        why = "QEMU ended"
        try:
            while line := stream.readline():
                self._handle(line.split(), stream)
        except (OSError, ValueError) as error:
            why = f"its port failed: {error}"
        with self._changed:
            self._lost = why
            self._changed.notify_all()

    def _handle(self, words, stream):
        data = stream.read(int(words[2])) if words[0] == b"OUT" else b""
        with self._changed:
            if words[0] == b"HELLO":
                self._said_hello = True
                self.boot_s = time.monotonic() - self._started
            elif words[0] == b"OUT":
                self._jobs[int(words[1])]._output += data
            elif words[0] == b"END":
                self._jobs.pop(int(words[1])).status = int(words[2])
            else:
                raise ValueError(f"the agent said {words!r}")
            self._changed.notify_all()


def boot_all(guests, timeout=BOOT_TIMEOUT_S):
    """Starts all, then waits for all."""
    for guest in guests:
        guest.start()
    for guest in guests:
        guest.wait_ready(timeout)


def cpu_seconds(guest):
    """Host CPU time that a guest's QEMU has used."""
    fields = pathlib.Path(f"/proc/{guest.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
