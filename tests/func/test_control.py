# SPDX-License-Identifier: Apache-2.0
"""The control socket: what it answers, who may ask, and that no peer, however it
behaves, keeps the mediator from its work."""

import contextlib
import json
import os
import pathlib
import re
import socket
import sqlite3
import threading

import pytest
from control_support import Control, Failed, control, control_path, make_registered
from support import MEDIATOR, REPOSITORY, both_channels, wait_until

LOW, MEDIUM, HIGH = 0, 1, 2
GROUP = 987654  # nobody's on this host
STRANGER = 123456

SANITIZED = any(f"__{kind}san_init".encode() in MEDIATOR.read_bytes()
                for kind in ["a", "t", "ub"])

pytestmark = pytest.mark.threads


def memory_kib(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0])


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def assert_serves(m):
    """It answers others, and does its work."""
    with control(m) as c:
        assert c.call("hello")["pid"] == m.process.pid
    assert m.vm(1).ask("PING") == "1:PONG"


def error_of(c):
    answer = c.receive()
    assert answer["ok"] is False and answer["version"] == 1
    return answer["id"], answer["error"]["code"], answer["error"]["message"]


# --- what it answers -----------------------------------------------------------------------


def test_hello_says_who_answers(mediator):
    m = mediator()
    with control(m) as c:
        hello = c.call("hello")
    assert (hello["version"], hello["pid"], hello["ready"]) == (1, m.process.pid, True)
    assert hello["mediator"].count(".") == 2 and hello["uptime_s"] >= 0


def test_commands_sent_together_are_answered_in_their_order(mediator):
    m = mediator()
    with control(m) as c:
        c.send(b"".join(b'{"version":1,"id":%d,"command":"hello"}\n' % i for i in range(1, 41)))
        assert [c.receive()["id"] for _ in range(40)] == list(range(1, 41))


@pytest.mark.parametrize("line, code, words", [
    (b"hello", "bad-json", "one JSON object"),
    (b"[]", "bad-json", "one JSON object"),
    (b'{"version":1,"version":1,"id":1,"command":"hello"}', "bad-json", "one JSON object"),
    (b'{"version":1,"id":1,"command":"hello"} x', "bad-json", "one JSON object"),
    (b'{"version":1,"id":1,"command":"\xff"}', "bad-json", "one JSON object"),
    (b"", "bad-json", "one JSON object"),
    (b"[" * 16000, "bad-json", "one JSON object"),
    (b"{}", "version", "speaks version 1"),
    (b'{"version":2,"id":7,"command":"hello"}', "version", "speaks version 1"),
    (b'{"version":1,"command":"hello"}', "bad-request", '"id"'),
    (b'{"version":1,"id":0,"command":"hello"}', "bad-request", '"id"'),
    (b'{"version":1,"id":"1","command":"hello"}', "bad-request", '"id"'),
    (b'{"version":1,"id":1}', "bad-request", '"command"'),
    (b'{"version":1,"id":1,"command":7}', "bad-request", '"command"'),
    (b'{"version":1,"id":1,"command":"hello","arguments":[]}', "bad-request", '"arguments"'),
    (b'{"version":1,"id":1,"command":"shutdown"}', "unknown-command", "no command 'shutdown'"),
    (b'{"version":1,"id":1,"command":"\\u0007"}', "unknown-command", "no command '\\x07'"),
    (b'{"version":1,"id":1,"command":"hello","arguments":{"x":1}}', "bad-argument",
     "hello has no argument 'x'"),
    (b'{"version":1,"id":1,"command":"status","arguments":{"vm_id":"1"}}', "bad-argument",
     "vm_id: expected a whole number"),
    (b'{"version":1,"id":1,"command":"status","arguments":{"vm_id":99}}', "no-such-vm", "99"),
    (b'{"version":1,"id":1,"command":"status","arguments":{"vms_from":0}}', "bad-argument",
     "vms_from: expected a whole number"),
    (b'{"version":1,"id":1,"command":"test-mode"}', "bad-argument", "on, off, answer or show"),
    (b'{"version":1,"id":1,"command":"test-mode","arguments":{"action":"answer"}}',
     "bad-argument", "simultaneous: expected true or false"),
    (b'{"version":1,"id":1,"command":"test-mode","arguments":{"action":"answer",'
     b'"simultaneous":true}}', "test-mode-off", "off"),
    (b'{"version":1,"id":1,"command":"test-mode","arguments":{"action":"on","hold_until":0}}',
     "bad-argument", "hold_until: expected a whole number"),
    (b'{"version":1,"id":1,"command":"test-mode","arguments":{"action":"on","winner":1}}',
     "bad-argument", "belong to the action 'answer'"),
])
def test_what_is_wrong_is_named_and_the_connection_goes_on(mediator_of_module, line, code, words):
    with control(mediator_of_module) as c:
        c.send(line + b"\n")
        _, got, message = error_of(c)
        assert got == code and words in message
        assert c.call("hello")["version"] == 1


