# SPDX-License-Identifier: Apache-2.0
"""The kernels' PTX is that of their sources, and their parameters are the documented ones."""

import os
import re
import shutil
import subprocess

import pytest

from support import REPOSITORY

SCRIPT = REPOSITORY / "scripts/kernels"
SOURCE = REPOSITORY / "kernels/vgpu_kernels.cu"
PTX = SOURCE.with_suffix(".ptx")
README = REPOSITORY / "kernels/README.md"
HEADER = REPOSITORY / "include/vgpu/vgpu.h"
CPU = REPOSITORY / "src/exec/kernels.c"
SKIP = 77


def run_script(script, *arguments, **environment):
    return subprocess.run([script, *arguments], env={**os.environ, **environment},
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def source_parameters():
    """{kernel: names of its parameters}, of the CUDA source."""
    found = re.findall(r'^extern "C" __global__ void (\w+)\(([^)]*)\)', SOURCE.read_text(),
                       re.MULTILINE)
    return {name: [re.search(r"(\w+)$", word)[1] for word in text.split(",")]
            for name, text in found}


def ptx_counts():
    """{kernel: how many parameters}, of the PTX."""
    found = re.findall(r"\.entry (\w+)\((.*?)\)", PTX.read_text(), re.DOTALL)
    return {name: text.count(".param ") for name, text in found}


def documented_parameters():
    """{kernel: names of its parameters}, of what vgpu_launch() is said to run."""
    table = re.search(r"parameters of 64\n.*?grid and block say:\n(.*?)Errors: ", HEADER.read_text(),
                      re.DOTALL)[1]
    return {name: words.split() for name, words in re.findall(
        r"^ \*   (\w+) +(\w+(?: \w+)*)  +\S", table, re.MULTILINE)}


def test_the_ptx_is_what_its_sources_give():
    done = run_script(SCRIPT, "--check")
    if done.returncode == SKIP:
        pytest.skip(done.stdout.replace("\n", "; "))
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_kernel_of_the_source_is_in_the_ptx_with_as_many_parameters():
    counts = {name: len(words) for name, words in source_parameters().items()}
    assert len(counts) > 10
    assert ptx_counts() == counts


def test_the_documented_kernels_have_the_parameters_of_the_source():
    documented = documented_parameters()
    assert {"vector_add", "matrix_mul", "spin_us"} <= documented.keys()
    parameters = source_parameters()
    assert {name: parameters[name] for name in documented} == documented


def test_the_cpu_backend_has_the_same_kernels():
    table = re.search(r"\} kernels\[\] = \{(.*?)\n\};", CPU.read_text(), re.DOTALL)[1]
    counts = {name: int(count) for name, count in re.findall(r'\{"(\w+)", (\d+),', table)}
    assert counts == {name: len(words) for name, words in documented_parameters().items()}


def test_the_readme_has_every_kernel_with_its_parameters():
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", README.read_text(), re.MULTILINE)
    told = {name: re.sub(r"\(.*?\)", "", words).split()
            for names, words in rows for name in re.findall(r"`(\w+)`", names)}
    assert told == source_parameters()


# --- the script itself, on a copy -----------------------------------------------------


@pytest.fixture
def copy(place):
    """A repository of its own with one small source; returns (script, source)."""
    (place / "scripts").mkdir()
    (place / "kernels").mkdir()
    script = place / "scripts/kernels"
    shutil.copy(SCRIPT, script)
    for file in [SOURCE, PTX]:
        shutil.copy(file, place / "kernels")
    return script, place / "kernels/vgpu_kernels.cu"


def test_a_comment_may_change_without_new_ptx(copy):
    script, source = copy
    source.write_text(source.read_text().replace("/* y[i] = value */", "// fills,  \n// so"))
    assert run_script(script, "--check").returncode in (0, SKIP)


def test_a_source_that_was_changed_is_found_out_without_nvcc(copy):
    script, source = copy
    source.write_text(source.read_text().replace("i * 7 + 3", "i * 7 + 4"))
    done = run_script(script, "--check", PATH="/usr/bin:/bin")
    assert done.returncode == 1
    assert "was changed since its .ptx was made: run scripts/kernels" in done.stdout


def test_a_ptx_that_is_missing_is_told(copy):
    script, source = copy
    source.with_suffix(".ptx").unlink()
    done = run_script(script, "--check")
    assert (done.returncode, "there is no kernels/vgpu_kernels.ptx" in done.stdout) == (1, True)


def fake_nvcc(place, release):
    """A compiler that says its release and can do nothing else."""
    program = place / "nvcc"
    program.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release 1.0, {release}'\n"
                       '[ "$1" = --version ]\n')
    program.chmod(0o755)
    return str(program)


