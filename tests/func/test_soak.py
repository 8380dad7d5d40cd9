# SPDX-License-Identifier: Apache-2.0
"""What a soak (tests/soak/) plans, how it judges, what it reports; no VM is started."""

import json
import subprocess
import sys

import pytest
import support

sys.path[:0] = [str(support.REPOSITORY / "tests/soak"), str(support.REPOSITORY / "tests/vm")]

import load  # noqa: E402  (the path comes first)
import plan  # noqa: E402
import report  # noqa: E402
import verdict  # noqa: E402

SCRIPT = support.REPOSITORY / "scripts/soak"
AT_REST = {"descriptors": {"socket": 31, "anon_inode": 4}, "files": ["run/vm1.sock"],
           "workers": []}


def soak(*arguments):
    return subprocess.run([SCRIPT, *arguments], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=10 * support.WAIT_S, check=False)


def executions(*lines):
    return verdict.Executions([line.encode() + b"\n" for line in lines], {7: 1, 8: 2})


def window_line(at, number=7, vm_id=1):
    return (f"100 vm={vm_id} slot=0 generation=1 sequence={at} cookie={number << 32 | (at + 1)} "
            "opcode=1")


# --- arguments and plan -------------------------------------------------------------


@pytest.mark.parametrize("option, value, expected", [
    ("--duration", "soon", "'soon' is no duration in seconds; expected a whole number from 60"),
    ("--duration", "", "'' is no duration in seconds"),
    ("--duration", "59", "expected a whole number from 60 to 604800"),
    ("--vms", "1", "'1' is no number of VMs; expected a whole number from 2 to 60"),
    ("--seed", "-1", "seed")])
def test_a_wrong_argument_is_told_before_anything_is_built(option, value, expected):
    done = soak(option, value)
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr


def test_make_hands_its_duration_on():
    made = subprocess.run(["make", "-n", "-C", support.REPOSITORY, "soak", "DURATION=300"],
                          capture_output=True, text=True, check=True).stdout
    assert 'scripts/soak --duration "300"' in made


def test_thirty_vms_for_half_an_hour_unless_told_otherwise():
    done = soak("--plan")
    assert done.returncode == 0, done.stderr
    assert "30 VMs, 15 in pool A, 15 in pool B" in done.stdout
    assert "1800 s" in done.stdout


def test_a_report_names_the_command_that_repeats_it():
    options = plan.arguments(["--duration", "300", "--seed", "5"])
    assert plan.command(options) == "scripts/soak --duration 300 --vms 30 --seed 5"


def test_each_pool_has_vms_of_each_priority():
    assert set(plan.vms(30).values()) == {(pool, priority) for pool in plan.POOLS
                                          for priority in plan.PRIORITIES}


@pytest.mark.parametrize("load_s", [40, 240, 1780])
def test_faults_of_each_kind_come_and_the_mediator_starts_anew_once(load_s):
    made = plan.faults(1, load_s)
    kinds = [kind for _, kind in made]
    assert set(kinds) == {"worker", "file_worker", "client", "reset", "mediator"}
    assert kinds.count("mediator") == 1
    assert made == sorted(made) and 0 < made[0][0] and made[-1][0] < load_s


def test_a_seed_repeats_a_plan():
    assert plan.faults(5, 240) == plan.faults(5, 240)
    assert plan.faults(5, 240) != plan.faults(6, 240)


# --- what ran, what was answered ----------------------------------------------------


def test_an_account_that_fits_what_ran_is_right():
    ran = executions(*[window_line(at) for at in range(3)])
    assert verdict.account_problems(7, b"oolq", ran.counts[7]) == []
    assert ran.begun(7) == 3


@pytest.mark.parametrize("account, ran, problem", [
    (b"ou", [0], "load 7: 1 operations have no answer, such as number 1"),
    (b"oo", [0], "load 7: 1 answers are of operations that never ran, such as number 1"),
    (b"oo", [0, 1, 1], "load 7: 1 operations ran twice, such as number 1"),
    (b"o", [0, 4], "load 7: 1 operations ran that nobody submitted, such as number 4")])
def test_what_was_lost_repeated_or_made_up_is_found(account, ran, problem):
    found = executions(*[window_line(at) for at in ran])
    assert verdict.account_problems(7, account, found.counts[7]) == [problem]


def test_of_a_killed_client_only_repeats_are_wrong():
    assert verdict.account_problems(7, b"", executions(window_line(3)).counts[7]) == []
    assert verdict.account_problems(7, b"", executions(*[window_line(3)] * 2).counts[7])


def test_what_another_vm_ran_is_in_no_account():
    ran = executions(window_line(0, number=8, vm_id=1), window_line(0, number=99))
    assert (ran.begun(7), ran.begun(8), ran.others, ran.torn) == (0, 0, 2, 0)


