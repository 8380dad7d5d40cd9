# SPDX-License-Identifier: Apache-2.0
"""vgpu-mediator --check-gpu: does a GPU compute?  With a libcuda over host memory."""

import json
import os
import shutil
import subprocess

import pytest
from support import BUILD, MEDIATOR

DOUBLE = BUILD / "tests/doubles/fake_cuda.so"


class Gpu:
    """A libcuda of this test's own, which the loader finds first."""

    def __init__(self, place):
        self.path = place / "libcuda.so.1"
        shutil.copy(DOUBLE, self.path)

    def order(self, *lines):
        (self.path.parent / "libcuda.so.1.conf").write_text("\n".join(lines) + "\n")

    def check(self, *arguments):
        environment = {**os.environ, "LD_LIBRARY_PATH": str(self.path.parent)}
        return subprocess.run([MEDIATOR, *arguments], env=environment, capture_output=True,
                              text=True, stdin=subprocess.DEVNULL)


@pytest.fixture
def gpu(place):
    place.chmod(0o755)  # workers, and the check with them, run as somebody else
    return Gpu(place)


def test_a_gpu_that_computes_is_described(gpu):
    done = gpu.check("--check-gpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("GPU 0, NVIDIA Fake, GPU-00000000-0000-0000-0000-000000000000, "
                                  "at 0000:65:00.0: 1.0 GiB, compute 9.0, 132 multiprocessors, "
                                  "CUDA 13.0; it computes (")


@pytest.mark.parametrize("selector", ["1", "66:00.0", "GPU-00000000-0000-0000-0000-000000000001"])
@pytest.mark.parametrize("joined", [True, False])
def test_a_gpu_is_chosen_by_index_address_or_uuid(gpu, selector, joined):
    gpu.order("devices 2")
    done = gpu.check(*([f"--check-gpu={selector}"] if joined else ["--check-gpu", selector]))
    assert done.returncode == 0 and done.stdout.startswith("GPU 1, ")


def test_json_is_one_line_with_all_that_is_known(gpu):
    done = gpu.check("--check-gpu", "--log-format=json")
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    report = json.loads(done.stdout)
    assert report["ok"] is True and report["error"] is None and report["remedy"] is None
    assert report["driver_version"] == 13000 and report["device"]["compute_capability"] == "9.0"
    assert report["context_bytes"] is None  # the double's takes nothing
    assert set(report["took_ms"]) >= {"load", "init", "context", "launch", "compare", "destroy"}


def test_what_a_context_takes_is_told(gpu):
    gpu.order("context_bytes 549453824", "memory_bytes 4294967296")
    assert gpu.check("--check-gpu").stdout.rstrip().endswith("; a context takes 524 MiB")
    report = json.loads(gpu.check("--check-gpu", "--log-format=json").stdout)
    assert report["context_bytes"] == 549453824


@pytest.mark.parametrize("order, step, code, name", [
    ("fail cuInit * 100", "init", 100, "CUDA_ERROR_NO_DEVICE"),
    ("fail cuCtxCreate_v2 * 2", "context", 2, "CUDA_ERROR_OUT_OF_MEMORY"),
    ("skip gate", "compare", -1, "refused"),
    ("crash cuModuleLoadDataEx", "module", -2, "crash"),
])
def test_a_gpu_that_does_not_compute_fails_with_step_and_remedy(gpu, order, step, code, name):
    gpu.order(order)
    done = gpu.check("--check-gpu")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith(f"vgpu-mediator: step '{step}' of the check: ")
    assert f"({name})" in done.stderr and "\nwhat to do: " in done.stderr
    report = json.loads(gpu.check("--check-gpu", "--log-format=json").stdout)
    assert report["ok"] is False and report["step"] == step
    assert (report["error"]["code"], report["error"]["name"]) == (code, name)
    assert report["error"]["message"] and report["remedy"]


def test_a_gpu_that_is_not_there_is_answered_with_those_that_are(gpu):
    done = gpu.check("--check-gpu", "7")
    assert done.returncode == 1
    assert "there is no GPU '7'; there are: 0 NVIDIA Fake GPU-00000000" in done.stderr


def test_the_library_is_the_one_that_the_configuration_names(gpu, place):
    config = place / "mediator.conf"
    config.write_text(f"[mediator]\ncuda_library = {place}/other.so\n")
    done = gpu.check("--check-gpu", "--config", config)
    assert done.returncode == 1 and f"there is no {place}/other.so" in done.stderr
    shutil.copy(DOUBLE, place / "other.so")
    assert gpu.check("--check-gpu", "--config", config).returncode == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_what_only_root_may_use_does_not_pass(gpu):
    gpu.path.chmod(0o600)
    done = gpu.check("--check-gpu", "--log-format=json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["step"]) == (1, "load")
    assert gpu.path.name in report["error"]["message"]