def test_another_release_of_the_compiler_cannot_tell(copy, place):
    done = run_script(copy[0], "--check", NVCC=fake_nvcc(place, "V1.0.7"))
    assert done.returncode == SKIP
    assert "here is nvcc V1.0.7: only the source's digest was compared" in done.stdout


def test_a_compiler_that_fails_is_told_with_its_words(copy, place):
    done = run_script(copy[0], NVCC=fake_nvcc(place, "V1.0.7"))
    assert done.returncode == 1
    assert "nvcc failed:\nCuda compilation tools" in done.stderr


def test_a_compiler_that_does_not_work_is_told(copy):
    done = run_script(copy[0], NVCC="/nonexistent/nvcc")
    assert done.returncode == 1
    assert "/nonexistent/nvcc cannot be started" in done.stderr


def test_a_ptx_that_was_changed_by_hand_is_found_out(copy):
    script, source = copy
    if run_script(script, "--check").returncode == SKIP:
        pytest.skip("there is no nvcc here that made the kept PTX")
    ptx = source.with_suffix(".ptx")
    ptx.write_text(ptx.read_text().replace("add.f32", "sub.f32"))
    done = run_script(script, "--check")
    assert (done.returncode, "is not what nvcc makes of its source" in done.stdout) == (1, True)


def test_an_option_that_is_none_is_refused():
    done = run_script(SCRIPT, "--cheque")
    assert (done.returncode, "usage: scripts/kernels" in done.stderr) == (2, True)


# --- images of other kinds, for tests on a GPU ----------------------------------------------------

IMAGES = REPOSITORY / "scripts/gpu-images"
MACHINE_CODE = {"kernels.cubin": b"\x7fELF", "kernels.fatbin": b"\x50\xed\x55\xba",
                "kernels-compressed.fatbin": b"\x50\xed\x55\xba"}


def compiler(place, text):
    path = place / "nvcc"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_each_kind_of_image_is_made_into_the_folder(place):
    nvcc = compiler(place, 'while [ "$1" != -o ]; do shift; done; echo made >"$2"')
    done = run_script(IMAGES, place / "images", NVCC=nvcc)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (place / "images").iterdir()} == set(MACHINE_CODE)


def test_an_image_that_cannot_be_made_is_told_with_what_nvcc_said(place):
    done = run_script(IMAGES, place / "images", NVCC=compiler(place, "echo no such arch; exit 1"))
    assert done.returncode == 1
    assert "gpu-images: kernels.cubin: no such arch" in done.stderr


@pytest.mark.skipif(not (shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")),
                    reason="there is no nvcc here")
def test_the_images_are_what_their_names_say(place):
    done = run_script(IMAGES, place)
    assert done.returncode == 0, done.stderr
    images = {name: (place / name).read_bytes() for name in MACHINE_CODE}
    assert {name: image[:4] for name, image in images.items()} == MACHINE_CODE
    # PTX can be read in the one, and in the other it cannot.
    assert b".visible .entry vector_add" in images["kernels.fatbin"]
    assert b".visible .entry vector_add" not in images["kernels-compressed.fatbin"]
