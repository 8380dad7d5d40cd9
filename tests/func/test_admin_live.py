# SPDX-License-Identifier: Apache-2.0
"""vgpu-admin's commands that ask the running mediator: status, queue, top, test-mode,
reload; and what they say when there is none."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import termios
import time

import pytest
from control_support import ADMIN, admin, control, control_path, make_registered
from support import WAIT_S, both_channels, wait_until

LOW, MEDIUM, HIGH = 0, 1, 2
OK, FAILED, USAGE, NOT_FOUND, NOT_RUNNING = 0, 1, 2, 3, 6
LIVE = ["status", "queue", "top", "stats", "reload", "test-mode"]
MODE = {"test-mode": ["show"], "top": ["--once", "--interval", "100"]}

pytestmark = pytest.mark.threads


def run(m, command, *words):
    return subprocess.run([str(ADMIN), command, "--config", str(m.config), *map(str, words)],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=WAIT_S,
                          check=False, env=dict(os.environ, LC_ALL="C"))


def told(m, command, *words):
    done = run(m, command, "--json", *words)
    assert (done.returncode, done.stderr) == (OK, "")
    return json.loads(done.stdout)


def rows(text, first):
    """{header: cell} of each line below the line that begins with `first`."""
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.split()[:1] == [first])
    names = re.split(r"\s{2,}", lines[at].strip())
    found = []
    for line in lines[at + 1:]:
        if not line.strip():
            break
        found.append(dict(zip(names, re.split(r"\s{2,}", line.strip()))))
    return found


# --- all of them -------------------------------------------------------------------------


@pytest.mark.parametrize("command", LIVE)
def test_help_says_what_it_does(command):
    done = subprocess.run([str(ADMIN), command, "--help"], capture_output=True, text=True,
                          timeout=WAIT_S, check=False)
    assert done.returncode == OK and f"Usage: vgpu-admin {command}" in done.stdout


@pytest.mark.parametrize("command", LIVE)
def test_without_a_mediator_it_says_so_and_how_to_start_it(mediator, command):
    m = mediator(start=False)
    done = run(m, command, *MODE.get(command, []))
    assert (done.returncode, done.stdout) == (NOT_RUNNING, "")
    assert str(control_path(m)) in done.stderr and "systemctl start vgpu-mediator" in done.stderr
    done = run(m, command, "--json", *MODE.get(command, []))
    assert done.returncode == NOT_RUNNING
    assert json.loads(done.stderr)["error"]["code"] == "not-running"


@pytest.mark.parametrize("command", LIVE)
def test_a_word_too_many_is_a_usage_error(mediator_of_module, command):
    done = run(mediator_of_module, command, *MODE.get(command, []), "surplus", "words")
    assert (done.returncode, done.stdout) == (USAGE, "")


# --- status, queue ---------------------------------------------------------------------------


@both_channels
def test_status_is_one_screen_of_pools_vms_and_queues(mediator):
    m = make_registered(mediator, {9: ("A", HIGH), 1: ("A", LOW), 2: ("B", HIGH)})
    assert m.vm(2).ask("PING") == "1:PONG"
    pid = m.occupy(9)
    m.queue(1)
    admin(m, "quarantine", "vm2", "--reason", "too loud")
    text = run(m, "status").stdout
    assert text.startswith(f"vgpu-mediator 0.1.0, process {m.process.pid}, up ")
    assert str(m.settings["database"]) in text
    pools = {row["POOL"]: row for row in rows(text, "POOL")}
    assert (pools["A"]["VMS"], pools["A"]["WAITING"], pools["A"]["RUNNING"]) == ("2", "1", "1")
    assert (pools["B"]["DEVICE"], pools["B"]["STATE"]) == ("cpu", "enabled")
    vms = {row["VM"]: row for row in rows(text, "VM")}
    assert (vms["1"]["NAME"], vms["1"]["PRIORITY"], vms["1"]["QUEUE"]) == ("vm1", "low", "1")
    assert (vms["9"]["RUNS"], vms["1"]["RUNS"]) == ("yes", "no")
    assert (vms["2"]["STATE"], vms["2"]["DONE"]) == ("quarantined", "1")
    assert told(m, "status")["vms"][1]["vm_id"] == 2
    m.release(pid)


def test_of_many_vms_status_shows_the_first_and_says_how_many_there_are(mediator):
    m = mediator({vm_id: ("A", LOW) for vm_id in range(1, 131)}, channel="window")
    text = run(m, "status").stdout
    assert [row["VM"] for row in rows(text, "VM")][:100] == [str(n) for n in range(1, 101)]
    assert text.endswith("... and 30 more: --all shows them.\n")
    everything = run(m, "status", "--all").stdout
    assert len(rows(everything, "VM")) == 130 and "more" not in everything
    assert len(told(m, "status")["vms"]) == 130


def serve_pages(listener, pages):
    """Answers `status` with a page after the other, on a connection each; returns what was asked."""
    asked = []
    for vm_ids, left_out in pages:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as lines:
            for result in [{}, {"vms": [{"vm_id": vm_id} for vm_id in vm_ids],
                                "vms_left_out": left_out}]:
                request = json.loads(lines.readline())
                connection.sendall(json.dumps({"version": 1, "id": request["id"], "ok": True,
                                               "result": result}).encode() + b"\n")
            asked.append(request.get("arguments", {}).get("vms_from"))
    return asked


@pytest.mark.parametrize("pages", [
    [([1, 2], 3), ([3, 7], 1), ([9], 0)],
    [([1, 2], 3), ([], 3)],  # the others went meanwhile
], ids=["all", "gone"])
def test_vms_beyond_one_answer_are_asked_for_page_by_page(tmp_path, pages):
    path = tmp_path / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(WAIT_S)
        with subprocess.Popen([str(ADMIN), "status", "--json", "--socket", str(path)], text=True,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            asked = serve_pages(listener, pages)
            answer = json.loads(process.communicate(timeout=WAIT_S)[0])
    assert [vm["vm_id"] for vm in answer["vms"]] == [vm_id for ids, _ in pages for vm_id in ids]
    assert asked == [None] + [ids[-1] + 1 for ids, _ in pages[:-1]]


def test_status_says_when_pools_and_vms_stand_in_the_configuration(mediator):
    m = mediator({4: ("A", LOW)})
    text = run(m, "status").stdout
    assert "no database" in text and rows(text, "VM")[0]["VM"] == "4"


@both_channels
def test_queue_lists_what_runs_and_what_waits_in_order(mediator):
    m = make_registered(mediator, {9: ("A", LOW), 1: ("A", LOW), 2: ("B", HIGH), 3: ("A", MEDIUM)})
    assert run(m, "queue").stdout == "Nothing runs and nothing waits.\n"
    pid = m.occupy(9)
    m.queue(1, 2, 3)
    found = rows(run(m, "queue").stdout, "DEVICE")
    assert [(row["PLACE"], row["VM"]) for row in found] == [("runs", "9"), ("1", "2"), ("2", "3"),
                                                            ("3", "1")]
    admin(m, "set-priority", "vm1", "high")
    assert [row["VM"] for row in rows(run(m, "queue").stdout, "DEVICE")] == ["9", "1", "2", "3"]
    device, = told(m, "queue")["devices"]
    assert [vm["vm_id"] for vm in device["waiting"]] == [1, 2, 3]
    m.release(pid)


# --- reload --------------------------------------------------------------------------------------


def test_reload_tells_what_changed(mediator):
    m = mediator({1: ("A", LOW), 2: ("B", LOW)})
    assert run(m, "reload").stdout == "Nothing has changed.\n"
    m.vms[1] = ("B", HIGH)
    del m.vms[2]
    m.write_config()
    text = run(m, "reload").stdout
    assert [tuple(row.values()) for row in rows(text, "OF")] == [
        ("VM 1", "pool", "A", "B"), ("VM 1", "priority", "low", "high"), ("VM 2", "vm", "B", "-")]
    m.vms[3] = ("Z", HIGH)
    m.write_config()
    done = run(m, "reload")
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert "pool Z does not exist" in done.stderr
    assert m.vm(1).ask("PING") == "1:PONG"


def test_reload_names_what_counts_from_the_next_start_on(mediator):
    m = mediator({1: ("A", LOW)})
    m.settings.update(policy="wfq", operation_limit_ms=7000, log_level="debug", trace_kib=128)
    m.write_config()
    keys = ["log_level", "policy", "operation_limit_ms", "trace_kib"]
    for _ in range(2):  # it stays so
        text = run(m, "reload").stdout
        assert "Nothing has changed." not in text
        assert f"\n{', '.join(keys)}: from the mediator's next start on.\n" in text
        assert told(m, "reload")["next_start"] == keys
    m.stop()
    m.start()
    assert run(m, "reload").stdout == "Nothing has changed.\n"
    assert told(m, "reload")["next_start"] == []


def test_a_wrong_configuration_is_told_by_its_exit_code(mediator):
    m = mediator({1: ("A", LOW)})
    m.settings["grant_us"] = 5
    m.write_config()
    done = run(m, "reload", "--json")
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert json.loads(done.stderr)["error"]["code"] == "usage"
    assert "grant_us = 5: expected a whole number" in done.stderr
    assert m.vm(1).ask("PING") == "1:PONG"


# --- test mode ----------------------------------------------------------------------------------


def test_test_mode_is_driven_from_the_shell(mediator):
    m = make_registered(mediator, {1: ("A", MEDIUM), 2: ("A", MEDIUM)})
    assert "off" in run(m, "test-mode", "show").stdout
    assert "held until 2 VMs wait" in run(m, "test-mode", "on").stdout
    done = run(m, "test-mode", "answer", "--simultaneous", "no")
    assert done.returncode == FAILED and "0 of 2 VMs wait" in done.stderr
    after = m.mark()
    m.queue(1, 2)
    wait_until(lambda: told(m, "test-mode", "show")["asks"], "the question")
    assert "VMs 1 2 wait" in run(m, "test-mode", "show").stdout
    assert "Test mode asks" in run(m, "status").stdout
    assert run(m, "test-mode", "answer", "--winner", "vm2").returncode == OK
    m.wait_event("response", count=2, after=after)
    assert m.order(after=after) == [2, 1]
    assert "off" in run(m, "test-mode", "off").stdout
    assert m.vm(1).ask("PING") == "1:PONG"


def test_who_drives_test_mode_is_in_the_audit(mediator):
    m = make_registered(mediator, {1: ("A", MEDIUM), 2: ("A", MEDIUM)})
    run(m, "test-mode", "on", "--hold-until", "3")
    run(m, "test-mode", "on", "--hold-until", "3")  # changes nothing
    run(m, "test-mode", "show")
    run(m, "test-mode", "answer", "--winner", "1")  # nobody was asked
    run(m, "test-mode", "off")
    events = told(m, "events", "--action", "test-mode")["events"]
    assert [(event["before"]["on"], event["after"]["on"], event["after"]["hold_until"])
            for event in events] == [(False, True, 3), (True, False, events[1]["after"]["hold_until"])]
    assert all(event["actor"] for event in events)


def test_an_answer_is_in_the_audit(mediator):
    m = make_registered(mediator, {1: ("A", MEDIUM), 2: ("A", MEDIUM)})
    run(m, "test-mode", "on")
    m.queue(1, 2)
    wait_until(lambda: told(m, "test-mode", "show")["asks"], "the question")
    run(m, "test-mode", "answer", "--winner", "2")
    answer = told(m, "events", "--action", "test-mode")["events"][-1]["after"]
    assert answer == {"action": "answer", "simultaneous": True, "winner": 2}
    run(m, "test-mode", "off")


@pytest.mark.parametrize("words, expected", [
    (["sideways"], "expected on, off, answer or show"),
    (["off", "--hold-until", "3"], "belongs to the mode on"),
    (["on", "--winner", "1"], "belong to the mode answer"),
    (["on", "--hold-until", "0"], "from 1 to 10000"),
    (["answer", "--simultaneous", "perhaps"], "--simultaneous"),
])
def test_a_wrong_mode_or_option_is_a_usage_error(mediator_of_module, words, expected):
    done = run(mediator_of_module, "test-mode", *words)
    assert (done.returncode, done.stdout) == (USAGE, "") and expected in done.stderr


def test_an_answer_that_nobody_can_be_asked_for_is_refused(mediator):
    m = make_registered(mediator, {1: ("A", MEDIUM)})
    done = run(m, "test-mode", "answer")
    assert done.returncode != OK and done.stdout == ""
    done = run(m, "test-mode", "answer", "--winner", "nobody")
    assert done.returncode == NOT_FOUND


# --- top --------------------------------------------------------------------------------------------


def test_top_once_shows_rates_and_shares_of_the_time_between_two_looks(mediator):
    m = mediator({1: ("A", LOW), 2: ("A", LOW)}, channel="window", grant_ops=64)
    m.vm(1).ask("PING")
    m.vm(1).ready()
    m.vm(1).put("SPIN 300")
    table = told(m, "top", "--once", "--interval", "1500")
    assert table["interval_ms"] >= 1500
    first, second = table["vms"]
    assert (first["vm_id"], first["share_percent"] > 5, second["share_percent"]) == (1, True, 0)
    assert m.vm(1).wait_answer().startswith("1:")
    text = run(m, "top", "--once", "--interval", "100").stdout
    assert [row["VM"] for row in rows(text, "VM")] == ["1", "2"]


def test_top_without_a_terminal_says_what_to_use(mediator_of_module):
    done = run(mediator_of_module, "top")
    assert (done.returncode, done.stdout) == (FAILED, "") and "--once" in done.stderr


class Screen:
    """vgpu-admin top on a terminal of its own."""

    def __init__(self, m):
        self.shown = ""
        self.leader, follower = pty.openpty()
        fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 150, 0, 0))
        self.process = subprocess.Popen(
            [str(ADMIN), "top", "--interval", "100", "--config", str(m.config)], stdin=follower,
            stdout=follower, stderr=follower, env=dict(os.environ, TERM="vt100", LC_ALL="C"))
        os.close(follower)

    def wait(self, *texts):
        """Until it has shown all of them anew."""
        self.shown = ""
        deadline = time.monotonic() + WAIT_S
        while not all(text in self.shown for text in texts):
            assert time.monotonic() < deadline, f"{texts} on the screen: {self.shown!r}"
            if select.select([self.leader], [], [], 0.1)[0]:
                self.shown += os.read(self.leader, 65536).decode(errors="replace")

    def end(self):
        os.write(self.leader, b"q")
        status = None
        while status is None:  # it writes its last words
            if select.select([self.leader], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    os.read(self.leader, 65536)
            status = self.process.poll()
        return status

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
        os.close(self.leader)


@pytest.fixture
def screen():
    made = []

    def make(m):
        made.append(Screen(m))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_top_goes_on_when_the_mediator_is_restarted(mediator, screen):
    m = make_registered(mediator, {7: ("A", HIGH)})
    top = screen(m)
    top.wait(f"process {m.process.pid}", "PRIORITY", "vm7", "high")
    m.kill()
    top.wait("waiting for the mediator")
    m.start()
    top.wait(f"process {m.process.pid}", "vm7")
    admin(m, "set-priority", 7, "low")
    top.wait("low")
    assert top.end() == OK


def test_top_follows_a_change_of_the_screens_size(mediator, screen):
    m = make_registered(mediator, {7: ("A", HIGH)})
    top = screen(m)
    top.wait("vm7")
    fcntl.ioctl(top.leader, termios.TIOCSWINSZ, struct.pack("HHHH", 5, 20, 0, 0))
    top.process.send_signal(signal.SIGWINCH)
    top.wait("vgpu-mediator")
    assert top.end() == OK


def test_the_mediator_sees_a_change_before_the_command_ends(mediator):
    m = make_registered(mediator, {1: ("A", LOW)})
    with control(m) as c:
        for priority in (HIGH, MEDIUM, LOW) * 5:
            admin(m, "set-priority", 1, priority)
            assert c.vm(1)["priority"] == priority
