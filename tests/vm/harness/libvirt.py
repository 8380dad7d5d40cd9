# SPDX-License-Identifier: Apache-2.0
"""A libvirtd of the test's own, and guests that it starts.

    with Libvirtd() as libvirt:
        libvirt.define("vm1")                     # no device yet
        libvirt.probe("publish", "vm1", 1, "A", 2)
        libvirt.probe("start", "vm1")
        guest = libvirt.guest("vm1")              # a Guest, see guest.py
        guest.check("uname -r")

libvirtd as root has fixed paths (/etc/libvirt, /var/lib/libvirt, ...).  So it runs
in a mount namespace in which these are directories of this test, and in a PID and
network namespace too: when its first process ends (a shell, which also takes in the
QEMUs that libvirtd left to it), all do, and nothing of the machine's own libvirt is
touched.  Its socket is in the test's directory, so clients need no namespace.

    DIRECTORY/{etc,lib,run,cache,log}  what libvirtd has in the place of its own
    DIRECTORY/lib/NAME.agent, .console     of each guest

LibvirtLab is that with a mediator, its database, vgpu-admin and the start-up hook:

    with LibvirtLab() as lab:
        lab.libvirt.define("vm1", append="vgpu.module")
        lab.good("register-vm", "vm1")
        lab.good("start-vm", "vm1")
        lab.libvirt.guest("vm1").check("vgpu-client PING")
"""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import stat
import subprocess
import threading
import time
import uuid
from xml.sax.saxutils import escape, quoteattr

from . import accel, image, paths
from .guest import KERNEL_OPTIONS, Guest, GuestError
from .process import Process, end_marked, remove_directory, run_directory

START_TIMEOUT_S = 90
PLACES = {"etc": "/etc/libvirt", "lib": "/var/lib/libvirt", "run": "/run/libvirt",
          "cache": "/var/cache/libvirt", "log": "/var/log/libvirt"}
LIBVIRTD_CONF = """auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_group = "root"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
log_filters = "4:util.netdev"
"""
# All that a machine without cgroups, AppArmor and an own user can do without.
ROOT_CONF = """user = "root"
group = "root"
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
"""
# libvirt's own user and namespaces; what is left out needs systemd's daemons.
DEFAULT_CONF = """cgroup_controllers = []
stdio_handler = "file"
"""
WRAPPER = paths.REPOSITORY / "device/qemu-with-vgpu"


