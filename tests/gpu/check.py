# SPDX-License-Identifier: Apache-2.0
"""What can only be checked on a real GPU, each with a result line.

usage: scripts/gpu-check.sh [--only STEP]... [--skip STEP]... [--rounds N] [--minutes N] [--double]

  --only STEP   this one, and others that are named so
  --skip STEP   not this one
  --rounds N    of the leak check, default 100
  --minutes N   of the four real VMs' work, default 5
  --double      on a double of NVIDIA's library, to try the checks without a GPU

Steps:
  machine   which GPU, driver, compiler; nothing else uses the GPU
  watch     show-gpus says what nvidia-smi says, and counts the Xid of a fault
  cuda      the backend's own tests (test_cuda.py)
  images    modules from PTX, a cubin and fatbins; images in parts (test_cuda_image.py)
  stage     copies of a session whose slot is not pinned (test_cuda_stage.py)
  contexts  the cap on contexts (test_contexts.py)
  limits    time that a killed worker used (test_limits.py)
  policies  shares of the GPU by weight, priority and turn (test_policies.py)
  memory    limits of device memory, over modules and local memory (test_device_memory.py)
  devices   pools and sessions of several GPUs, where this host has two
  examples  kernels of users, compared with the CPU (test_examples.py)
  kernels   our kernels, compared with the CPU
  memcheck, racecheck, synccheck   the same under compute-sanitizer
  leak      a VM is killed with all memory filled; the next finds none of it
  together  eight sessions at once, one that faults, one that hangs
  delay     how long a kernel without end holds others up
  vms       four real VMs in two pools: right answers and order, waits, shares (vms.py)
  after     no Xid but of faults on purpose; the GPU's memory is free again

Writes into $OUT, or build-gpu/results/: gpu-check.json, gpu-check.txt (all that the steps
printed), nvidia-smi.csv (each second), and what vms.py writes.

Exit status: 0 all passed, 1 not, 2 usage.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import machine
from machine import ROOT, Samples, asked, describe, output_of, results

BUILD = pathlib.Path(os.environ.get("VGPU_BUILD_DIR", ROOT / "build"))
RESULTS = results()
STEP_S = 560
VMS_MORE_S = 400  # of the VMs' step, besides their --minutes: boots, waits, shares
# What a program's own mistakes make: illegal access, and a context that was ended.
OWN_XIDS = {13, 31, 43, 45}
FAULTY_STEPS = {"watch", "cuda", "contexts", "limits", "policies", "leak", "together", "delay"}
MEMORY_SLACK_MIB = 64


class Failed(Exception):
    """A step's result, in words."""


def xids():
    """The numbers of all Xids in the kernel's log."""
    found = machine.xids()
    if found is None:
        raise Failed("dmesg cannot be read: run this as root")
    return found


class Skipped(Exception):
    """Why a step was not run."""


