# SPDX-License-Identifier: Apache-2.0
"""The examples do what their README says, on the backend that is there.

VGPU_TEST_BACKEND names the device of pool A: with "cuda" or "cuda:0" the examples run for
real; without it they must say that the cpu backend takes no kernels of their own.
"""

import os
import re
import subprocess

import pytest

import support

DEVICE = os.environ.get("VGPU_TEST_BACKEND", "cpu")
EXAMPLES = sorted(path.parent.name for path in (support.REPOSITORY / "examples").glob("*/*.cu"))
NO_MODULES = 77
RUN_S = 120  # only a failure takes so long


def program(name):
    return support.BUILD / f"examples/vgpu-example-{name}"


def run_example(name, socket):
    return subprocess.run([program(name)], env={**os.environ, "VGPU_SOCKET": str(socket)},
                          stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=RUN_S, check=False)


def pool_of_backend():
    return {} if DEVICE == "cpu" else {"A": DEVICE}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_or_says_that_there_are_no_modules(mediator, name):
    m = mediator({1: ("A", 1)}, pools=pool_of_backend())
    done = run_example(name, m.state / "run/vm1.sock")
    if DEVICE == "cpu":
        assert (done.returncode, done.stdout) == (NO_MODULES, ""), done.stderr
        assert "takes no modules" in done.stderr
    else:
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        assert done.stdout.startswith(f"{name}: ")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_without_a_host_says_so(place, name):
    done = run_example(name, place / "none.sock")
    assert done.returncode == 1
    assert "opening a session: " in done.stderr and "none.sock" in done.stderr


def test_every_example_is_in_the_readme_and_no_other():
    text = (support.REPOSITORY / "examples/README.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == EXAMPLES