def test_status_has_vms_from_a_number_on(mediator):
    m = mediator({1: ("A", LOW), 5: ("A", LOW), 9: ("B", HIGH)})
    with control(m) as c:
        for vms_from, expected in [(1, [1, 5, 9]), (2, [5, 9]), (9, [9]), (10, [])]:
            status = c.call("status", vms_from=vms_from)
            assert [one["vm_id"] for one in status["vms"]] == expected
            assert status["vms_left_out"] == 0


@both_channels
def test_status_counts_what_a_vm_did(mediator):
    m = mediator({1: ("A", LOW), 2: ("B", HIGH)})
    for _ in range(5):
        assert m.vm(1).ask("PING") == "1:PONG"
    with control(m) as c:
        status = c.call("status")
        vm = c.vm(1)
    assert [one["vm_id"] for one in status["vms"]] == [1, 2]
    assert (vm["pool"], vm["priority"], vm["state"], vm["operations"]) == ("A", LOW, "active", 5)
    assert (vm["depth"], vm["running"], vm["refusals"], vm["registered"]) == (0, False, 0, True)
    assert vm["sessions"] == (1 if m.channel == "window" else 0) and vm["sessions_max"] == 8
    assert vm["answers"] == (5 if m.channel == "file" else 0)
    assert vm["answer"]["count"] == vm["answers"]
    assert vm["grant"]["count"] == 5
    assert 0 < vm["grant"]["p50_us"] <= vm["grant"]["p99_us"]
    assert [(pool["id"], pool["vms"]) for pool in status["pools"]] == [("A", 1), ("B", 1)]
    assert status["mediator"]["pid"] == m.process.pid
    assert status["devices"] == [{"name": "cpu", "state": "usable", "reason": "", "running": None,
                                  "sessions": 1, "switches": 0}]
    assert vm["devices"] == [{"device": "cpu", "sessions": 1, "depth": 0, "running": False}]


def test_operations_of_a_long_grant_are_counted_while_it_lasts(mediator):
    m = mediator({1: ("A", LOW)}, channel="window", grant_ops=64)
    assert m.vm(1).ask("SPIN 20").startswith("1:")
    with control(m) as c:
        assert c.vm(1)["running"]  # alone on its device: it keeps it
        assert c.vm(1)["operations"] == 1
        wait_until(lambda: c.vm(1)["device_us"] >= 20000, "the device time")


def test_claims_that_differ_and_refusals_are_counted(mediator):
    m = mediator({1: ("A", LOW)})
    m.vms[1] = ("B", HIGH)
    m.vm(1).ask("PING")
    m.vm(1).ask_raw(b"A:1:77:PING\n")
    with control(m) as c:
        assert (c.vm(1)["claim_differences"], c.vm(1)["refusals"]) == (1, 1)


@both_channels
def test_the_queue_is_told_in_the_order_of_service(mediator):
    m = mediator({9: ("A", LOW), 1: ("A", LOW), 2: ("A", HIGH), 3: ("B", MEDIUM), 4: ("B", HIGH)})
    with control(m) as c:
        assert c.call("queue")["devices"] == [{"name": "cpu", "running": None, "waiting": [],
                                               "waiting_for_context": []}]
        after = m.mark()
        pid = m.occupy(9)
        m.queue(1, 2, 3, 4)
        device, = c.call("queue")["devices"]
        assert device["running"]["vm_id"] == 9
        told = [vm["vm_id"] for vm in device["waiting"]]
        assert {vm["work"] for vm in device["waiting"]} == {
            f"PING {vm}" for vm in told} if m.channel == "file" else {"window slot 0, 1 operation"}
        m.release(pid)
        m.wait_event("response", count=5, after=after)
    assert told == [2, 4, 3, 1] == m.order(after=after)[1:]


