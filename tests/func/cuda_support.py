# SPDX-License-Identifier: Apache-2.0
"""What tests of the cuda backend share; the fixtures `fake` and `cuda` are conftest.py's."""

import contextlib
import os
import pathlib
import shutil
import subprocess

import support
from window_peer import ARENA

ON_GPU = os.environ.get("VGPU_TEST_GPU") == "1"
OP_LAUNCH = 50
ONE = 1 | 1 << 32  # two dimensions of a launch
PROBE = support.BUILD / "tests/func/cuda_probe"
FAKE = support.BUILD / "tests/doubles/fake_cuda.so"


class Fake:
    """A copy of the double with orders of its own (tests/doubles/fake_cuda.h)."""

    def __init__(self, directory):
        self.path = pathlib.Path(directory) / "libcuda.so.1"
        self.log = self.beside(".log")
        self.lines = []
        shutil.copy(FAKE, self.path)
        self.path.parent.chmod(0o755)
        self.order()

    def beside(self, ending):
        return self.path.with_name(self.path.name + ending)

    def order(self, *lines):
        """More orders."""
        self.lines += lines
        made = self.beside(".new")
        # Streams run beside each other, as they do on a GPU; what comes later counts.
        made.write_text("".join(f"{line}\n" for line in ["engines 4", *self.lines]))
        made.rename(self.beside(".conf"))

    def order_only(self, *lines):
        """These orders and no others."""
        self.lines = []
        self.order(*lines)

    def keep_memory(self, memory_bytes):
        """What a device's memory holds outlives its processes."""
        path = self.beside(".memory")
        with open(path, "wb") as file:
            file.truncate(2 * memory_bytes)
        path.chmod(0o666)
        self.order(f"memory_bytes {memory_bytes}", "keep 1")

    def keep_log(self):
        """Of all processes, whatever their users are."""
        self.log.touch()
        self.log.chmod(0o666)
        self.order("log 1")

    def calls(self, pid=None):
        """The functions that were called, where `log 1` is ordered."""
        return [words[0] for words in self._logged(pid) if len(words) == 1]

    def failures(self, pid=None):
        """The functions that failed as it was ordered, where `log 1` is."""
        return [words[1] for words in self._logged(pid) if words[0] == "failed"]

    def devices(self, pid):
        """The number of the device of each context that the process made, where `contexts 1`
        is ordered."""
        return [int(words[1]) for words in self._logged(pid) if words[0] == "device"]

    def images(self, pid=None):
        """[(bytes, hash)] of the binary images that were loaded, where `images 1` is ordered."""
        return [(int(words[1]), int(words[2], 16)) for words in self._logged(pid)
                if words[0] == "image"]

    def _logged(self, pid):
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line.split()[1:] for line in lines if pid is None or line.split()[0] == str(pid)]


def first_gpu():
    """The UUID of this host's first GPU."""
    done = subprocess.run(["nvidia-smi", "-i", "0", "--query-gpu=uuid", "--format=csv,noheader"],
                          capture_output=True, text=True, check=True)
    return done.stdout.strip()


def hash_of(image):
    """As the double's: 64-bit FNV-1a."""
    value = 0xcbf29ce484222325
    for byte in image:
        value = (value ^ byte) * 0x100000001b3 & 0xFFFFFFFFFFFFFFFF
    return value


def start_probe(m, behaviour, vm_id=1, **options):
    """A probe that says where it is and waits for a line: see stop() in cuda_probe.c."""
    environment = {**os.environ, "VGPU_SOCKET": str(m.state / "run" / f"vm{vm_id}.sock")}
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", PROBE, behaviour], env=environment,
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, **options)


def run_probe(m, behaviour, vm_id=1, timeout=120):
    with start_probe(m, behaviour, vm_id) as probe:
        try:
            out, err = probe.communicate(timeout=timeout)
        except BaseException:
            probe.kill()
            raise
    assert probe.returncode == 0, out + err + m.tail()
    return out


class Probe:
    """A probe, step by step."""

    def __init__(self, m, behaviour, vm_id=1):
        self.m = m
        self.process = start_probe(m, behaviour, vm_id)

    def wait(self, word):
        """Until it stops at this word."""
        line = self.process.stdout.readline().strip()
        assert line == word, f"'{line}' for '{word}': {self.why()}"

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def why(self):
        self.process.kill()
        return self.process.communicate()[1] + self.m.tail()

    def end(self, timeout=180):
        """It must end well; returns what it printed."""
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"has not ended: {self.why()}") from None
        assert self.process.returncode == 0, err + self.m.tail()
        return out

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with self.process:
            self.process.kill()


def workers_of(m, vm_id):
    """Living workers of this VM that this mediator has started."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*"):  # deeper it looks itself, and may be late
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_text().split("\0")
            status = (path / "stat").read_text().rsplit(")", 1)[1].split()
            if words[1:3] == ["--vm", str(vm_id)] and int(status[1]) == m.process.pid and \
                    status[0] not in "ZX":
                found.append(int(path.name))
    return found


def launch_spin(session, spin_us, stream=0):
    """Submits a kernel that takes so long; returns its cookie."""
    session.put(ARENA, b"spin_us\0" + spin_us.to_bytes(8, "little"))
    return session.submit(OP_LAUNCH, [0 | ARENA << 32, 7 | (ARENA + 8) << 32, 8, ONE, ONE, ONE],
                          stream=stream)
