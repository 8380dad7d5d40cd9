# SPDX-License-Identifier: Apache-2.0
"""The benchmark has the figures that it promises, from real runs; how large they
are is nobody's test."""

import json
import subprocess
import sys

import pytest

from harness import paths

sys.path.insert(0, str(paths.REPOSITORY / "bench"))

import sharing  # noqa: E402  (the path comes first)
import window  # noqa: E402

PROMISED = [
    "window.ping.poll.p50_us", "window.ping.poll.p99_us", "window.ping.sleep.p50_us",
    "window.pings_per_s", "file.pings_per_s", "window.over_file.ratio", "window.copy_gbps",
    "guest.memcpy_gbps", "idle.cpu_pct", "local.ping.poll.p50_us", "machine.cpu", "machine.date"]


def test_a_short_run_has_all_figures_of_its_parts(tmp_path):
    output = tmp_path / "bench.json"
    done = subprocess.run(
        [sys.executable, paths.REPOSITORY / "bench/window.py", "--quick", "--only", "local",
         "--only", "guest", "--only", "file", "--only", "idle", "--output", output],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    assert done.returncode == 0, done.stdout
    values = json.loads(output.read_text())
    assert [key for key in PROMISED if key not in values] == []
    assert all(isinstance(value, (int, float)) and value >= 0 for key, value in values.items()
               if not key.startswith("machine."))
    assert values["window.over_file.ratio"] == pytest.approx(
        values["window.pings_per_s"] / values["file.pings_per_s"], rel=0.01)
    assert "window.pings_per_s" in done.stdout


def test_a_missed_target_is_told():
    assert window.verdict(1.5, 1.0, True) == "MISSED"
    assert window.verdict(0.5, 1.0, True) == "met"
    assert window.verdict(400, 500, False) == "MISSED"
    assert window.verdict(1, None, True) == ""
    assert "MISSED" in window.table({"window.pings_per_s": 10.0})


def test_a_short_run_of_sharing_has_its_figures_and_tells_the_verdicts(tmp_path):
    output = tmp_path / "bench-vms.json"
    done = subprocess.run(
        [sys.executable, paths.REPOSITORY / "bench/sharing.py", "--quick", "--only", "shares", "--json",
         output], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    assert done.returncode == 0, done.stdout
    values = json.loads(output.read_text())
    assert 0 <= values["shares.heavier.percent"] <= 100
    assert values["shares.off_by.percent"] >= 0 and values["machine.accel"]
    assert "shares.off_by.percent" in done.stdout and "<= 5" in done.stdout


def test_goals_of_sharing_are_judged():
    table = sharing.table({"priority.beside_over_goal.ratio": 1.01, "shares.off_by.percent": 4.9,
                       "attackers.mute.p99.ratio": 1.2})
    verdicts = {line.split()[0]: line.split()[-1] for line in table.splitlines()[1:]}
    assert verdicts == {"priority.beside_over_goal.ratio": "MISSED", "shares.off_by.percent": "met",
                        "attackers.mute.p99.ratio": "MISSED"}