class Check:
    def __init__(self, arguments):
        self.double = arguments.double
        self.arguments = arguments
        self.record = {"steps": [], "on": "double" if self.double else "gpu"}
        self.log = open(RESULTS / "gpu-check.txt", "w", buffering=1)
        self.memory_before_mib = None

    # --- running -------------------------------------------------------------------------

    def say(self, text):
        print(f"gpu-check: {text}", flush=True)
        self.log.write(f"gpu-check: {text}\n")

    def note(self, text):
        """Into the log, with paths as they are in the repository."""
        self.log.write(text.replace(f"{ROOT}/", ""))

    def program(self, argv, environment=None, limit_s=STEP_S):
        """Runs it to its end into the log; returns what it printed."""
        words = [str(word) for word in argv]
        self.note(f"$ {' '.join(words)}\n".replace(sys.executable, "python3"))
        try:
            done = subprocess.run(words, env={**os.environ, **(environment or {})}, text=True,
                                  stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, timeout=limit_s, cwd=ROOT, check=False)
        except subprocess.TimeoutExpired as late:
            self.note(str(late.stdout))
            raise Failed(f"no end within {limit_s:.0f} s") from None
        self.note(done.stdout)
        if done.returncode != 0:
            raise Failed(f"status {done.returncode}; its last lines:\n"
                         + "\n".join(done.stdout.splitlines()[-30:]))
        return done.stdout

    def pytest(self, *words, jobs=1, **environment):
        """Runs tests; returns their summaries and how many passed."""
        if not self.double:
            environment |= {"VGPU_TEST_GPU": "1"}
        environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "VGPU_BUILD_DIR": str(BUILD)}
        many = ["-p", "xdist", "-n", jobs] if jobs > 1 else []
        text = self.program([sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider",
                             *many, *words], environment)
        summaries = re.findall(r"^test_\w+\.py::\w+(?:\[[^]]*\])?: (.*)$", text, re.MULTILINE)
        count = re.findall(r"^\d+ (?:passed|skipped).*$", text, re.MULTILINE)[-1]
        if "passed" not in count:
            raise Skipped(count)
        return "; ".join([*summaries, count])

    def step(self, name):
        """One step with its result line."""
        begin, new = time.monotonic(), []
        before = [] if self.double else xids()
        try:
            summary, passed = getattr(self, f"step_{name}")(), True
            new = [] if self.double else xids()[len(before):]
            allowed = OWN_XIDS if name in FAULTY_STEPS else set()
            if set(new) - allowed:
                raise Failed(f"Xids {new} in the kernel's log; {summary}")
        except Skipped as skipped:
            self.record["steps"].append({"name": name, "passed": None, "summary": str(skipped)})
            self.say(f"SKIP {name}: {skipped}")
            return
        except Failed as failed:
            summary, passed = str(failed), False
        seconds = time.monotonic() - begin
        self.record["steps"].append({"name": name, "passed": passed, "seconds": round(seconds, 1),
                                     "summary": summary, "xids": new})
        self.say(f"{'PASS' if passed else 'FAIL'} {name}: {summary} ({seconds:.1f} s)")

    # --- steps -----------------------------------------------------------------------------

    def step_machine(self):
        told = describe()
        self.record |= told
        if self.double:
            raise Skipped("a double of NVIDIA's library")
        self.log.write(output_of("nvidia-smi") or "")
        if told["gpu"] == "none":
            raise Failed("nvidia-smi tells no GPU: is the driver loaded?")
        self.memory_before_mib = int(asked("memory.used"))
        return ", ".join(f"{key} {told[key]}" for key in ("gpu", "driver", "cuda", "nvcc", "kernel",
                                                          "date"))

    def step_cuda(self):
        return self.pytest("tests/func/test_cuda.py", jobs=4)

    def step_watch(self):
        return self.pytest("tests/func/test_gpu.py", "-k", "show_gpus or watch_counts")

    def step_images(self):
        if not self.double and "VGPU_TEST_IMAGES" not in os.environ:
            raise Failed("there is no cubin and no fatbin to load: install nvcc, or take a bundle")
        return self.pytest("tests/func/test_cuda_image.py", "tests/func/test_gpu.py", "-k", "image")

    def step_stage(self):
        return self.pytest("tests/func/test_cuda_stage.py", jobs=4)

    def step_contexts(self):
        return self.pytest("tests/func/test_contexts.py", "-k", "not whatever_happens", jobs=4)

    def step_limits(self):
        return self.pytest("tests/func/test_limits.py", "-k", "cuda")

    def step_policies(self):
        return self.pytest("tests/func/test_policies.py", "-k", "weights or weigh or slices")

    def step_devices(self):
        return self.pytest("tests/func/test_devices.py", "tests/func/test_session_devices.py",
                           jobs=4)

    def step_examples(self):
        environment = {} if self.double else {"VGPU_TEST_BACKEND": "cuda:0"}
        return self.pytest("tests/func/test_examples.py", **environment)

    def kernels(self, *before):
        """The probe of our kernels, maybe under another program."""
        probe = [BUILD / "tests/func/kernels_probe"]
        if self.double:
            probe.append(BUILD / "tests/doubles/fake_cuda.so")
        return self.program([*before, *probe])

    def step_kernels(self):
        return self.kernels().splitlines()[-1]

    def sanitizer(self, tool, *options):
        program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if self.double or not os.path.exists(program):
            raise Skipped("there is no GPU or no compute-sanitizer")
        text = self.kernels(program, "--tool", tool, "--error-exitcode", "3", *options)
        return "; ".join(line.lstrip("= ") for line in text.splitlines() if "SUMMARY" in line)

    def step_memcheck(self):
        return self.sanitizer("memcheck", "--leak-check", "full")

    def step_racecheck(self):
        return self.sanitizer("racecheck")

    def step_synccheck(self):
        return self.sanitizer("synccheck")

    def step_memory(self):
        return self.pytest("tests/func/test_device_memory.py", "-k", "not cpu")

    def step_leak(self):
        return self.pytest("tests/func/test_gpu.py", "-k", "finds_nothing",
                           VGPU_LEAK_ROUNDS=str(self.arguments.rounds))

    def step_together(self):
        return self.pytest("tests/func/test_gpu.py", "-k", "eight_sessions")

    def step_delay(self):
        return self.pytest("tests/func/test_gpu.py", "-k", "endless_kernel")

    def step_vms(self):
        words = ["--minutes", self.arguments.minutes, "--output", RESULTS / "vms.json"]
        text = self.program([sys.executable, ROOT / "tests/gpu/vms.py", *words,
                             *(["--double"] if self.double else [])],
                            limit_s=self.arguments.minutes * 60 + VMS_MORE_S)
        return text.splitlines()[-1]

    def step_after(self):
        if self.double:
            raise Skipped("nothing to see on a double")
        found = xids()
        used_mib = int(asked("memory.used"))
        if set(found) - OWN_XIDS:
            raise Failed(f"Xids {sorted(set(found))} in the kernel's log")
        if self.memory_before_mib is not None and \
                used_mib > self.memory_before_mib + MEMORY_SLACK_MIB:
            raise Failed(f"{used_mib} MiB of the GPU are in use, before it were "
                         f"{self.memory_before_mib}")
        errors = asked("ecc.errors.uncorrected.volatile.total")
        return (f"Xids: {len(found)}, all of faults on purpose; {used_mib} MiB in use as before; "
                f"uncorrected ECC errors: {errors}")

    def close(self):
        steps = [step for step in self.record["steps"] if step["passed"] is not None]
        passed = sum(step["passed"] for step in steps)
        self.record |= {"passed": passed, "failed": len(steps) - passed}
        (RESULTS / "gpu-check.json").write_text(json.dumps(self.record, indent=2) + "\n")
        self.say(f"{passed} passed, {len(steps) - passed} failed")
        self.log.close()
        return 0 if passed == len(steps) else 1


STEPS = ["machine", "watch", "cuda", "images", "stage", "contexts", "limits", "policies", "memory",
         "devices", "examples", "kernels", "memcheck", "racecheck", "synccheck", "leak", "together",
         "delay", "vms", "after"]


def main():
    parser = argparse.ArgumentParser(usage=__doc__.partition("usage: ")[2])
    parser.add_argument("--only", action="append", choices=STEPS)
    parser.add_argument("--skip", action="append", choices=STEPS, default=[])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--double", action="store_true")
    arguments = parser.parse_args()
    check = Check(arguments)
    with Samples(RESULTS / "nvidia-smi.csv"):
        for name in STEPS:
            wanted = not arguments.only or name in arguments.only or name in ("machine", "after")
            if wanted and name not in arguments.skip:
                check.step(name)
    return check.close()


if __name__ == "__main__":
    sys.exit(main())
