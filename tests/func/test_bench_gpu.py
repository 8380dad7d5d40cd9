# SPDX-License-Identifier: Apache-2.0
"""The benchmark of a GPU has the figures that it promises, on a double of NVIDIA's library;
how large they are is nobody's test."""

import json
import os
import subprocess
import sys

import pytest
import support

sys.path.insert(0, str(support.REPOSITORY / "bench"))

import gpu  # noqa: E402  (the path comes first)

PROMISED = [
    "gpu.launch_sync_us.p50", "native.launch_sync_us.p99", "gpu.launch_async_us.p50",
    "gpu.launch_async_client_us.p50", "gpu.launch_async_client_batch_us.p50",
    "native.alloc_free_us.64MiB.p50", "gpu.copy_h2d.window.4B.us", "native.copy_d2h.pinned.64MiB.gbps",
    "gpu.copy_d2h.malloc.64MiB.gbps", "ratio.launch_sync", "ratio.copy_h2d.window.64MiB",
    "gpu.launch_sync_us", "native.launch_sync_us", "gpu.launch_async_us", "native.launch_async_us",
    "gpu.copy_h2d_gbps", "native.copy_h2d_gbps", "gpu.copy_d2h_gbps", "native.copy_d2h_gbps",
    "gpu.alloc_free_us", "native.alloc_free_us", "machine.gpu", "machine.date"]


@pytest.mark.parametrize("words", [[], ["--unpinned"]])
def test_a_short_run_has_all_figures(place, words):
    output = place / "bench.json"
    done = subprocess.run(
        [sys.executable, support.REPOSITORY / "bench/gpu.py", "--double", "--quick", "--rounds", "1",
         "--max-mib", "64", "--output", output, *words], capture_output=True, text=True, timeout=280,
        env={**os.environ, "VGPU_BUILD_DIR": str(support.BUILD)}, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    values = json.loads(output.read_text())
    assert [key for key in PROMISED if key not in values] == []
    assert all(value > 0 for key, value in values.items() if not key.startswith("machine."))
    assert "copy_h2d.window.64MiB" in done.stdout
    assert values["machine.slot"] == ("unpinned" if words else "pinned")


def test_a_missed_target_is_told():
    assert gpu.verdict(1.2, 1.1, True) == "<= 1.1 MISSED"
    assert gpu.verdict(0.98, 0.97, False) == ">= 0.97 met"
    assert gpu.verdict(1, None, True) == ""
