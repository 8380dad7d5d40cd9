# SPDX-License-Identifier: Apache-2.0
"""The file channel's protocol with clients that mean well: how a request may be
written, what each command answers, how long an answer stands, what the log says."""

import re
import time

import pytest
from support import READY, wait_until

pytestmark = pytest.mark.threads

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"


# --- the log --------------------------------------------------------------------


def test_text_log_has_the_three_lines_with_a_time_before_each(mediator):
    m = mediator(vms={2: ("A", 2), 3: ("A", 0), 4: ("A", 1)}, log_format="text", start=False)
    m.launch()
    lines = lambda: m.log.read_text().splitlines() if m.log.exists() else []  # noqa: E731
    wait_until(lambda: any("[READY]" in line for line in lines()), m.tail)
    for vm_id, command in ((3, "SPIN 60000"), (4, "PING"), (2, "TEST_HIGH")):
        m.vm(vm_id).ready()
        m.vm(vm_id).put(command)
        wait_until(lambda i=vm_id: any(f"[QUEUE] Pool A: Added priority={m.vms[i][1]}, vm={i}"
                                       in line for line in lines()), m.tail)
    wait_until(lambda: (3, 1) in m.executions(), "the execution's begin")
    m.kill_worker_of(3)
    assert m.vm(2).wait_answer() == "1:TEST_HIGH OK"
    assert m.vm(4).wait_answer() == "1:PONG"
    expected = [r"\[QUEUE\] Pool A: Added priority=0, vm=3, count=1",
                r"\[PROCESS\] Pool A: vm=3, priority=0, command=SPIN 60000",
                r"\[QUEUE\] Pool A: Added priority=1, vm=4, count=1",
                r"\[QUEUE\] Pool A: Added priority=2, vm=2, count=2",
                r"\[PROCESS\] Pool A: vm=2, priority=2, command=TEST_HIGH",
                r"\[PROCESS\] Pool A: vm=4, priority=1, command=PING"]
    wait_until(lambda: any("[RESPONSE] Sent to vm4" in line for line in lines()), m.tail)
    shown = [line for line in lines() if "[QUEUE]" in line or "[PROCESS]" in line]
    assert len(shown) == len(expected)
    for line, pattern in zip(shown, expected):
        assert re.fullmatch(f"{STAMP} {pattern}", line)
    assert any(re.fullmatch(rf"{STAMP} \[RESPONSE\] Sent to vm2: 1:TEST_HIGH OK", line)
               for line in lines())
    assert m.end() == 0


def test_json_log_has_one_object_a_line_with_what_the_text_says(mediator):
    m = mediator(vms={7: ("B", 2)})
    assert m.vm(7).ask("PING x") == "1:PONG x"
    m.wait_event("response")
    queued, processed, answered = (m.events(e)[0] for e in ("queue", "process", "response"))
    for entry in (queued, processed, answered):
        assert re.fullmatch(STAMP, entry["time"])
    assert (queued["pool"], queued["priority"], queued["vm"], queued["count"]) == ("B", 2, 7, 1)
    assert queued["message"] == "Pool B: Added priority=2, vm=7, count=1"
    assert (processed["vm"], processed["command"]) == (7, "PING x")
    assert (answered["vm"], answered["answer"], answered["status"]) == (7, "1:PONG x", "1")
    assert queued["sequence"] == processed["sequence"] == answered["sequence"]


# --- ways to write a request -------------------------------------------------------


def test_request_written_in_place_is_answered(mediator):
    assert mediator().vm(1).ask("PING in place") == "1:PONG in place"


def test_request_put_by_rename_is_answered(mediator):
    vm = mediator().vm(1)
    vm.ready()
    vm.put_renamed("PING renamed")
    assert vm.wait_answer() == "1:PONG renamed"


def test_half_a_line_is_not_yet_a_request(mediator):
    m = mediator()
    vm = m.vm(1)
    with open(vm.request, "w") as file:
        file.write("A:1:1:PING one")
        file.flush()
        m.wait_looks()
        assert not m.events("queue") and vm.answer() is None
        file.write(" two\n")
    assert vm.wait_answer() == "1:PONG one two"
    assert [e["command"] for e in m.events("process")] == ["PING one two"]


