# SPDX-License-Identifier: Apache-2.0
"""Clients in real guests over both channels, the files' over real NFS: ours, old ones, wrong ones.

Only files: clients that write them themselves, mounts, links and directories in the place
of files, claims; test_window.py and test_window_hostile.py have the window's own.
"""

import json

import pytest

from harness.load import answer_fits, requests_of, spawn_loop, sum_command

VMS = {1: ("A", "low"), 2: ("A", "high"), 3: ("B", "medium")}
CHANNELS = ["file", "window"]


@pytest.fixture(scope="module")
def guests(lab):
    return dict(zip(VMS, lab.boot()))


@pytest.fixture
def files(lab):
    if lab.channel != "file":
        pytest.skip("about files")


# --- vgpu-client ------------------------------------------------------------------


def test_vgpu_client_without_a_word_runs_the_vector_check(lab, guests):
    mediator = lab.start_mediator()
    output = guests[2].check("vgpu-client")
    assert "1:Vector add PASSED: 1024 elements, 0 errors" in output
    assert [(event["vm"], event["pool"], event["priority"])
            for event in mediator.events("process")] == [(2, "A", 2)]
    if lab.channel == "file":  # the mediator does not read what stands in a window
        assert mediator.events("process")[0]["command"] == "VECTOR_ADD"


@pytest.mark.parametrize("command, answer", [
    ("3:4", "1:3 + 4 = 7"),
    ("GPU_INFO", "1:"),
    ("PING", "1:PONG"),
    ("MATRIX_MUL 64", "1:Matrix multiply PASSED: 64x64, 0 errors"),
    ("TEST_ANYTHING", "1:TEST_ANYTHING OK"),
    ("1", "1:Vector add PASSED"),
    ("2", "1:"),
])
def test_every_command_is_answered(lab, guests, command, answer):
    lab.start_mediator()
    request = requests_of(guests[1].check(f"vgpu-client --json '{command}'"))[0]
    assert request.channel == lab.channel
    assert request.answer.startswith(answer)
    assert (request.vm, request.pool, request.priority) == (1, "A", 0)


def test_an_unknown_command_is_an_error_answer_with_the_list(lab, guests):
    lab.start_mediator()
    status, output = guests[1].run("vgpu-client --json FROBNICATE")
    assert status == 1
    assert "VECTOR_ADD" in json.loads(output)["answer"]["message"]


@pytest.mark.usefixtures("files")
def test_a_client_that_writes_in_place_gets_its_answers(lab, guests):
    lab.start_mediator()
    commands = [sum_command(1, number) for number in range(10)]
    status, output = spawn_loop(guests[1], commands, options="--in-place").wait(180)
    requests = requests_of(output)
    assert [request.command for request in requests] == commands
    assert all(answer_fits(request.command, request.answer) for request in requests)


def test_the_client_says_what_is_missing_without_a_mediator(lab, guests):
    lab.end_mediators()
    lab.empty_share()
    status, output = guests[1].run("vgpu-client --timeout 2 PING")
    assert status == 5
    assert "mediator" in output
    status, output = guests[1].run("vgpu-client doctor")
    assert status != 0 and "mediator" in output


@pytest.mark.usefixtures("files")
def test_the_client_without_the_share_says_so(guests):
    status, output = guests[1].run("vgpu-client --share /nowhere PING")
    assert status == 4 and "/nowhere" in output


@pytest.mark.usefixtures("files")
def test_a_hung_mount_does_not_hang_the_client(lab, guests):
    lab.start_mediator()
    guests[1].check("vgpu-client PING")
    lab.nfs.stop()
    try:
        status, output = guests[1].run("vgpu-client --timeout 3 PING", timeout=180)
        assert status == 5, output
    finally:
        lab.nfs.start()
    # The mount comes back by itself.
    guests[1].check("vgpu-client --timeout 60 PING", timeout=240)


