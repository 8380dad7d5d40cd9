# SPDX-License-Identifier: Apache-2.0
"""What a launch costs the worker is counted right; how much it is is nobody's test."""

import shutil
import sys

import pytest
import support

sys.path[:0] = [str(support.REPOSITORY / "bench"), str(support.REPOSITORY / "tests/vm")]

import launches  # noqa: E402  (the path comes first)

# The worker's own 7 and 30 of libc's for it; 100 behind two calls of the driver, 40 of them libc's.
PROFILE = """\
events: Ir
ob=/usr/bin/worker
fn=run
16 5
cob=/usr/lib/libcuda.so.1
cfn=cuLaunchKernel
calls=2 20
17 100
cfn=own
calls=1 30
18 2
fn=own
30 2
cob=/usr/lib/libc.so.6
cfn=memcpy
calls=1 40
31 30
ob=/usr/lib/libcuda.so.1
fn=cuLaunchKernel
20 60
cob=/usr/lib/libc.so.6
cfn=strcmp
calls=9 50
21 40
ob=/usr/lib/libc.so.6
fn=memcpy
40 30
fn=strcmp
50 40

totals: 137
"""


def test_what_the_driver_does_is_not_counted():
    profile = launches.Profile([PROFILE])
    assert (profile.instructions, dict(profile.calls)) == (37, {"cuLaunchKernel": 2})


def test_files_are_counted_together():
    profile = launches.Profile([PROFILE, PROFILE])
    assert (profile.instructions, dict(profile.calls)) == (74, {"cuLaunchKernel": 4})


@pytest.mark.skipif(not shutil.which("valgrind"), reason="there is no valgrind here")
@pytest.mark.skipif(support.is_sanitized(), reason="valgrind runs no sanitized program")
def test_all_launches_of_a_worker_are_found(monkeypatch):
    monkeypatch.setattr(launches.paths, "BUILD", support.BUILD)
    profile = launches.profile_of(count=50, every=10)
    assert profile.calls["cuLaunchKernel"] == 50
    assert profile.instructions > 0