class Libvirtd:
    """default_user: QEMU runs as libvirt-qemu in a mount namespace of its own.
    wrapper: what <emulator> is to name when a device is published."""

    def __init__(self, default_user=False, wrapper=WRAPPER):
        self.default_user = default_user
        self.wrapper = pathlib.Path(wrapper)
        self.directory = run_directory("libvirt")
        self.guests = {}
        for name in PLACES:
            (self.directory / name).mkdir()
        self.directory.chmod(0o711)
        (self.directory / "etc/qemu.conf").write_text(DEFAULT_CONF if default_user else ROOT_CONF)
        (self.directory / "etc/libvirtd.conf").write_text(LIBVIRTD_CONF)
        self.socket = self.directory / "run/libvirt-sock"
        self.uri = f"qemu:///system?socket={self.socket}"
        self.process = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *exception):
        self.close()

    def start(self):
        for place in PLACES.values():
            os.makedirs(place, exist_ok=True)
        mounts = " && ".join(f"mount --bind {self.directory}/{name} {place}"
                             for name, place in PLACES.items())
        if self.default_user and os.path.exists("/dev/kvm"):
            mounts += f" && mount --bind {self._make_kvm()} /dev/kvm"
        self.process = Process("libvirtd", [
            "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc",
            "sh", "-c", f"{mounts} && {{ libvirtd --config /etc/libvirt/libvirtd.conf "
            "--pid-file /run/libvirt/libvirtd.pid & wait $!; }"],
            log=self.directory / "libvirtd.out")
        deadline = time.monotonic() + START_TIMEOUT_S
        while subprocess.run(["virsh", "-q", "-c", self.uri, "uri"], stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                             timeout=120).returncode != 0:
            if not self.process.running() or time.monotonic() > deadline:
                raise RuntimeError(f"libvirtd does not serve:\n{self.report()}")
            time.sleep(0.05)
        return self

    def _make_kvm(self):
        """/dev/kvm with the group that udev gives it: where libvirt's user may not open it,
        libvirt asks QEMU all over again what it can, at each step."""
        node = self.directory / "kvm"
        os.mknod(node, 0o660 | stat.S_IFCHR, os.stat("/dev/kvm").st_rdev)
        shutil.chown(node, group="kvm")
        node.chmod(0o660)
        return node

    def close(self):
        for guest in self.guests.values():
            guest.stop()
        if self.process is not None:
            self.process.stop(first=9)
        remove_directory(self.directory)

    def report(self):
        parts = []
        for path in [self.directory / "libvirtd.out", *self.directory.glob("log/*.log"),
                     *self.directory.glob("log/qemu/*.log")]:
            if path.exists():
                parts.append(f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}")
        return "\n".join(parts)

    # --- programs ------------------------------------------------------------------

    def virsh(self, *arguments, timeout=180):
        """Returns (status, what it printed)."""
        done = subprocess.run(["virsh", "-q", "-c", self.uri, *map(str, arguments)],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True, timeout=timeout)
        return done.returncode, done.stdout

    def check(self, *arguments, timeout=180):
        status, output = self.virsh(*arguments, timeout=timeout)
        if status != 0:
            raise RuntimeError(f"virsh {arguments}: {output}\n{self.report()}")
        return output

    def probe(self, *arguments, timeout=180, **environment):
        """src/toolstack/ by tests/func/toolstack_probe.c: (status, its JSON or None)."""
        program = paths.BUILD / "tests/func/toolstack_probe"
        done = subprocess.run([program, "-t", "libvirt", "-c", self.uri, *map(str, arguments)],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
                              timeout=timeout, env={**os.environ, **environment,
                                                    "VGPU_QEMU_WRAPPER": str(self.wrapper)})
        return done.returncode, json.loads(done.stdout) if done.stdout else None

    # --- guests ----------------------------------------------------------------------

    def _copy_image(self):
        """libvirt gives kernel and initramfs to QEMU's user: not those of all tests."""
        made = image.get()
        for path in [made.vmlinux, made.initramfs]:
            copy = self.directory / path.name
            if not copy.exists():
                shutil.copyfile(path, copy)
                copy.chmod(0o644)
        return self.directory / made.vmlinux.name, self.directory / made.initramfs.name

    def define(self, name, more="", append=""):
        """A domain without our device, as an administrator has it; returns its UUID."""
        kernel, initramfs = self._copy_image()
        domain_uuid = str(uuid.uuid4())
        kind = "qemu" if accel.accelerator().startswith("tcg") else "kvm"
        cache = "<tcg><tb-cache unit='MiB'>32</tb-cache></tcg>" if kind == "qemu" else ""
        line = f"{KERNEL_OPTIONS} vgpu.name={name} {append}".strip()
        path = self.directory / f"{name}.xml"
        # Two vCPUs, one of them off: see accel.py.
        path.write_text(f"""<domain type='{kind}'>
  <name>{escape(name)}</name>
  <uuid>{domain_uuid}</uuid>
  <memory unit='MiB'>128</memory>
  <vcpu current='1'>2</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initramfs}</initrd>
    <cmdline>{escape(line)}</cmdline>
  </os>
  <features><acpi/>{cache}</features>
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type='usb' model='none'/>
    <serial type='file'><source path={quoteattr(str(self.console(name)))}/></serial>
    <channel type='unix'>
      <source mode='bind' path={quoteattr(str(self.agent(name)))}/>
      <target type='virtio' name='agent'/>
    </channel>
    <memballoon model='none'/>
  </devices>
  {more}
</domain>
""")
        self.check("define", path)
        return domain_uuid

    def console(self, name):
        return self.directory / "lib" / f"{name}.console"

    def agent(self, name):
        return self.directory / "lib" / f"{name}.agent"

    def guest(self, name):
        """The agent of a domain that runs: waits until it answers."""
        if name in self.guests:
            self.guests.pop(name).leave()
        guest = LibvirtGuest(self, name).start()
        self.guests[name] = guest
        return guest.wait_ready()


class _Domain:
    """What Guest asks its process."""

    def __init__(self, libvirt, name):
        self.libvirt = libvirt
        self.name = name

    def running(self):
        return self.libvirt.virsh("domstate", self.name)[1].strip() == "running"

    def output(self, last=60):
        return self.libvirt.report()

    def kill(self):
        self.libvirt.virsh("destroy", self.name)