# --- test mode at run time -------------------------------------------------------------------


@both_channels
def test_test_mode_asks_on_the_socket(mediator):
    m = mediator({1: ("A", MEDIUM), 2: ("A", MEDIUM), 3: ("A", LOW)})
    with control(m) as c:
        state = c.call("test-mode", action="on", hold_until=3)
        assert state == {"on": True, "holding": True, "asks": False, "hold_until": 3, "waiting": []}
        after = m.mark()
        m.queue(1, 3)
        with pytest.raises(Failed, match="2 of 3 VMs wait") as failure:
            c.call("test-mode", action="answer", simultaneous=False)
        assert failure.value.code == "not-asked"
        m.queue(2)
        wait_until(lambda: c.call("test-mode", action="show")["asks"], "the question")
        with pytest.raises(Failed, match="VM 7 does not wait"):
            c.call("test-mode", action="answer", simultaneous=True, winner=7)
        with pytest.raises(Failed, match="first come, first served has none"):
            c.call("test-mode", action="answer", simultaneous=False, winner=2)
        c.call("test-mode", action="answer", simultaneous=True, winner=2)
        m.wait_event("response", count=3, after=after)
        assert m.order(after=after) == [2, 1, 3]
        wait_until(lambda: c.call("test-mode", action="show")["holding"], "it holds again")
        assert c.call("test-mode", action="off")["on"] is False
    assert m.vm(1).ask("PING") == "1:PONG"


@both_channels
def test_turning_test_mode_off_lets_what_is_held_go(mediator):
    m = mediator({1: ("A", MEDIUM), 2: ("A", MEDIUM)})
    with control(m) as c:
        c.call("test-mode", action="on")
        m.queue(1)
        assert c.vm(1)["depth"] == 1 and not c.vm(1)["running"]
        c.call("test-mode", action="off")
    assert m.vm(1).wait_answer() == "1:PONG 1"


def test_turning_test_mode_on_takes_long_grants_back(mediator):
    m = mediator({1: ("A", MEDIUM), 2: ("A", MEDIUM)}, channel="window", grant_ops=64)
    assert m.vm(1).ask("PING") == "1:PONG"
    with control(m) as c:
        assert c.vm(1)["running"]
        c.call("test-mode", action="on")
        wait_until(lambda: not c.vm(1)["running"], "its grant back")
        m.vm(1).ready()
        m.vm(1).put("PING")
        wait_until(lambda: c.vm(1)["depth"] == 1, "it waits")
        c.call("test-mode", action="off")
    assert m.vm(1).wait_answer() == "1:PONG"


# --- peers that misbehave ----------------------------------------------------------------------


def test_a_line_without_end_is_cut_off(mediator):
    m = mediator()
    before = memory_kib(m.process.pid)
    with control(m) as c:
        try:
            for _ in range(160):
                c.send(b"x" * 65536)
        except OSError:
            pass  # it has hung up
        answers = []
        try:
            answers.append(c.receive())
        except OSError:
            pass
        assert all(answer is None or answer["error"]["code"] == "too-long" for answer in answers)
    assert_serves(m)
    if not SANITIZED:
        assert memory_kib(m.process.pid) < before + 8192


def test_the_longest_line_is_taken_and_one_byte_more_is_not(mediator_of_module):
    good = b'{"version":1,"id":1,"command":"hello"}'
    with control(mediator_of_module) as c:
        c.send(good.ljust(16383) + b"\n")
        assert c.result()["version"] == 1
    with control(mediator_of_module) as c:
        c.send(good.ljust(16384) + b"\n")
        assert error_of(c)[1] == "too-long"
        assert c.receive() is None


def test_half_lines_and_silence_disturb_nobody(mediator):
    m = mediator()
    quiet = [control(m) for _ in range(8)]
    for number, c in enumerate(quiet):
        c.send(b'{"version":1,"id":1,"comm'[:number * 3])
    assert_serves(m)
    quiet[7].send(b'{"version":1,"id":1,"command":"hello"}'[21:] + b"\n")
    assert quiet[7].result()["version"] == 1
    for c in quiet:
        c.close()
    assert_serves(m)


def test_lines_byte_by_byte_are_lines(mediator_of_module):
    with control(mediator_of_module) as c:
        for byte in b'{"version":1,"id":5,"command":"hello"}\n':
            c.send(bytes([byte]))
        assert c.receive()["id"] == 5