def test_line_that_never_gets_its_newline_is_refused_after_the_hold_time(mediator):
    vm = mediator(unterminated_hold_ms=150).vm(1)
    before = time.monotonic()
    answer = vm.ask_raw(b"A:1:1:PING")
    assert answer == "2:request has no newline at its end after 150 ms: end it with one"
    assert time.monotonic() - before >= 0.15
    assert vm.ask("PING next") == "1:PONG next"


def test_crlf_and_blank_lines_around_do_not_matter(mediator):
    vm = mediator().vm(1)
    assert vm.ask_raw(b"A:1:1:PING dos\r\n") == "1:PONG dos"
    assert vm.ask_raw(b"\n \r\n A:1:1:PING blank \t\r\n\r\n") == "1:PONG blank"


def test_white_space_alone_is_no_request(mediator):
    m = mediator()
    m.vm(1).put_raw(b" \r\n\n")
    m.wait_looks()
    assert not m.events("queue") and not m.events("refused")
    assert m.vm(1).ask("PING") == "1:PONG"


def test_request_file_is_empty_after_the_request_was_accepted(mediator):
    m = mediator(vms={1: ("A", 1)})
    pid = m.occupy(1)
    wait_until(lambda: m.vm(1).request.read_bytes() == b"", "an emptied request.txt")
    assert m.vm(1).response.read_text().splitlines()[0] == READY
    m.release(pid)


# --- commands ----------------------------------------------------------------------


@pytest.mark.parametrize("command, answer", [
    ("VECTOR_ADD", r"1:Vector add PASSED: 1024 elements, 0 errors \(cpu, \d+ us\)"),
    ("VECTOR_ADD 2 3.5", r"1:2 \+ 3\.5 = 5\.5"),
    ("vector_add -1 1", r"1:-1 \+ 1 = 0"),
    ("3:4", r"1:3 \+ 4 = 7"),
    ("MATRIX_MUL", r"1:Matrix multiply PASSED: 64x64, 0 errors \(cpu, \d+ us\)"),
    ("MATRIX_MUL 17", r"1:Matrix multiply PASSED: 17x17, 0 errors \(cpu, \d+ us\)"),
    ("GPU_INFO", r"1:CPU backend: .*, \d+ cores?, no GPU"),
    ("PING", r"1:PONG"),
    ("PING a:b : c", r"1:PONG a:b : c"),
    ("SPIN 1", r"1:Spun 1 ms"),
    ("TEST_ANYTHING at all", r"1:TEST_ANYTHING at all OK"),
    ("1", r"1:Vector add PASSED: .*"),
    ("2", r"1:CPU backend: .*"),
    ("DANCE", r"2:unknown command 'DANCE': use VECTOR_ADD .*, PING .*num1:num2"),
    ("3", r"2:unknown command '3': use VECTOR_ADD .*"),
    ("MATRIX_MUL 1025", r"2:MATRIX_MUL '1025': expected .* 1 to 1024"),
    ("VECTOR_ADD 1", r"2:VECTOR_ADD '1': expected two numbers.*"),
    ("SPIN", r"2:SPIN '': expected milliseconds.*"),
    ("1:x", r"2:'x' is not a decimal number.*"),
    ("GPU_INFO now", r"2:'now' is too much.*"),
    ("x" * 255, r"2:unknown command 'x+\.\.\.': use .*"),
])
def test_command_is_answered(mediator_of_module, command, answer):
    assert re.fullmatch(answer, mediator_of_module.vm(1).ask(command))


@pytest.mark.parametrize("data", [b"1", b"1\n", b"1\r\n"])
def test_command_file_with_1_runs_the_vector_check(mediator_of_module, data):
    answer = mediator_of_module.vm(1).ask_raw(data, "command.txt")
    assert answer.startswith("1:Vector add PASSED")


@pytest.mark.parametrize("data", [b"2", b"2\n"])
def test_command_file_with_2_describes_the_gpu(mediator_of_module, data):
    assert mediator_of_module.vm(1).ask_raw(data, "command.txt").startswith("1:CPU backend: ")


def test_command_file_takes_any_command_that_ends_with_a_newline(mediator_of_module):
    vm = mediator_of_module.vm(1)
    assert vm.ask_raw(b"PING by command\n", "command.txt") == "1:PONG by command"
    assert vm.ask_raw(b"9", "command.txt").startswith("2:unknown command '9'")
    assert vm.command.read_bytes() == b""


