# SPDX-License-Identifier: Apache-2.0
"""The command that checks a GPU says what failed, and takes no wrong programs."""

import json
import os
import shutil
import subprocess
import sys
import tarfile

import pytest

import support

CHECK = support.REPOSITORY / "tests/gpu/check.py"
BUNDLE = support.REPOSITORY / "scripts/gpu-bundle"
NVIDIA_SMI = """#!/bin/sh
case "$*" in
*memory.used*) echo 5 ;;
*-l\\ 1*) exec sleep 60 ;;
*) echo 0 ;;
esac
"""


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def check(place, *words, build=support.BUILD):
    """(exit status, what it printed, its JSON)"""
    done = subprocess.run(
        [sys.executable, CHECK, *words], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "OUT": str(place / "out"), "VGPU_BUILD_DIR": str(build),
             "PATH": f"{place / 'bin'}:{os.environ['PATH']}"})
    return done.returncode, done.stdout, json.loads((place / "out/gpu-check.json").read_text())


def test_a_step_has_its_line_and_its_record(place):
    status, text, record = check(place, "--double", "--only", "kernels")
    assert status == 0, text
    assert "PASS kernels: kernels: 13, launches: " in text
    assert text.splitlines()[-1] == "gpu-check: 1 passed, 0 failed"
    assert (record["passed"], record["failed"]) == (1, 0)
    assert [step["name"] for step in record["steps"]] == ["machine", "kernels", "after"]
    assert "vector_add: " in (place / "out/gpu-check.txt").read_text()


def test_a_step_that_fails_is_told_with_what_it_printed(place):
    program(place / "build/tests/func/kernels_probe", "#!/bin/sh\necho wrong sum\nexit 1\n")
    status, text, record = check(place, "--double", "--only", "kernels", build=place / "build")
    assert status == 1
    assert "FAIL kernels: status 1" in text and "wrong sum" in text
    assert text.splitlines()[-1] == "gpu-check: 0 passed, 1 failed"
    assert record["failed"] == 1


def test_a_step_of_which_nothing_can_run_is_skipped_and_says_so(place):
    status, text, record = check(place, "--double", "--only", "watch")
    assert status == 0 and "SKIP watch: 2 skipped" in text
    assert [step["passed"] for step in record["steps"]] == [None] * 3


def test_a_step_can_be_left_out(place):
    status, _, record = check(place, "--double", "--only", "kernels", "--skip", "kernels")
    assert status == 0
    assert [step["name"] for step in record["steps"]] == ["machine", "after"]


def test_without_images_the_check_of_them_fails_rather_than_passes(place, monkeypatch):
    monkeypatch.delenv("VGPU_TEST_IMAGES", raising=False)
    program(place / "bin/dmesg", "#!/bin/sh\n")
    program(place / "bin/nvidia-smi", NVIDIA_SMI)
    status, text, _ = check(place, "--only", "images")
    assert status == 1 and "FAIL images: there is no cubin and no fatbin" in text


@pytest.mark.parametrize("xid, passes", [(None, True), (31, True), (79, False)])
def test_an_xid_that_no_kernel_of_ours_makes_fails_the_check(place, xid, passes):
    line = f"NVRM: Xid (PCI:0000:00:06): {xid}, pid=1" if xid else "all quiet"
    program(place / "bin/dmesg", f"#!/bin/sh\necho '[    1.0] {line}'\n")
    program(place / "bin/nvidia-smi", NVIDIA_SMI)
    status, text, _ = check(place, "--only", "after")
    assert (status == 0) == passes, text
    assert ("FAIL after: Xids [79]" in text) == (not passes)


@pytest.fixture
def tree(place):
    """A repository with nothing but the script in it."""
    (place / "scripts").mkdir()
    (place / "build-gpu").mkdir()
    shutil.copy(BUNDLE, place / "scripts/gpu-bundle")
    return place


def unpack(tree, word):
    return subprocess.run([tree / "scripts/gpu-bundle", word], capture_output=True, text=True,
                          timeout=180, check=False)


def test_without_a_bundle_the_remedy_is_told(tree):
    done = unpack(tree, "--unpack")
    assert done.returncode == 1
    assert "no build-gpu/bundle.tar.xz: run scripts/gpu-bundle" in done.stderr


def test_a_bundle_of_other_sources_is_taken_only_when_one_says_so(tree):
    (tree / "sources").write_text("of yesterday\n")
    with tarfile.open(tree / "build-gpu/bundle.tar.xz", "w:xz") as archive:
        archive.add(tree / "sources", "./sources")
    refused, taken = unpack(tree, "--unpack"), unpack(tree, "--unpack-any")
    assert refused.returncode == 1 and "other sources" in refused.stderr
    assert taken.returncode == 0 and "other sources" in taken.stderr
    assert taken.stdout == f"{tree / 'build-gpu/bundle'}\n"
