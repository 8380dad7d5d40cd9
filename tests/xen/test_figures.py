# SPDX-License-Identifier: Apache-2.0
"""How fast granted pages are, beside Xen's own library on the same boot.

All of it runs on one translated processor: the figures tell how the two compare, not how
fast either is on a machine.  So they are printed, not judged."""

import json

import pytest

from xen_harness.files import STEP_TIMEOUT_S

pytestmark = pytest.mark.full

VMS = {"pv": (7, "A", "high")}
SECONDS = 3
MEASURE_TIMEOUT_S = 600  # seconds of the machine: on a busy host each lasts a minute


def measure_ours(guest):
    def bench(mode):
        return json.loads(guest.check(f"vgpu-client --json --channel window bench --mode {mode} "
                                      f"--seconds {SECONDS}", MEASURE_TIMEOUT_S))
    ping, copy = bench("sleep"), bench("copy")
    return {"p50_us": ping["ping_sleep_p50_us"], "p99_us": ping["ping_sleep_p99_us"],
            "copy_gbps": copy["copy_gbps"]}


def measure_theirs(dom0, guest):
    asks = guest.spawn(f"exec vgpu-vchan measure 0 data/vchan {SECONDS}")
    asks.wait_output("offered", STEP_TIMEOUT_S)
    answers = dom0.spawn(f"exec vgpu-vchan echo {guest.id} /local/domain/{guest.id}/data/vchan")
    status, output = asks.wait(MEASURE_TIMEOUT_S)
    assert status == 0, output
    assert answers.wait(STEP_TIMEOUT_S)[0] == 0
    return json.loads(output.splitlines()[-1])


def test_figures_beside_libxenvchan(dom0, host, guests, summary):
    guest = guests["pv"]
    if guest.run("command -v vgpu-vchan")[0] != 0:
        pytest.skip("vgpu-vchan is not built: run scripts/deps install xen, and build anew")
    ours, theirs = measure_ours(guest), measure_theirs(dom0, guest)
    assert all(value > 0 for value in [*ours.values(), *theirs.values()])
    summary("an operation {p50_us:.0f} us (p50), {p99_us:.0f} (p99), copies {copy_gbps:.3f} GB/s; "
            .format(**ours) + "libxenvchan's answer to 64 bytes {p50_us:.0f} us, {p99_us:.0f}, copies "
            "{copy_gbps:.3f} GB/s".format(**theirs))
