# SPDX-License-Identifier: Apache-2.0
"""What is run on GPU machines runs, here on a double of NVIDIA's library."""

import json
import subprocess
import sys

import pytest
from harness import paths

sys.path.insert(0, str(paths.REPOSITORY / "tests/gpu"))

import vms  # noqa: E402  (the path comes first)


def test_four_vms_in_two_pools_get_right_answers_in_the_right_order(tmp_path):
    output = tmp_path / "vms.json"
    done = subprocess.run(
        [sys.executable, paths.REPOSITORY / "tests/gpu/vms.py", "--double", "--minutes", "0.1",
         "--bench-seconds", "1", "--output", output], text=True, timeout=900,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    found = json.loads(output.read_text())
    assert found["answers_and_order"]["problems"] == []
    assert all(min(counts.values()) > 0 for counts in found["answers_and_order"]["answers"].values())
    for name in ("alone", "beside_batch", "beside_copy", "beside_short_kernels",
                 "beside_long_kernels"):
        assert set(vms.WAITS) <= set(found["latency"][name])
    for name in ("alike", "unlike"):
        assert abs(sum(found["shares"][name][f"vm{vm}_percent"] for vm in vms.WEIGHTS) - 100) < 0.1
    assert {"before", "after", "new"} == set(found["xids"])


def line(message):
    return json.dumps({"request": "VECTOR_ADD", "answer": {"status": 1, "message": message},
                       "channel": {"kind": "window"},
                       "device": {"vm_id": 1, "pool": "A", "priority": 2}})


def test_a_wrong_answer_is_told():
    right = line("Vector add PASSED: 1024 elements, 0 errors (cuda, 1 ms)")
    matrix = right.replace("VECTOR_ADD", "MATRIX_MUL 100").replace(
        "Vector add PASSED: 1024 elements", "Matrix multiply PASSED: 100x100")
    assert vms.check_output(1, f"{right}\n{matrix}", []) == (
        {"VECTOR_ADD": 1, "MATRIX_MUL 100": 1}, [])
    for wrong in ("Vector add FAILED: 1024 elements, 3 errors (cuda, 1 ms)",
                  "Vector add PASSED: 1024 elements, 0 errors (cpu, 1 ms)"):
        assert vms.check_output(1, f"{line(wrong)}\n{matrix}", [])[1] != []
    assert vms.check_output(1, f"{right}\nfailed: vgpu-example-saxpy: status 1", [])[1] != []
    assert vms.check_output(1, f"{right}\n{matrix}", ["saxpy"])[1] == ["vm1: no saxpy was answered"]


def test_turns_longer_than_a_grant_are_counted():
    events = [{"event": "process", "vm": 1, "slot": 0, "sequence": 1, "time": "2026-01-01T00:00:00Z"},
              {"event": "returned", "vm": 1, "slot": 0, "sequence": 1,
               "time": "2026-01-01T00:00:00.250000Z"}]
    assert vms.long_turns(vms.turns_of(events)) == {
        "vm1": {"turns": 1, "longer_than_a_grant": 1, "longest_ms": 250.0}}


def test_waits_longer_than_a_grant_are_told_but_of_kernels_that_are():
    short, long = ({key: wait for key in vms.WAITS} for wait in (100, 3000))
    found = {"alone": short, "allowed_us": vms.allowed_us(short), "beside_long_kernels": long,
             "beside_short_kernels": short}
    assert vms.wait_problems(found) == []
    told = vms.wait_problems({**found, "beside_short_kernels": long})
    assert "vm1's launch_sync_p99_us beside short kernels is 3000 us, allowed are 2110.0" in told


@pytest.mark.parametrize("used, good", [(7600, True), (7800, False)])
def test_shares_that_are_not_those_of_the_weights_are_told(used, good):
    told = {f"vm{vm}_percent": percent for vm, percent in vms.percents(
        {1: 100, 2: 0}, {1: 100 + used, 2: 10000 - used}).items()}
    assert (vms.share_problems({"alike": told, "unlike": told}) == []) == good


def test_an_xid_is_a_problem_of_the_run(monkeypatch):
    monkeypatch.setattr(vms.machine, "xids", lambda: [31, 79])
    found = {"answers_and_order": {"problems": []}, "latency": {"problems": []},
             "shares": {"problems": []}, "xids": vms.xids_since([31])}
    assert found["xids"] == {"before": 1, "after": 2, "new": [79]}
    assert vms.problems_of(found, False) == ["Xids in the kernel's log: [79]"]