def test_a_torn_line_of_the_execution_log_is_counted():
    assert executions(window_line(0)[:20], window_line(1)).torn == 1


def test_a_file_request_may_run_again_when_the_log_says_why():
    ran = executions(*["5 vm=3 sequence=9 execution=1"] * 2)
    assert len(verdict.file_problems(ran, set())) == 1
    assert verdict.file_problems(ran, {(3, 9)}) == []


def test_letters_of_all_accounts_are_added_up():
    assert verdict.letters([b"ool", b"", b"oa"]) == {"o": 3, "l": 1, "a": 1}


# --- requests through files ----------------------------------------------------------


@pytest.fixture
def files(monkeypatch):
    monkeypatch.setattr(load.paths, "client", lambda: "vgpu-client")
    return load.FileLoad(1, "A", "low", "/share", 1, 1)


def answered(status, message):
    return json.dumps({"answer": {"status": status, "message": message}})


def test_a_right_answer_and_one_that_is_an_error_are_counted_apart(files):
    files.judge("1:2", 0, answered(1, "1 + 2 = 3"))
    files.judge("1:2", 1, answered(2, "The worker has ended"))
    assert (files.right, dict(files.told), files.problems) == (1, {"The worker has ended": 1}, [])


@pytest.mark.parametrize("status, output", [
    (0, answered(1, "1 + 2 = 4")), (5, ""), (0, ""), (5, answered(2, "late"))])
def test_a_wrong_answer_or_none_is_a_problem(files, status, output):
    files.judge("1:2", status, output, "what went wrong")
    assert len(files.problems) == 1 and "vm1: file request 1:2" in files.problems[0]


def test_a_soak_in_which_nothing_happened_has_not_passed():
    assert verdict.idle_problems({1: 5}, {1: 2}, {"worker": 1}) == []
    assert verdict.idle_problems({1: 5, 2: 0}, {1: 0}, {"worker": 0}) == [
        "vm2: nothing ran through its window",
        "vm1: nothing was answered through its directory",
        "faults: there was none of kind worker"]


# --- memory, descriptors, files -------------------------------------------------------


def test_memory_that_stays_is_flat_however_it_began():
    samples = [(second, 9000 if second >= 10 else 1000) for second in range(100)]
    assert verdict.growth_kib(samples) == 0
    assert verdict.memory_problems([samples]) == []


def test_memory_that_rises_is_told_with_its_life():
    rising = [(second, 1000 + 100 * second) for second in range(100)]
    flat = [(second, 1000) for second in range(100)]
    problem, = verdict.memory_problems([flat, rising])
    assert "in life 2" in problem


def test_memory_of_which_too_little_is_known_is_not_called_flat():
    problem, = verdict.memory_problems([[(0, 1), (1, 1)]])
    assert "too short" in problem
    assert len(verdict.memory_problems([[]])) == 1


def test_what_is_held_before_and_after_is_no_leak():
    assert verdict.leak_problems(AT_REST, AT_REST) == []


@pytest.mark.parametrize("after, problem", [
    ({"descriptors": {"socket": 32}}, "descriptors: the mediator holds 32 of socket"),
    ({"files": ["run/vm1.sock", "run/sessions/vm1-0"]}, "files: run/sessions/vm1-0 is left"),
    ({"workers": [123]}, "workers: 123 is left")])
def test_what_is_held_after_and_not_before_is_a_leak(after, problem):
    found, = verdict.leak_problems(AT_REST, {**AT_REST, **after})
    assert found.startswith(problem)


# --- report ----------------------------------------------------------------------------


def result(*problems):
    return {"command": "make soak DURATION=60", "date": "2026-01-02 03:04:05 UTC",
            "duration_s": 60, "machine": report.machine("tcg"), "vms": 2,
            "problems": list(problems), "samples": [[(0.0, 1)]]}


def test_a_report_says_what_ran_where_and_how_it_ended(tmp_path):
    data, words = report.write(result(), tmp_path / "new")
    assert data.name == "soak-2026-01-02-60s.json"
    kept = json.loads(data.read_text())
    assert (kept["verdict"], kept["machine"]["accelerator"]) == ("passed", "tcg")
    assert kept["machine"]["memory_mib"] > 0 and kept["samples"] == [[[0.0, 1]]]
    text = words.read_text()
    assert text.startswith("PASSED: make soak DURATION=60\n")
    assert "  accelerator: tcg\n" in text and "samples" not in text


def test_a_report_with_a_problem_has_failed_and_says_it_first(tmp_path):
    data, words = report.write(result("files: a is left"), tmp_path)
    assert json.loads(data.read_text())["verdict"] == "failed"
    assert words.read_text().startswith(
        "FAILED: make soak DURATION=60\n  wrong: files: a is left\n")