def test_command_file_runs_with_the_registered_pool_and_priority(mediator):
    m = mediator(vms={1: ("B", 2)})
    m.vm(1).ask_raw(b"1", "command.txt")
    queued = m.wait_event("queue")
    assert (queued["pool"], queued["priority"]) == ("B", 2)


def test_command_and_request_together_run_one_after_the_other_the_older_first(mediator):
    m = mediator(start=False)
    vm = m.vm(1)
    vm.directory.mkdir(parents=True)
    vm.put("PING newer")
    vm.command.write_text("PING older\n")
    m.set_time(vm.request, 2000)
    m.set_time(vm.command, 1000)
    m.start()
    m.wait_event("response", count=2)
    assert [e["answer"] for e in m.events("response")] == ["1:PONG older", "1:PONG newer"]
    assert [e["command"] for e in m.events("process")] == ["PING older", "PING newer"]


# --- the answer --------------------------------------------------------------------


def test_ready_returns_when_the_answer_was_held_long_enough_after_it_was_read(mediator):
    m = mediator(response_hold_ms=300)
    vm = m.vm(1)
    vm.put("PING")
    m.wait_event("response")
    begin = time.monotonic()
    assert vm.answer() == "1:PONG"
    wait_until(lambda: vm.response.read_text() == READY + "\n", "0:Ready")
    assert time.monotonic() - begin > 0.3


def test_an_answer_that_nobody_has_read_stands_until_the_next_request(mediator):
    m = mediator(response_hold_ms=1)
    vm = m.vm(1)
    vm.put("PING for a client that an NFS server keeps waiting")
    m.wait_event("response")
    m.wait_looks(20)
    assert vm.response.stat().st_size == len("1:PONG for a client that an NFS server keeps waiting\n")
    assert vm.answer() == "1:PONG for a client that an NFS server keeps waiting"
    wait_until(lambda: vm.response.read_text() == READY + "\n", "0:Ready")


def test_answer_stands_while_its_hold_time_lasts(mediator):
    m = mediator(vms={1: ("A", 1), 2: ("A", 1)})
    assert m.vm(1).ask("PING") == "1:PONG"
    m.wait_looks()
    assert m.vm(2).ask("PING") == "1:PONG"
    assert m.vm(1).answer() == "1:PONG"


def test_what_the_client_wrote_over_its_answer_is_left_alone(mediator):
    m = mediator(response_hold_ms=50)
    vm = m.vm(1)
    assert vm.ask("PING") == "1:PONG"
    vm.response.write_text("mine\n")
    m.wait_looks(20)
    assert vm.response.read_text() == "mine\n"


def test_no_old_answer_is_left_when_the_next_request_is_accepted(mediator):
    m = mediator(vms={1: ("A", 1)})
    vm = m.vm(1)
    assert vm.ask("PING old") == "1:PONG old"
    vm.put("SPIN 60000")  # without 0:Ready before: an old client
    pid = m.wait_event("process", count=2)["worker_pid"]
    wait_until(lambda: (1, 2) in m.executions(), "the execution's begin")
    assert vm.response.read_text().splitlines()[0] == READY
    m.release(pid)
    assert vm.wait_answer().startswith("2:worker")


def test_shorter_answer_leaves_nothing_of_a_longer_one(mediator):
    vm = mediator().vm(1)
    vm.ask("PING " + "long" * 50)
    vm.put("PING")
    wait_until(lambda: vm.response.read_text() == "1:PONG\n", "the short answer alone")


# --- one request at a time ------------------------------------------------------------


def test_repeat_of_the_outstanding_request_gets_one_answer(mediator):
    m = mediator(vms={1: ("A", 1), 9: ("A", 1)})
    vm, pid = m.vm(1), m.occupy(9)
    m.queue(1, command="PING same")
    vm.put("PING same")
    m.wait_looks()
    m.release(pid)
    assert vm.wait_answer() == "1:PONG same"
    m.wait_looks()
    assert len(m.events("queue", vm=1)) == 1
    assert len(m.events("response", vm=1)) == 1
    assert vm.request.read_bytes() == b""