def test_who_hangs_up_in_the_middle_leaves_nothing(mediator):
    m = mediator()
    with control(m) as c:
        c.call("hello")
        before = descriptors(m.process.pid)
        for number in range(60):
            with control(m) as other:
                other.send(b'{"version":1,"id":1,"command":"status"}\n' * (number % 4))
        wait_until(lambda: descriptors(m.process.pid) == before, "its descriptors closed")
    assert_serves(m)


def test_a_flood_of_commands_waits_and_others_do_not(mediator):
    m = mediator()
    count = 250
    with control(m) as flood:
        flood.send(b'{"version":1,"id":1,"command":"hello"}\n' * count)
        assert_serves(m)
        for _ in range(count):
            assert flood.receive()["ok"]


def test_peers_that_never_read_cost_bounded_memory(mediator):
    m = mediator({i: ("A", LOW) for i in range(1, 201)})
    before = memory_kib(m.process.pid)
    deaf = [control(m) for _ in range(15)]
    for c in deaf:
        c.socket.setblocking(False)
        line = b'{"version":1,"id":1,"command":"status"}\n'
        try:
            while True:
                c.socket.send(line * 100)
        except BlockingIOError:
            pass
    assert_serves(m)
    if not SANITIZED:  # which keeps what is freed
        assert memory_kib(m.process.pid) < before + 32768
    for c in deaf:
        c.close()
    assert_serves(m)


def test_there_are_so_many_connections_and_no_more(mediator):
    m = mediator()
    some = [control(m) for _ in range(16)]
    for c in some:
        c.call("hello")
    with control(m) as late:
        answer = late.receive()
        assert answer["error"]["code"] == "busy" and late.receive() is None
    some.pop().close()
    wait_until(lambda: answers(m), "room again")
    for c in some:
        c.close()


def answers(m):
    try:
        with control(m) as c:
            return c.call("hello")
    except (Failed, OSError):
        return None


def test_many_at_once_are_each_answered(mediator):
    m = mediator()
    found = []

    def ask():
        with control(m) as c:
            for _ in range(20):
                found.append(c.call("status")["mediator"]["pid"])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [m.process.pid] * 160


# --- who may ask ----------------------------------------------------------------------------------


