# SPDX-License-Identifier: Apache-2.0
"""The demo: its verdict is right, can be wrong, and nothing is left behind."""

import os
import pathlib
import signal
import subprocess

from harness import paths, process

DEMO = [str(paths.REPOSITORY / "demo/run.py")]
TIMEOUT_S = 400


def play(*arguments):
    done = subprocess.run([*DEMO, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT_S)
    return done.returncode, done.stdout


def left_behind(demo_pid):
    """Processes and directories that carry the run's mark."""
    mark = f"vgpu-vm-{demo_pid}-"
    found = [str(path) for path in pathlib.Path("/tmp").glob(f"{mark}*")]
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) not in (os.getpid(), demo_pid):
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if mark.encode() in text:
                found.append(f"process {entry.name}")
    return found


def test_the_demo_shows_the_order_and_ends_with_its_verdict():
    status, output = play()
    assert output.splitlines()[-1] == "demo: order right, 12 of 12 answered", output
    assert status == 0
    for line in ["vm2  A    high      runs 1.    VECTOR_ADD",
                 "vm3  B    medium    runs 2.    VECTOR_ADD",
                 "vm1  A    low       runs 3.    VECTOR_ADD"]:
        assert line in output
    assert "\033[" not in output  # no terminal, no colours


def test_the_demo_says_order_wrong_of_a_first_come_scheduler():
    status, output = play("--policy", "fifo")
    assert output.splitlines()[-1] == "demo: order wrong, 12 of 12 answered", output
    assert status == 1
    assert "vm1 (low) ran when it was the turn of vm2 (high)" in output


def test_an_interrupted_demo_cleans_up():
    with subprocess.Popen(DEMO, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as demo:
        for line in demo.stdout:
            if "booting" in line:
                break
        demo.send_signal(signal.SIGINT)
        rest = demo.stdout.read()
        assert demo.wait(TIMEOUT_S) == 130
    assert rest.splitlines()[-1] == "demo: interrupted, all was cleaned up"
    assert left_behind(demo.pid) == []


def test_the_mark_finds_what_is_left_behind():
    """The check above can fail."""
    assert process.MARK.startswith(f"vgpu-vm-{os.getpid()}-")
    with subprocess.Popen(["sleep", "30"],
                          env={**os.environ, "VGPU_TEST_RUN": "vgpu-vm-1-x"}) as sleeper:
        while not pathlib.Path(f"/proc/{sleeper.pid}/cmdline").read_bytes().startswith(b"sleep"):
            pass
        assert left_behind(1) == [f"process {sleeper.pid}"]
        sleeper.kill()