def test_answer_is_withheld_when_another_request_took_the_first_ones_place(mediator):
    m = mediator(vms={1: ("A", 1), 9: ("A", 1)})
    vm, pid = m.vm(1), m.occupy(9)
    m.queue(1, command="PING first")
    vm.put("PING second")
    m.wait_looks()
    assert len(m.events("queue", vm=1)) == 1  # one outstanding
    m.release(pid)
    assert vm.wait_answer() == "1:PONG second"
    m.wait_event("response", vm=1)
    withheld = m.wait_event("withheld", vm=1)
    assert withheld["answer"] == "1:PONG first"
    assert [e["answer"] for e in m.events("response", vm=1)] == ["1:PONG second"]


def test_requests_of_one_vm_are_numbered_without_gaps(mediator):
    m = mediator()
    for i in range(5):
        assert m.vm(1).ask(f"PING {i}") == f"1:PONG {i}"
    m.wait_event("response", count=5)
    assert [e["sequence"] for e in m.events("queue")] == [1, 2, 3, 4, 5]
    assert m.executions() == [(1, i) for i in range(1, 6)]


# --- who a VM is ------------------------------------------------------------------------


@pytest.mark.parametrize("registered, claimed", [(("A", 2), "B:0"), (("B", 0), "A:2")])
def test_registry_wins_over_what_the_request_claims(mediator, registered, claimed):
    m = mediator(vms={1: registered})
    assert m.vm(1).ask_raw(f"{claimed}:1:PING\n".encode()) == "1:PONG"
    for event in ("queue", "process"):
        entry = m.wait_event(event)
        assert (entry["pool"], entry["priority"]) == registered
    assert len(m.messages("the registry says")) == 1
    assert m.vm(1).ask_raw(f"{claimed}:1:PING\n".encode()) == "1:PONG"
    assert len(m.messages("the registry says")) == 1  # told once


def test_unregistered_vm_is_refused_with_the_remedy(mediator):
    m = mediator(vms={1: ("A", 1)})
    vm = m.vm(55)
    vm.directory.mkdir()
    vm.put("PING")
    answer = vm.wait_answer()
    assert answer.startswith("2:VM 55 is not registered") and "[vm 55]" in answer
    m.wait_event("refused", vm=55)
    assert not m.events("queue")


def test_unregistered_vm_is_believed_up_to_max_priority_when_accepted(mediator):
    m = mediator(vms={}, unregistered="accept", max_priority="medium")
    for vm_id, claim, pool, priority in ((55, "B:2", "B", 1), (56, "A:0", "A", 0)):
        vm = m.vm(vm_id)
        vm.directory.mkdir()
        vm.put_raw(f"{claim}:{vm_id}:PING\n".encode())
        assert vm.wait_answer() == "1:PONG"
        queued = m.wait_event("queue", vm=vm_id)
        assert (queued["pool"], queued["priority"]) == (pool, priority)
    # It may claim something else next time.
    assert vm.ask_raw(b"B:1:56:PING again\n") == "1:PONG again"
    queued = m.wait_event("queue", count=2, vm=56)
    assert (queued["pool"], queued["priority"]) == ("B", 1)


@pytest.mark.parametrize("name", ["vm007", "vm0", "vm", "vmx", "vm4294967296", "vm-1", "vm+7",
                                  "VM7", "vm7 "])
def test_directory_with_another_name_is_no_vm(mediator, name):
    m = mediator(vms={1: ("A", 1)}, unregistered="accept")
    (m.share / name).mkdir()
    (m.share / name / "request.txt").write_text("A:1:7:PING\n")
    m.wait_listings()
    assert m.vm(1).ask("PING") == "1:PONG"
    assert m.order("queue") == [1] and not m.events("refused")
    assert not (m.share / name / "response.txt").exists()


def test_directories_of_registered_vms_are_made_with_owner_and_mode(mediator):
    m = mediator(vms={1: ("A", 1)}, start=False)
    with open(m.config, "a") as config:
        config.write("owner = 1234:2345\nmode = 0750\n")
    m.start()
    vm = m.vm(1)
    wait_until(vm.response.exists, "furnished directory")
    for path, mode in ((vm.directory, 0o750), (vm.request, 0o640), (vm.response, 0o640)):
        info = wait_until(lambda p=path: p.exists() and p.stat(), path)
        assert (info.st_uid, info.st_gid, info.st_mode & 0o7777) == (1234, 2345, mode)
    assert vm.response.read_text() == READY + "\n" and vm.request.read_bytes() == b""
    assert m.share.stat().st_mode & 0o7777 == 0o711
    assert m.state.stat().st_mode & 0o7777 == 0o700
