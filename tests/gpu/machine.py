# SPDX-License-Identifier: Apache-2.0
"""The machine with the GPU: what is in it, and how it is while something runs."""

import os
import pathlib
import re
import shutil
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAMPLED = ("timestamp,index,utilization.gpu,utilization.memory,memory.used,temperature.gpu,"
           "power.draw,clocks.sm,clocks.mem,pcie.link.gen.current,"
           "ecc.errors.uncorrected.volatile.total")


def results():
    """The folder for files that are to be kept; made if it is not there."""
    folder = pathlib.Path(os.environ.get("OUT") or ROOT / "build-gpu/results")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def output_of(*argv):
    """What a program printed; None: it is not there, or failed."""
    program = shutil.which(argv[0]) or shutil.which(f"/usr/local/cuda/bin/{argv[0]}")
    if program is None:
        return None
    done = subprocess.run([program, *argv[1:]], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else None


def asked(field):
    """One number or word of nvidia-smi about the first GPU; None: there is no answer."""
    told = output_of("nvidia-smi", "-i", "0", f"--query-gpu={field}",
                     "--format=csv,noheader,nounits")
    return told.strip() if told else None


def xids():
    """The numbers of all Xids in the kernel's log; None: it cannot be read."""
    log = output_of("dmesg")
    if log is None:
        return None
    return [int(number) for number in re.findall(r"NVRM: Xid \([^)]*\): (\d+)", log)]


def _first(pattern, text):
    found = re.search(pattern, text or "", re.MULTILINE)
    return found[1] if found else "unknown"


def describe():
    """{"date", "gpu", "driver", "cuda", "nvcc", ...}: words; a GPU that is not there is "none"."""
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "gpu": asked("name") or "none",
        "gpu_uuid": asked("uuid") or "none",
        "driver": asked("driver_version") or "none",
        "cuda": _first(r"CUDA Version: (\S+)", output_of("nvidia-smi")),
        "nvcc": _first(r"release \S+ (V\S+)", output_of("nvcc", "--version")),
        "kernel": os.uname().release,
        "system": _first(r'^PRETTY_NAME="(.*)"', pathlib.Path("/etc/os-release").read_text()),
        "cpu": _first(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text()),
        "cores": os.cpu_count(),
    }


class Samples:
    """nvidia-smi each second into a file, as long as this is open; nothing where it is not."""

    def __init__(self, path):
        self.process = None
        if shutil.which("nvidia-smi"):
            with open(path, "w") as file:
                self.process = subprocess.Popen(
                    ["nvidia-smi", f"--query-gpu={SAMPLED}", "--format=csv", "-l", "1"],
                    stdout=file, stderr=subprocess.DEVNULL)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.process:
            self.process.terminate()
            self.process.wait()