class LibvirtGuest(Guest):
    """A domain that libvirt has started; stop() is `virsh destroy`."""

    def __init__(self, libvirt, name):
        super().__init__(name, libvirt.directory)
        self.libvirt = libvirt
        self.console = libvirt.console(name)

    def start(self):
        self._started = time.monotonic()
        self._port = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._port.connect(str(self.libvirt.agent(self.name)))
        self.process = _Domain(self.libvirt, self.name)
        self._monitor = socket.socket()
        self._reader = threading.Thread(target=self._read_port, daemon=True,
                                        name=f"{self.name} reader")
        self._reader.start()
        return self

    def leave(self):
        """Forgets the domain, which may be running anew already."""
        if self.process is None:
            return
        self.ended = True
        with contextlib.suppress(OSError):
            self._port.shutdown(socket.SHUT_RDWR)
        self._reader.join(10)
        self._port.close()
        self._monitor.close()
        self.process = None

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.leave()


class LibvirtLab:
    """hook: vgpu-vm-startup stands among libvirt's hooks.  settings: of [mediator]."""

    def __init__(self, default_user=False, hook=True, wrapper=WRAPPER, **settings):
        self.libvirt = Libvirtd(default_user, wrapper)
        self.directory = self.libvirt.directory
        self.run_dir = self.directory / "sockets"
        self.config = self.directory / "mediator.conf"
        self.mediator = None
        settings = {
            "share": self.directory / "share", "state_dir": self.directory / "state",
            "run_dir": self.run_dir, "database": self.directory / "vgpu.db", "channels": "window",
            "worker": paths.worker(), "worker_memory_mib": 0, "log_format": "json",
            "quarantine_faults": 0,
            "log": self.directory / "mediator.json", **settings}
        self.config.write_text("[mediator]\n" + "".join(
            f"{key} = {value}\n" for key, value in settings.items()) + "[admin]\n"
            "toolstack = libvirt\n")
        (self.directory / "share").mkdir()
        self.program = self.directory / "vgpu-admin"
        self.program.write_text(
            "#!/bin/sh\n" f"exec {paths.BUILD}/src/admin/vgpu-admin --config {self.config} "
            '"$@"\n')
        self.program.chmod(0o755)
        if hook:
            self._install_hook()

    def _install_hook(self):
        hook = self.directory / "etc/hooks/qemu.d/vgpu"
        hook.parent.mkdir(parents=True)
        hook.write_text(f"#!/bin/sh\nVGPU_ADMIN={self.program} "
                        f'exec sh {paths.BUILD}/packaging/vgpu-vm-startup "$@"\n')
        hook.chmod(0o755)

    def __enter__(self):
        try:
            self.good("init")
            self.libvirt.start()
            self.start_mediator()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception):
        self.close()

    def start_mediator(self):
        self.mediator = Process("mediator", [paths.mediator(), "--config", self.config],
                                log=self.directory / "mediator.out")
        deadline = time.monotonic() + START_TIMEOUT_S
        while '"event":"ready"' not in self.mediator_log():
            if not self.mediator.running() or time.monotonic() > deadline:
                raise RuntimeError(f"no mediator:\n{self.report()}")
            time.sleep(0.02)

    def mediator_log(self):
        path = self.directory / "mediator.json"
        return path.read_text() if path.exists() else ""

    def close(self):
        for guest in self.libvirt.guests.values():
            with contextlib.suppress(OSError):
                guest.stop()
        if self.mediator is not None:
            self.mediator.stop()
        end_marked([self.directory], patience=2)
        self.libvirt.close()

    def admin(self, *words, timeout=120):
        """vgpu-admin: (status, standard output, standard error)."""
        done = subprocess.run(
            [self.program, *map(str, words), "--connect", self.libvirt.uri],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout,
            env={**os.environ, "VGPU_QEMU_WRAPPER": str(self.libvirt.wrapper)})
        return done.returncode, done.stdout, done.stderr

    def good(self, *words, timeout=120):
        status, output, problem = self.admin(*words, timeout=timeout)
        if status != 0:
            raise RuntimeError(f"vgpu-admin {words}: {status}: {problem}\n{self.report()}")
        return output

    def json(self, *words):
        return json.loads(self.good(*words, "--json"))

    def report(self):
        out = self.directory / "mediator.out"
        return "\n".join([self.libvirt.report(), "--- mediator", self.mediator_log()[-3000:],
                          out.read_text()[-2000:] if out.exists() else ""])


__all__ = ["GuestError", "Libvirtd", "LibvirtGuest", "LibvirtLab"]
