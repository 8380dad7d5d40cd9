# SPDX-License-Identifier: Apache-2.0
"""A virtual machine: QEMU, the vgpu-stub device, and commands inside it.

    guest = Guest("vm1", directory, pool="A", priority="low", vm_id=1)
    guest.start()                      # QEMU runs; start several, then wait
    guest.wait_ready()
    status, output = guest.run("uname -r")
    job = guest.spawn("vgpu-client --timeout 30")     # in the background
    status, output = job.wait(40)
    guest.stop()

Commands (agent.py) go through a virtio-serial port to tests/vm/guest/agent.c, so kernel
messages never mix with answers; the console is a file, kept for failures.
start() belongs to the main thread (see process.py); all else may be anywhere.
"""

import json
import os
import pathlib
import socket
import threading
import time

from . import accel, image, paths
from .agent import Agent, GuestError
from .process import Process

BOOT_TIMEOUT_S = 240
# After the first three: what costs time under TCG and matters to no test here.
KERNEL_OPTIONS = ("console=ttyS0 panic=-1 quiet mitigations=off nokaslr apparmor=0 "
                  "cryptomgr.notests no_timer_check")
PORT_BYTES = 65536
UNPACKING_FAILED = "Initramfs unpacking failed"  # the kernel's word


def window_options(socket_path, sessions=8, window_mib=64, name="vgpu"):
    """QEMU's options for a window, and what the device's own option needs more."""
    return ([
        "-object", f"memory-backend-memfd,id={name}win,size={window_mib}M,share=on",
        "-chardev", f"socket,id={name},path={socket_path},reconnect=1"],
        f",memdev={name}win,chardev={name},sessions={sessions}")


class Guest(Agent):
    """`pool`, `priority`, `vm_id` None: a guest without the device.

    socket_path: where its device finds the mediator; the device then has a
                 window of window_mib for `sessions`.  Nobody need listen there.
    namespace: process id whose network namespace QEMU runs in, None: no network.
    options:   more arguments for QEMU.      append: more for the kernel.
    programs:  of the host, to be found in the guest with their libraries.
    qemu:      another QEMU; preload=None then says that it has the device built in.
    """

    def __init__(self, name, directory, pool=None, priority=None, vm_id=None, namespace=None,
                 options=(), append="", qemu="qemu-system-x86_64", preload="device",
                 memory_mib=192, lspci=False, socket_path=None, sessions=8, window_mib=64,
                 programs=()):
        super().__init__(name)
        self.directory = pathlib.Path(directory)
        self.console = self.directory / f"{name}.console"
        self.namespace = namespace
        self.options = list(options)
        self.append = append
        self.qemu = qemu
        self.memory_mib = memory_mib
        self.lspci = lspci
        self.programs = tuple(programs)
        self.channel = "file"  # what load.spawn_loop() uses
        self.device = None
        if vm_id is not None:
            self.device = f"vgpu-stub,pool_id={pool},priority={priority},vm_id={vm_id}"
            if socket_path is not None:
                more, properties = window_options(socket_path, sessions, window_mib)
                self.options = more + self.options
                self.device += properties
        self.preload = preload
        self.process = None
        self.boot_s = None
        self.ended = False  # one object, one life
        self.pass_fds = []  # more descriptors for QEMU

    # --- life ---------------------------------------------------------------

    def argv(self, agent_fd=None, monitor_fd=None):
        """QEMU's command line; without descriptors it is one to look at."""
        made = image.get(lspci=self.lspci, programs=self.programs)
        network = ["-nic", "none"]
        if self.namespace is not None:
            network = ["-netdev", "user,id=net,ipv6=off", "-device",
                       "virtio-net-pci,netdev=net,romfile="]
        device = ["-device", self.device] if self.device else []
        return [
            self.qemu, "-name", self.name, "-accel", accel.accelerator(), "-M", "q35",
            "-m", str(self.memory_mib), "-smp", accel.ONE_CPU, "-nodefaults", "-display", "none",
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
                pass_fds=[agent.fileno(), monitor.fileno(), *self.pass_fds])
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
        if UNPACKING_FAILED in self.console_text():
            raise GuestError(f"{self.name}: {self.memory_mib} MiB are too few for its image: "
                             f"{UNPACKING_FAILED}, so files are missing or cut")
        return self

    def boot(self, timeout=BOOT_TIMEOUT_S):
        return self.start().wait_ready(timeout)

    def reset(self):
        """As by its reset button; ready() tells when it is up again.

        What ran in it ends without a word, so nothing may be printing then: half an
        output would be taken together with the next agent's words.
        """
        with self._changed:
            self._said_hello = False
            self._started = time.monotonic()
        answer = self.monitor("system_reset")
        if "error" in answer:
            raise GuestError(f"{self.name}: no reset: {answer['error']}")

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

    # --- console ------------------------------------------------------------

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

    def monitor(self, command, timeout=60, **arguments):
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

    def _send_bytes(self, data):
        self._port.sendall(data)

    def _read_port(self):
        why = "QEMU ended"
        try:
            while data := self._port.recv(PORT_BYTES):
                self.feed(data)
        except (OSError, ValueError) as error:
            why = f"its port failed: {error}"
        self.lose(why)

    def _hello(self):
        super()._hello()
        self.boot_s = time.monotonic() - self._started


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
