# SPDX-License-Identifier: Apache-2.0
"""A guest of Xen: made with xl in Dom0, commands through its console.

    guest = dom0.domain("pv1", kind="pv", memory_mib=128)
    guest.boot()                      # create() and wait_ready()
    status, output = guest.run("xenstore-read domid")
    guest.destroy()

    guest.write_config()              # for one that somebody else starts and stops
    guest.attach().wait_ready()       # each time when it runs

Its console belongs to the agent (tests/xen/guest/guest-init); the kernel's messages
are in dmesg.  A guest that reboots is a new domain to Xen: wait_reboot().
"""

import os
import shlex
import time
import uuid as uuids

from harness.agent import Agent, GuestError

from . import files
from .files import STEP_TIMEOUT_S

KINDS = ("pv", "pvh", "hvm")
BOOT_TIMEOUT_S = 600  # an HVM guest on a busy host; else a fraction of it
POLL_S = 0.2
NOISE_LINES = 40
KERNEL_OPTIONS = ("loglevel=1 earlyprintk=xen panic=-1 nokaslr apparmor=0 cryptomgr.notests "
                  "mitigations=off init_on_alloc=0 rodata=off")
# Without a PC's devices: to look for PCI and to measure the processor by a timer that is not
# there takes a PVH guest a hundred thousand exits, two thirds of its boot.
BARE_OPTIONS = " pci=off clearcpuid=tsc lpj=2000000"
# Begins with a line of its own: what an earlier guest said there is not this one's.
RELAY = """port=$(echo /dev/vport*p{port})
exec 3<>$port 4<>{tty}
stty raw -echo <&4
echo {token} >&3
cat <&3 >&4 & up=$!
cat <&4 >&3 2>/dev/null
kill $up"""


