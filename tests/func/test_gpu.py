# SPDX-License-Identifier: Apache-2.0
"""VMs that share a GPU: what one leaves behind, and what one does to others.

On a double of NVIDIA's library; with VGPU_TEST_GPU=1 on the GPU of this host.
VGPU_LEAK_ROUNDS: how many VMs look for the memory of the one before (default 3).
VGPU_TEST_IMAGES: a folder that scripts/gpu-images has made; only a GPU can run what is in it.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess

import pytest

import support
from control_support import admin
from support import wait_until

ON_GPU = os.environ.get("VGPU_TEST_GPU") == "1"
IMAGES = os.environ.get("VGPU_TEST_IMAGES")
LEAK_ROUNDS = int(os.environ.get("VGPU_LEAK_ROUNDS", "3"))
PROBE = support.BUILD / "tests/func/gpu_probe"
KERNELS_PROBE = support.BUILD / "tests/func/kernels_probe"
FAKE = support.BUILD / "tests/doubles/fake_cuda.so"
PTX = support.REPOSITORY / "kernels/vgpu_kernels.ptx"

LIMIT_MS = 2000
FORGOTTEN_S = 25  # a worker looks again when it was idle for worker_idle_ms, 30 s
LATER_S = 2.0  # than the limit: how long others may wait for a device that a kernel holds
END_S = 120  # only a failure takes so long
SPARE_MIB = 8192  # of the GPU: contexts, their local memory, other programs
MMU_FAULT = 31  # the Xid of a kernel that touches memory which is not there
SIDE_BY_SIDE_S = 8 if ON_GPU else 3


def device_memory_mib():
    """What a VM may have: nearly all, so that two of them cannot but meet."""
    if not ON_GPU:
        return 64
    told = subprocess.run(["nvidia-smi", "-i", "0", "--query-gpu=memory.total",
                           "--format=csv,noheader,nounits"], capture_output=True, text=True,
                          check=True)
    return int(told.stdout) - SPARE_MIB


@pytest.fixture
def gpu(mediator, place):
    """gpu(vms, ...): a mediator whose pools A and B are one GPU."""
    def make(vms, **options):
        if not ON_GPU:
            library = place / "libcuda.so.1"
            shutil.copy(FAKE, library)
            # A small GPU, as the limit is: local memory is for all threads that it holds.
            library.with_name(library.name + ".conf").write_text("multiprocessor_threads 32\n")
            place.chmod(0o755)
            options["cuda_library"] = library
        options.setdefault("pools", {"A": "cuda:0", "B": "cuda:0"})
        return mediator(vms, **options)
    return make


class Probe:
    """gpu_probe in a VM's place."""

    def __init__(self, m, vm_id, *words):
        self.mediator = m
        environment = {**os.environ, "VGPU_SOCKET": str(m.state / f"run/vm{vm_id}.sock")}
        self.process = subprocess.Popen([PROBE, *map(str, words)], env=environment, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def line(self):
        """Its next line of JSON."""
        text = self.process.stdout.readline()
        assert text, self.process.communicate()[1] + self.mediator.tail()
        return json.loads(text)

    def result(self):
        """Its last line of JSON, when it has ended well."""
        out, errors = self.process.communicate(timeout=END_S)
        assert self.process.returncode == 0, out + errors + self.mediator.tail()
        return json.loads(out.splitlines()[-1])

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@pytest.fixture
def start():
    """start(mediator, vm, words...): a Probe that is gone after the test."""
    started = []

    def make(*arguments):
        started.append(Probe(*arguments))
        return started[-1]
    try:
        yield make
    finally:
        for probe in started:
            probe.end()


def test_every_kernel_computes_what_the_host_does():
    done = subprocess.run([KERNELS_PROBE, *([] if ON_GPU else [FAKE])], capture_output=True,
                          text=True, timeout=END_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kernels: 13," in done.stdout


def worker_of(m, vm_id, after):
    return m.wait_event("process", vm=vm_id, after=after)["worker_pid"]


def look_and_fill(m, start, vm_id, after):
    """What a VM finds of others; then all is full of its own, and it is still there."""
    probe = start(m, vm_id, "leftovers", PTX)
    found = probe.line()
    return probe, worker_of(m, vm_id, after), found


def test_a_vm_finds_nothing_of_a_vm_that_was_killed(gpu, start, summary):
    m = gpu({1: ("A", 1), 2: ("A", 1)}, device_memory_mib=device_memory_mib(), log_level="debug")
    seen = []
    for number in range(LEAK_ROUNDS + 1):
        after = m.mark()
        probe, worker, found = look_and_fill(m, start, number % 2 + 1, after)
        seen.append(found)
        # In turn: the VM's program, and the worker under it.
        os.kill(probe.process.pid if number % 2 else worker, signal.SIGKILL)
        wait_until(lambda pid=worker: not pathlib.Path(f"/proc/{pid}").exists(), "the worker's end")
        probe.end()
    first, later = seen[0], seen[1:]
    assert [found["memory_sum"] for found in seen] == [0] * len(seen)
    assert [found["shared_words"] for found in later] == [0] * LEAK_ROUNDS
    assert [found["local_words"] for found in later] == [0] * LEAK_ROUNDS
    summary(f"{LEAK_ROUNDS} rounds, {min(f['memory_bytes'] for f in seen) / 2**30:.2f} GiB looked "
            f"through in each: 0 words of others in memory, shared and local memory; of its own "
            f"a VM saw again {first['own_shared_words']} shared and {first['own_local_words']} "
            "local words")


def test_eight_sessions_of_which_one_faults_and_one_hangs(gpu, start, summary):
    vms = {vm: ("A" if vm % 2 else "B", vm % 3) for vm in range(1, 9)}
    m = gpu(vms, operation_limit_ms=LIMIT_MS)
    good = {vm: start(m, vm, "right", SIDE_BY_SIDE_S) for vm in range(3, 9)}
    fault, hang = start(m, 1, "fault"), start(m, 2, "hang")
    faulted, hung = fault.result(), hang.result()
    rounds = {vm: probe.result()["rounds"] for vm, probe in good.items()}
    assert (faulted["status"], hung["status"]) == ("kernel fault", "time limit")
    assert all(rounds.values()), rounds
    for vm in good:
        assert m.events("lost", vm=vm) == []
    summary(f"one told '{faulted['status']}', one '{hung['status']}' after {hung['after_s']} s; "
            f"the others' right rounds: {list(rounds.values())}")


def test_an_endless_kernel_delays_others_by_little_more_than_the_limit(gpu, start, summary):
    m = gpu({1: ("A", 0), 2: ("A", 2)}, operation_limit_ms=LIMIT_MS)
    other = start(m, 2, "delay", LIMIT_MS / 1000 + 4)
    other.line()
    hung = start(m, 1, "hang").result()
    measured = other.result()
    assert hung["status"] == "time limit"
    summary(f"operation limit {LIMIT_MS / 1000} s: the other VM waited at most "
            f"{measured['worst_s']:.3f} s, {measured['mean_s'] * 1e6:.1f} us on average of "
            f"{measured['answers']} answers")
    # What is promised of real devices.  On the double: the worker has not slept over its work.
    assert measured["worst_s"] <= (LIMIT_MS / 1000 + LATER_S if ON_GPU else FORGOTTEN_S)


# --- images of kernels, as nvcc makes them -------------------------------------------------------


def run_image(gpu, start, path):
    """gpu_probe has computed with this image: its bytes."""
    m = gpu({1: ("A", 1)})
    told = start(m, 1, "image", path).result()
    assert told["right"] > 0
    return told["image_bytes"]


@pytest.mark.parametrize("name", ["kernels.ptx", "kernels.cubin", "kernels.fatbin",
                                  "kernels-compressed.fatbin"])
def test_an_image_of_each_kind_is_loaded_and_runs(gpu, start, summary, name):
    if name == "kernels.ptx":
        assert run_image(gpu, start, PTX) == PTX.stat().st_size
        return
    if not ON_GPU:
        pytest.skip("a double runs no machine code; test_cuda_image.py has what can be seen on it")
    if IMAGES is None:
        pytest.skip("VGPU_TEST_IMAGES names no folder: make one with scripts/gpu-images")
    path = pathlib.Path(IMAGES) / name
    summary(f"{name}: {run_image(gpu, start, path)} bytes, {path.read_bytes()[:4].hex(' ')} ..., "
            "loaded and right")


# --- the watch --------------------------------------------------------------------------------


def asked(*fields):
    """What nvidia-smi says of the first GPU: {field: text}."""
    done = subprocess.run(["nvidia-smi", "-i", "0", f"--query-gpu={','.join(fields)}",
                           "--format=csv,noheader,nounits"], capture_output=True, text=True,
                          check=True)
    return dict(zip(fields, (word.strip() for word in done.stdout.split(",")), strict=True))


def shown(m):
    """The first GPU, as vgpu-admin show-gpus has it from the mediator."""
    told = json.loads(admin(m, "show-gpus", "--json"))
    assert told["source"] == "mediator", told
    return told["driver"], next((gpu for gpu in told["gpus"] if gpu["index"] == 0), None)


def look_of(m):
    """Once it knows the GPU."""
    return wait_until(lambda: (shown(m)[1] or {}).get("state") == "ok" and shown(m),
                      "the watch to know the GPU")


@pytest.mark.skipif(not ON_GPU, reason="compares with nvidia-smi; test_gpus.py has the double")
def test_show_gpus_says_what_nvidia_smi_says(gpu, summary):
    m = gpu({1: ("A", 1)})
    driver, found = look_of(m)
    told = asked("uuid", "name", "pci.bus_id", "driver_version", "memory.total", "power.limit",
                 "temperature.gpu", "ecc.errors.uncorrected.volatile.total")
    assert (found["uuid"], found["name"]) == (told["uuid"], told["name"])
    assert told["pci.bus_id"].lower().endswith(found["pci_address"].lower())
    assert driver["version"] == told["driver_version"]
    assert abs(found["memory_total_bytes"] / 2**20 - int(told["memory.total"])) <= 1
    assert abs(found["power_limit_mw"] / 1000 - float(told["power.limit"])) <= 1
    assert abs(found["temperature_c"] - int(told["temperature.gpu"])) <= 10
    if told["ecc.errors.uncorrected.volatile.total"].isdigit():
        assert found["ecc_uncorrected"] == int(told["ecc.errors.uncorrected.volatile.total"])
    summary(f"{found['name']}, {found['uuid']}, {found['memory_total_bytes'] / 2**20:.0f} MiB, "
            f"{found['temperature_c']} C, driver {driver['version']}: as nvidia-smi says")


@pytest.mark.skipif(not ON_GPU, reason="needs a real fault; test_gpus.py has the double")
def test_the_watch_counts_the_xid_of_a_kernel_fault(gpu, start, summary):
    m = gpu({1: ("A", 1)})
    _, before = look_of(m)
    assert before["xids"]["count"] == 0
    assert start(m, 1, "fault").result()["status"] == "kernel fault"
    xids = wait_until(lambda: shown(m)[1]["xids"]["count"] and shown(m)[1]["xids"], "its Xid")
    assert xids["last"] == MMU_FAULT
    summary(f"{xids['count']} Xid counted, the last {xids['last']}: {xids['last_meaning']}")