def test_info_shows_the_device(guests):
    status, output = guests[3].run("vgpu-client info")
    assert status == 0
    assert "medium" in output and "B" in output
    status, output = guests[3].run("vgpu-client --json info")
    assert status == 0 and json.loads(output)["ok"] is True


def test_doctor_finds_nothing_wrong_when_nothing_is(lab, guests):
    lab.start_mediator()
    status, output = guests[3].run("vgpu-client doctor")
    assert status == 0, output


def test_two_clients_of_one_guest_are_both_answered(lab, guests):
    lab.start_mediator()
    jobs = {number: spawn_loop(guests[1], [sum_command(1, 10 * number + n) for n in range(5)])
            for number in range(2)}
    for number, job in jobs.items():
        status, output = job.wait(180)
        assert status == 0, output
        requests = requests_of(output)
        assert [request.command for request in requests] == [
            sum_command(1, 10 * number + n) for n in range(5)]
        assert all(answer_fits(request.command, request.answer) for request in requests)


def test_a_client_that_is_interrupted_leaves_nothing_in_the_way(lab, guests):
    mediator = lab.start_mediator()
    job = guests[1].spawn("timeout -s INT 2 vgpu-client 'SPIN 4000'; echo ended $?")
    mediator.wait_event("process", vm=1)
    status, output = job.wait(180)
    assert "ended 130" in output, output
    request = requests_of(guests[1].check(f"vgpu-client --json {sum_command(1, 77)}", 60))[0]
    assert answer_fits(request.command, request.answer)


# --- clients that are not ours ----------------------------------------------------

OLD_CLIENT = """
cd /mnt/vgpu/vm{vm} || exit 1
for numbers in {numbers}; do
    echo "{pool}:{priority}:{vm}:$numbers" >request.txt
    n=0
    while sleep 1; do
        answer=$(cat response.txt)
        case $answer in 0:*|'') ;; *) break ;; esac
        n=$((n + 1)); [ $n -lt 30 ] || exit 1
    done
    echo "$numbers $answer"
done
"""


@pytest.mark.usefixtures("files")
def test_a_shell_loop_that_polls_once_a_second_gets_every_answer(lab, guests):
    """It writes in place, and takes what it sees a second later for the answer."""
    lab.start_mediator()
    jobs = {vm: guests[vm].spawn(OLD_CLIENT.format(
        vm=vm, pool="A", priority=vm - 1, numbers=" ".join(sum_command(vm, n) for n in range(4))))
        for vm in [1, 2]}
    for vm, job in jobs.items():
        status, output = job.wait(180)
        assert status == 0, output
        lines = [line.split(" ", 1) for line in output.splitlines()]
        assert [numbers for numbers, _ in lines] == [sum_command(vm, n) for n in range(4)]
        assert all(answer_fits(numbers, answer) for numbers, answer in lines), output


COMMAND_CLIENT = """
cd /mnt/vgpu/vm{vm} || exit 1
for number in 1 2 1; do
    echo $number >command.txt
    n=0
    while sleep 1; do
        answer=$(cat response.txt)
        case $answer in 0:*|'') ;; *) break ;; esac
        n=$((n + 1)); [ $n -lt 30 ] || exit 1
    done
    echo "$number $answer"
done
"""


@pytest.mark.usefixtures("files")
def test_a_client_of_the_first_protocol_uses_command_txt(lab, guests):
    mediator = lab.start_mediator()
    status, output = guests[3].run(COMMAND_CLIENT.format(vm=3), 60)
    assert status == 0, output
    first, second, third = output.splitlines()
    assert first.startswith("1 1:Vector add PASSED") and third.startswith("1 1:Vector add PASSED")
    assert second.startswith("2 1:")
    # It claims nothing: pool and priority are the registry's.
    assert [(event["vm"], event["pool"], event["priority"])
            for event in mediator.events("queue")] == [(3, "B", 1)] * 3


# --- registry, claims, strangers --------------------------------------------------