class Domain(Agent):
    """kind:   "pv", "pvh", or "hvm" (needs `scripts/build-qemu --xen`).
    uuid:   None: a new one.
    append: more words for its kernel.
    image:  "worker.cpio": what a worker domain boots, with the mediator.
    config: more lines for xl, e.g. 'on_crash="preserve"'.
    device: its vgpu-stub's properties, e.g. "vm_id=7,pool_id=A"; "hvm" only."""

    def __init__(self, dom0, name, kind="pv", memory_mib=128, uuid=None, append="", config="",
                 device=None, image="initramfs.cpio"):
        super().__init__(name)
        if kind not in KINDS:
            raise ValueError(f"kind {kind!r}: use one of {KINDS}")
        self.dom0 = dom0
        self.kind = kind
        self.memory_mib = memory_mib
        self.uuid = str(uuid or uuids.uuid4())
        self.append = append
        self.config = config
        self.device = device
        self.image = image
        self.id = None
        self.noise = []  # lines on its console that are no agent's
        self._port = None
        self._relay = None
        self._token = None

    # --- life ---------------------------------------------------------------

    def config_text(self):
        kernel, packed = ("vmlinuz", ".xz") if self.kind == "hvm" else ("vmlinux", "")
        options = KERNEL_OPTIONS + ("" if self.kind == "hvm" else BARE_OPTIONS)
        text = (f'name="{self.name}"\ntype="{self.kind}"\nuuid="{self.uuid}"\n'
                f'memory={self.memory_mib}\nvcpus=1\nkernel="/guest/{kernel}"\n'
                f'ramdisk="/guest/{self.image}{packed}"\n'
                f'extra="{options} vgpu.name={self.name} {self.append}"\n{self.config}\n')
        return text + (self._hvm_text() if self.kind == "hvm" else "")

    def _hvm_text(self):
        words = ["-device", f"vgpu-stub,{self.device}"] if self.device else []
        quoted = ", ".join(f'"{word}"' for word in words)
        return ('device_model_override="/usr/bin/qemu-system-i386"\nvga="none"\nvnc=0\nusb=0\n'
                f'device_model_args_hvm=[{quoted}]\n')

    def write_config(self, directory="/etc/xen"):
        """Returns the path of its file in Dom0."""
        file = f"{directory}/{self.name}.cfg"
        self.dom0.put(self.config_text().encode(), file)
        return file

    def create(self):
        """Its processor runs when this returns; its kernel may not yet."""
        self.dom0.check(f"xl create {self.write_config('/run')}", BOOT_TIMEOUT_S)
        self._attach()
        return self

    def attach(self):
        """Takes the console of the domain that has its name now."""
        self._detach()
        self._attach()
        return self

    def wait_ready(self, timeout=BOOT_TIMEOUT_S):
        with self._changed:
            self._changed.wait_for(lambda: self._said_hello or self._lost, timeout)
        if not self.ready():
            raise GuestError(f"{self.name}: no sign of life within {timeout} s\n"
                             f"{self.console_tail()}")
        return self

    def boot(self, timeout=BOOT_TIMEOUT_S):
        return self.create().wait_ready(timeout)

    def answers(self):
        """Whether its agent has said hello, and its console is there."""
        with self._changed:
            return self._said_hello and not self._lost

    def exists(self):
        """Whether Xen has a domain of its name."""
        return self.dom0.run(f"xl domid {shlex.quote(self.name)}", STEP_TIMEOUT_S)[0] == 0

    def destroy(self):
        """At once, as `xl destroy` does it; also of one that has ended by itself."""
        if self.dom0.alive():
            self.dom0.run(f"xl destroy {shlex.quote(self.name)}", STEP_TIMEOUT_S)
        self._detach()

    def wait_ended(self, timeout=STEP_TIMEOUT_S):
        """Until Xen has no such domain any more."""
        self._wait(lambda: not self.exists(), "its end", timeout)
        self._detach()

    def wait_reboot(self, timeout=BOOT_TIMEOUT_S):
        """After the guest's own reboot: until Xen has made it anew and it is up."""
        old = self.id
        self._wait(lambda: self._domid() not in (None, old), "its new life", timeout)
        return self.attach().wait_ready(timeout)

    def save_and_restore(self, timeout=BOOT_TIMEOUT_S):
        """As `xl save` and `xl restore` do it: what runs in it goes on, in a new domain.  Its
        jobs are lost, and none may print meanwhile: let them write into files."""
        file = self._save("", timeout)
        self._detach()
        self.dom0.check(f"xl restore {file}; status=$?; rm {file}; exit $status", timeout)
        return self._attach_running()

    def save_and_go_on(self, timeout=BOOT_TIMEOUT_S):
        """A copy, as `xl save -c` makes it: the domain stays; jobs and all."""
        self.dom0.check(f"rm {self._save('-c', timeout)}")

    def migrate_live(self, timeout=BOOT_TIMEOUT_S):
        """As `xl migrate` moves it while it runs, but to the same host: for a moment both domains
        are there.  Its jobs are lost, as with save_and_restore()."""
        self._detach()
        self.dom0.check(f"xl migrate -s '' {shlex.quote(self.name)} 'xl migrate-receive'", timeout)
        return self._attach_running()

    def _attach_running(self):
        self._attach()
        with self._changed:
            self._said_hello = True  # once for all, when it was booted
        return self

    def _save(self, options, timeout):
        file = f"/run/{self.name}.saved"
        self.dom0.check(f"xl save {options} {shlex.quote(self.name)} {file}", timeout)
        return file

    def _domid(self):
        status, output = self.dom0.run(f"xl domid {shlex.quote(self.name)} 2>/dev/null",
                                       STEP_TIMEOUT_S)
        return int(output) if status == 0 else None

    def _wait(self, condition, what, timeout):
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                raise GuestError(f"{self.name}: {what} did not come within {timeout} s\n"
                                 f"{self.console_tail()}")
            time.sleep(POLL_S)

    # --- its console --------------------------------------------------------

    def _attach(self):
        self.id = self._domid()
        if self.id is None:
            raise GuestError(f"{self.name}: it has ended at once\n{self.dom0.console_tail()}")
        self._wait(lambda: self.store("console/tty"), "its console", STEP_TIMEOUT_S)
        with self._changed:
            self._said_hello, self._lost, self._jobs = False, None, {}
            self._unread.clear()
            self._token = f"console-{os.urandom(6).hex()}"
        self._port = self.dom0.take_port(self)
        self._relay = self.dom0.spawn(RELAY.format(
            port=self._port.number, tty=self.store("console/tty"),
            token=self._token), lambda: self.lose("its console has closed: the domain has ended"))

    def _detach(self):
        if self._port is None:
            return
        if self.dom0.alive() and not self._relay.done():
            self._relay.kill()
            self._relay.wait(STEP_TIMEOUT_S)
        self.lose("it was destroyed, or has ended")
        self.dom0.return_port(self._port)
        self._port = None

    def _send_bytes(self, data):
        port = self._port
        if port is None:
            raise OSError("it has no console")
        port.send(data)

    def feed(self, data):
        with self._changed:
            if self._token is not None:
                data = self._after_token(data)
            if self._token is None:
                super().feed(data)

    def _after_token(self, data):
        """Drops what an earlier guest said on this port; returns what is this one's."""
        mark = self._token.encode() + b"\n"
        self._unread += data
        _, found, own = bytes(self._unread).partition(mark)
        del self._unread[:None if found else -len(mark)]
        if not found:
            return b""
        self._token = None
        return own

    def _other_line(self, line):
        self.noise = [*self.noise[-NOISE_LINES:], line.decode(errors="replace")]

    # --- looking at it ------------------------------------------------------

    def store(self, path):
        """A node below its /local/domain/N, as Dom0 reads it; None without it."""
        return self.dom0.store_read(f"/local/domain/{self.id}/{path}")

    def put(self, data, path):
        files.put(self, data, path)

    def get(self, path):
        return files.get(self, path)

    def console_tail(self):
        return f"--- console of {self.name}\n" + "\n".join(self.noise)

    def report(self):
        text = self.console_tail()
        if self._said_hello and not self._lost:
            try:
                text += f"\n--- dmesg of {self.name}\n{self.run('dmesg | tail -n 15', 30)[1]}"
            except GuestError as error:
                text += f"\n{error}"
        return text
