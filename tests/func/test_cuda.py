# SPDX-License-Identifier: Apache-2.0
"""The cuda backend, through mediator, worker and libvgpu.

On a double of NVIDIA's library; with VGPU_TEST_GPU=1 on the GPU of this host, where what
needs the double is skipped.
"""

import signal

import pytest

from cuda_support import Probe, run_probe, workers_of
from support import wait_until

LAUNCHES = 500  # of the probe's "launches"


@pytest.mark.parametrize("behaviour", [
    "info", "memory", "granules", "copies", "overlap", "set", "kernels", "repeats", "streams",
    "events", "modules", "parameters", "sync", "order", "reset", "many", "free_in_flight", "text",
    "late_event", "free_then_allocate", "cancel", "overlap_big", "overlap_streams"])
def test_operations(cuda, behaviour):
    run_probe(cuda(device_memory_mib=128), behaviour)


@pytest.mark.parametrize("channel", ["file", "window"])
@pytest.mark.parametrize("command, answer", [
    ("VECTOR_ADD", "1:Vector add PASSED: 1024 elements, 0 errors (cuda, "),
    ("MATRIX_MUL 100", "1:Matrix multiply PASSED: 100x100, 0 errors (cuda, "),
    ("REDUCE 12345", "1:Reduce PASSED: 12345 elements, sum 37029 (cuda, "),
    ("SPIN 5", "1:Spun 5 ms"),
    ("GPU_INFO", "1:CUDA backend: "),
])
def test_text_commands_run_on_the_gpu(cuda, channel, command, answer):
    m = cuda()
    assert m.vm(1).ask(command).startswith(answer)


@pytest.mark.parametrize("behaviour", ["fault", "late_fault"])
def test_a_kernel_fault_is_told_and_the_session_begins_anew(cuda, behaviour):
    m = cuda()
    run_probe(m, behaviour)
    wait_until(lambda: m.events("lost"), "the end of the first worker")


def test_what_ran_too_long_is_told_once_and_the_session_begins_anew(cuda):
    run_probe(cuda(operation_limit_ms=1000), "endless")


# --- what it asks of the driver -----------------------------------------------------------


@pytest.mark.parametrize("devices", ["cuda:0", "cuda:0 cuda:1\nsession_devices = 2"])
def test_a_launch_in_a_row_is_one_call_of_the_driver(cuda, fake, summary, devices):
    """Besides it there is a mark behind some dozens of launches, and now and then a question."""
    fake.order("devices 2", "engines 0")
    m = cuda(pools={"A": devices})
    with Probe(m, "launches") as probe:
        probe.wait("ready")
        pid, = workers_of(m, 1)
        fake.keep_log()
        probe.go()
        probe.wait("done")
        calls = fake.calls(pid)
        probe.go()
        probe.end()
    assert calls.count("cuLaunchKernel") == LAUNCHES
    others = [call for call in calls if call != "cuLaunchKernel"]
    assert set(others) <= {"cuStreamWriteValue32_v2", "cuStreamQuery"}
    assert len(others) <= LAUNCHES // 4  # some 20; more where the host is slow for a moment
    summary(f"{LAUNCHES} launches, {len(others)} other calls")


# --- devices that do not work ------------------------------------------------------------


def test_a_gpu_that_does_not_compute_is_not_used_and_not_silently(cuda, fake):
    fake.order("fail cuLaunchKernel * 719")
    m = cuda(gpu_check_ms=20000)
    assert "step launch" in m.events("no-gpu")[0]["message"]
    assert "pool A: its device cuda:0 does not work: CUDA_ERROR_LAUNCH_FAILED" in m.vm(1).ask("PING")


@pytest.mark.parametrize("channel", ["file", "window"])
def test_the_cpu_stands_in_where_that_is_configured(cuda, fake, channel):
    fake.order("devices 0")
    m = cuda(gpu_missing="cpu")
    assert m.events("fallback")
    assert "(cpu, " in m.vm(1).ask("VECTOR_ADD")


def test_a_gpu_that_works_again_is_found_by_a_reload(cuda, fake):
    fake.order("fail cuCtxCreate_v2 * 46")
    m = cuda()
    assert m.events("no-gpu")
    fake.lines.clear()
    fake.order()
    m.process.send_signal(signal.SIGHUP)
    m.wait_event("gpu")
    wait_until(lambda: m.vm(1).ask("PING") == "1:PONG", "the pool's device")


def test_a_lost_gpu_is_told_once_and_taken_up_again(cuda, fake):
    m = cuda(channel="window")
    assert "PASSED" in m.vm(1).ask("VECTOR_ADD")
    fake.order("lost 1 214")
    answer = m.vm(1).ask("VECTOR_ADD")
    assert answer.startswith("2:")
    m.wait_event("no-gpu")
    fake.lines.clear()
    fake.order()
    m.process.send_signal(signal.SIGHUP)
    m.wait_event("gpu", count=2)

    def works():
        return "PASSED" in m.vm(1).ask("VECTOR_ADD")
    wait_until(works, "the GPU is used again")
