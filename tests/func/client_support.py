# SPDX-License-Identifier: Apache-2.0
"""A guest without a VM: a sysfs made of plain files, a share, and a mediator of a
few lines whose every move a test can choose."""

import json
import os
import pathlib
import signal
import struct
import subprocess
import threading
import time

import support

CLIENT = support.BUILD / "src/client/vgpu-client"
DYNAMIC = support.BUILD / "src/client/vgpu-client-dynamic"
SHIM_SOURCE = pathlib.Path(__file__).with_name("client_shim.c")

MAGIC = 0x55504756
VENDOR, DEVICE = 0x1AF4, 0x10F1
REGISTERS = {"doorbell": 0x0, "status": 0x4, "pool": 0x8, "priority": 0xC, "vm_id": 0x10,
             "magic": 0x14, "version": 0x18, "caps": 0x1C, "window_lo": 0x20, "window_hi": 0x24,
             "error": 0x28, "irq_mask": 0x2C, "irq_status": 0x30, "doorbells": 0x34,
             "scratch": 0x38}
RESET = {"status": 1, "pool": ord("A"), "priority": 2, "vm_id": 100, "magic": MAGIC,
         "version": 1 << 16}

NOBODY = 65534
IS_ROOT = os.geteuid() == 0


def add_device(sysfs, address="0000:00:04.0", class_code=0x120000, vendor=VENDOR, device=DEVICE,
               memory_space=True, bar_bytes=4096, **registers):
    """One PCI device, as the kernel shows it; resource0 is a plain file."""
    path = pathlib.Path(sysfs) / "bus/pci/devices" / address
    path.mkdir(parents=True)
    config = bytearray(64)
    struct.pack_into("<HHH", config, 0, vendor, device, 2 if memory_space else 0)
    (path / "config").write_bytes(config)
    (path / "class").write_text(f"0x{class_code:06x}\n")
    (path / "vendor").write_text(f"0x{vendor:04x}\n")
    (path / "device").write_text(f"0x{device:04x}\n")
    (path / "enable").write_text("1\n" if memory_space else "0\n")
    bar = bytearray(bar_bytes)
    for name, value in {**RESET, **registers}.items():
        struct.pack_into("<I", bar, REGISTERS[name], value)
    (path / "resource0").write_bytes(bar)
    return path


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def __repr__(self):
        return f"exit {self.code}\n--- stdout\n{self.out}--- stderr\n{self.err}"

    @property
    def json(self):
        value = json.loads(self.out)
        assert isinstance(value, dict), self
        assert value["exit_code"] == self.code and value["ok"] == (self.code == 0), self
        if self.code and "checks" not in value:
            assert value["error"]["code"] and value["error"]["text"], self
        return value


class Guest:
    def __init__(self, place, device=True, vm_directory=True):
        self.place = pathlib.Path(place)
        self.sysfs = self.place / "sys"
        self.share = self.place / "share"
        self.directory = self.share / "vm100"
        self.request = self.directory / "request.txt"
        self.response = self.directory / "response.txt"
        self.temporary = self.directory / ".request.txt.new"
        (self.sysfs / "bus/pci/devices").mkdir(parents=True)
        self.share.mkdir()
        if vm_directory:
            self.directory.mkdir()
        if device:
            add_device(self.sysfs)
        self.processes = []

    def command(self, *words, program=CLIENT):
        return [str(program), "--sysfs", str(self.sysfs), "--share", str(self.share),
                *map(str, words)]

    def start(self, *words, program=CLIENT, rules=(), shim=None, env=None, **options):
        environment = {**os.environ, **(env or {})}
        if shim:
            environment.update(LD_PRELOAD=str(shim), VGPU_SHIM=";".join(rules))
            environment["ASAN_OPTIONS"] = "verify_asan_link_order=0"
            program = DYNAMIC
        process = subprocess.Popen(self.command(*words, program=program), text=True,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, env=environment, **options)
        self.processes.append(process)
        return process

    @staticmethod
    def end(process):
        out, err = process.communicate(timeout=support.WAIT_S)
        return Result(process.returncode, out, err)

    def run(self, *words, **options):
        return self.end(self.start(*words, **options))

    def run_as_nobody(self, *words):
        program = support.copy_for_others(CLIENT, self.place)
        for path in (self.share, self.sysfs):
            path.chmod(0o755)
        done = subprocess.run(["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY),
                               "--clear-groups", *self.command(*words, program=program)],
                              capture_output=True, text=True, timeout=support.WAIT_S, check=False)
        return Result(done.returncode, done.stdout, done.stderr)

    def text(self, path):
        return path.read_text() if path.exists() else ""

    def wait_sent(self):
        support.wait_until(lambda: self.text(self.request).endswith("\n"), "a request")

    def processes_left(self):
        """Processes of this guest that still live, by the paths in their command line."""
        left = []
        for entry in pathlib.Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and str(self.share).encode() in (
                        entry / "cmdline").read_bytes() and (
                        entry / "stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX":
                    left.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError):
                pass
        return left

    def close(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        support.wait_until(lambda: not self.processes_left(), lambda: f"the end of {self.processes_left()}")


class FakeMediator(threading.Thread):
    """Takes requests as the real one does and answers what `answer(line)` returns:
    a text, bytes, a callable that writes by itself, or None for no answer.

    `gate`: takes nothing before it is set.  `resets`: puts 0:Ready at accept.
    """

    def __init__(self, directory, answer="1:fine", resets=True, gate=None):
        super().__init__(daemon=True)
        self.request = pathlib.Path(directory) / "request.txt"
        self.response = pathlib.Path(directory) / "response.txt"
        self.answer = answer
        self.resets = resets
        self.gate = gate
        self.lines = []
        self.response_at_accept = []
        self.ended = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exception):
        self.ended.set()
        self.join()

    def run(self):
        while not self.ended.wait(0.002):
            if self.gate and not self.gate.is_set():
                continue
            try:
                text = self.request.read_text()
            except FileNotFoundError:
                continue
            if text.endswith("\n"):
                self.take(text[:-1])

    def take(self, line):
        self.lines.append(line)
        self.response_at_accept.append(self.response.read_text() if self.response.exists() else None)
        if self.resets:
            self.response.write_text("0:Ready\n")
        os.truncate(self.request, 0)
        answer = self.answer(line) if callable(self.answer) else self.answer
        if isinstance(answer, str):
            answer = answer.encode() + b"\n"
        if answer is not None:
            self.response.write_bytes(answer)


def build_shim(directory):
    path = pathlib.Path(directory) / "client_shim.so"
    subprocess.run(["cc", "-std=gnu11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror",
                    "-shared", "-fPIC", "-o", str(path), str(SHIM_SOURCE), "-ldl"], check=True)
    return path


def ignore_hangup():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def is_static(program):
    """No PT_INTERP among the program headers."""
    data = pathlib.Path(program).read_bytes()
    offset, = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    return all(struct.unpack_from("<I", data, offset + i * size)[0] != 3 for i in range(count))


def age(path, seconds):
    """As if it had been written so long ago."""
    then = time.time() - seconds
    os.utime(path, (then, then))