def as_user(uid, groups, path):
    """What a process of this user gets for a hello: its answer, or the error's name."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgroups(groups)
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            try:
                with Control(path) as c:
                    with contextlib.suppress(BrokenPipeError):  # sent away already
                        c.ask("hello")
                    text = json.dumps(c.receive())
            except OSError as error:
                text = type(error).__name__
            os.write(theirs, text.encode())
            status = 0
        finally:
            os._exit(status)
    os.close(theirs)
    with open(ours, "rb") as file:
        text = file.read().decode()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(text) if text.startswith("{") else text


@pytest.fixture
def open_way(mediator):
    """A mediator of this control group, in directories that all can pass."""
    if os.geteuid() != 0:
        pytest.skip("only root can be somebody else")
    m = mediator(control_group=GROUP)
    for path in [m.directory.parent, m.directory, m.state]:
        path.chmod(0o711)
    return m


def test_the_sockets_mode_keeps_others_out(open_way):
    path = control_path(open_way)
    info = path.stat()
    assert (info.st_uid, info.st_gid, info.st_mode & 0o777) == (0, GROUP, 0o660)
    assert as_user(STRANGER, [], path) == "PermissionError"


def test_a_member_of_the_group_is_let_in(open_way):
    answer = as_user(STRANGER, [55, GROUP, 77], control_path(open_way))
    assert answer["ok"] and answer["result"]["pid"] == open_way.process.pid


def test_a_stranger_whom_the_mode_lets_in_is_refused(open_way):
    path = control_path(open_way)
    path.chmod(0o666)
    for _ in range(3):
        answer = as_user(STRANGER, [55], path)
        assert answer["ok"] is False and answer["error"]["code"] == "not-allowed"
    open_way.wait_message(f"of user {STRANGER} is neither root's nor of group")
    assert as_user(STRANGER, [GROUP], path)["ok"]
    assert_serves(open_way)


def test_the_last_places_are_roots(open_way):
    peers = [control(open_way) for _ in range(12)]
    for c in peers:
        c.send(b'{"version":1,')  # half a line keeps its place for a while
    assert as_user(STRANGER, [GROUP], control_path(open_way))["error"]["code"] == "busy"
    assert_serves(open_way)
    for c in peers:
        c.close()


def test_without_such_a_group_the_socket_is_roots_alone(mediator):
    m = mediator(control_group="no-such-group-here")
    assert control_path(m).stat().st_mode & 0o777 == 0o600
    assert_serves(m)


# --- its life ---------------------------------------------------------------------------------------


def test_the_socket_goes_with_the_mediator_and_comes_back(mediator):
    m = mediator()
    m.stop()
    assert not control_path(m).exists()
    m.start()
    assert_serves(m)
    m.kill()
    assert control_path(m).exists()
    m.start()
    assert_serves(m)


def test_a_mediator_stops_while_peers_are_connected(mediator):
    m = mediator()
    peers = [control(m) for _ in range(5)]
    for c in peers:
        c.send(b'{"version":1,')
    m.stop()
    for c in peers:
        assert c.receive() is None
        c.close()


def test_a_path_that_is_too_long_for_a_socket_works_too(mediator, place):
    deep = place / ("d" * 60) / ("e" * 60)
    m = mediator(run_dir=deep)
    fd = os.open(deep, os.O_PATH)
    with Control(f"/proc/self/fd/{fd}/control.sock") as c:
        assert c.call("hello")["pid"] == m.process.pid
    os.close(fd)


def test_what_was_removed_by_another_is_not_missed(mediator):
    """Only its own socket is removed at the end."""
    m = mediator()
    control_path(m).unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(control_path(m)))
        m.stop()
        assert control_path(m).exists()


# --- what the document says ---------------------------------------------------------------------------

DOCUMENT = REPOSITORY / "docs/control.md"


def shape(value):
    """Members and types; lists by their first element."""
    if isinstance(value, dict):
        return {key: shape(member) for key, member in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def agree(shown, got):
    if isinstance(shown, dict) and isinstance(got, dict):
        return shown.keys() == got.keys() and all(agree(shown[key], got[key]) for key in shown)
    if isinstance(shown, list) and isinstance(got, list):
        return not shown or not got or agree(shown[0], got[0])
    return shown == got


def test_every_exchange_of_the_document_is_what_happens(mediator):
    m = make_registered(mediator, {1: ("A", MEDIUM), 2: ("B", HIGH)})
    lines = re.findall(r"^([→←]) (.*)$", DOCUMENT.read_text(), re.MULTILINE)
    exchanges = [(json.loads(ask[1]), json.loads(answer[1]))
                 for ask, answer in zip(lines[::2], lines[1::2])]
    assert {ask["command"] for ask, _ in exchanges} == {"hello", "status", "queue", "stats",
                                                        "reload", "test-mode", "release"}
    with control(m) as c:
        for ask, shown in sorted(exchanges, key=lambda pair: pair[0]["id"]):
            if ask["id"] == 4:
                m.queue(1, 2)
                wait_until(lambda: c.call("test-mode", action="show")["asks"], "the question")
            if ask["id"] == 8:
                for vm_id in (1, 2):  # what was held has run, before one's priority changes
                    assert m.vm(vm_id).wait_answer().startswith("1:")
                with contextlib.closing(sqlite3.connect(m.settings["database"])) as rows, rows:
                    rows.execute("UPDATE vms SET priority = 2 WHERE vm_id = 1")
            c.send(json.dumps(ask).encode() + b"\n")
            got = c.receive()
            assert agree(shape(shown), shape(got)), (shown, got)
            if ask["id"] in (3, 4, 6, 9):
                assert got == shown


def test_every_code_and_no_other_is_in_the_document():
    found = set()
    for name in ["commands.c", "control.c"]:
        text = (REPOSITORY / "src/mediator" / name).read_text()
        found |= set(re.findall(r'(?:fail\(call, |fail\(&call, |send_failure\([^"]*?|'
                                r'send_away\(fd, |failure = \{)"([a-z-]+)"', text))
    found |= {"not-asked", "bad-argument"}  # one call says either
    table = DOCUMENT.read_text().partition("| code | what was wrong |")[2].partition("\n\n")[0]
    assert found == set(re.findall(r"^\| `([a-z-]+)` \| ", table, re.MULTILINE))