@pytest.mark.usefixtures("files")
def test_the_registry_wins_over_stale_registers(lab, guests):
    """The guests' devices say A and low, A and high; meanwhile it was changed."""
    mediator = lab.start_mediator({1: ("B", "high"), 2: ("A", "low")})
    for vm in [1, 2]:
        request = requests_of(guests[vm].check(f"vgpu-client --json {sum_command(vm, 1)}"))[0]
        assert (request.pool, request.priority) == ("A", {1: 0, 2: 2}[vm])  # the claim
        assert answer_fits(request.command, request.answer)
    assert [(event["vm"], event["pool"], event["priority"])
            for event in mediator.events("queue")] == [(1, "B", 2), (2, "A", 0)]


@pytest.mark.usefixtures("files")
def test_a_claimed_vm_id_that_is_not_the_channels_is_refused(lab, guests):
    mediator = lab.start_mediator()
    status, output = guests[1].run(
        "cd /mnt/vgpu/vm1 && echo 'A:2:2:3:4' >request.txt; for i in 1 2 3 4 5 6 7 8 9 10; do"
        " sleep 1; case $(cat response.txt) in 2:*) cat response.txt; exit 0;; esac; done; exit 1")
    assert status == 0 and "vm_id 2" in output
    assert mediator.events("queue") == [] and mediator.events("refused") != []


@pytest.mark.usefixtures("files")
def test_an_unregistered_vm_is_refused_with_the_remedy(lab, guests):
    mediator = lab.start_mediator({1: ("A", "low")}, unregistered="refuse")
    status, output = guests[3].run("vgpu-client --json PING")
    answer = json.loads(output)["answer"]
    assert status == 1 and answer["status"] == "2"
    assert "[vm 3]" in answer["message"] or "vm 3" in answer["message"]
    assert mediator.events("process") == []
    guests[1].check("vgpu-client PING")


@pytest.mark.usefixtures("files")
def test_an_accepted_stranger_is_what_it_claims_up_to_the_limit(lab, guests):
    mediator = lab.start_mediator({1: ("A", "low")}, unregistered="accept", max_priority="medium")
    for vm in [2, 3]:
        guests[vm].check("vgpu-client PING")
    assert [(event["vm"], event["pool"], event["priority"])
            for event in mediator.events("queue")] == [(2, "A", 1), (3, "B", 1)]


# --- hostile guests ---------------------------------------------------------------


@pytest.mark.parametrize("attack", [
    "ln -s /etc/passwd request.txt",
    "ln -s ../vm2/request.txt request.txt",
    "mkdir request.txt",
    "mkfifo request.txt",
    "dd if=/dev/zero of=request.txt bs=1M count=8",
    "mkfifo response.txt",
    "ln -s /etc/passwd response.txt; echo A:0:1:PING >request.txt",
    "mkdir response.txt; echo A:0:1:PING >request.txt",
    "printf 'A:0:1:PI\\000NG\\n' >request.txt",
    "printf 'A:0:1:PING\\nA:0:1:PING\\n' >request.txt",
    "ln request.txt link; printf 'A:0:1:\\033[2J\\n' >request.txt",
])
@pytest.mark.usefixtures("files")
def test_a_hostile_directory_disturbs_nobody_else(lab, guests, attack):
    mediator = lab.start_mediator()
    passwd = open("/etc/passwd").read()
    guests[1].run(f"cd /mnt/vgpu/vm1 && rm -rf request.txt response.txt; {attack}")
    for number in range(3):
        request = requests_of(guests[2].check(f"vgpu-client --json {sum_command(2, number)}"))[0]
        assert answer_fits(request.command, request.answer)
    assert mediator.running()
    assert open("/etc/passwd").read() == passwd
    # And its own fault undone, it is served again.
    guests[1].run("cd /mnt/vgpu/vm1 && rm -rf request.txt response.txt link")
    guests[1].check("vgpu-client --timeout 60 PING", timeout=240)
    assert mediator.stop() == 0
