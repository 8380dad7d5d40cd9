# SPDX-License-Identifier: Apache-2.0
"""vgpu-admin set-vm-id: a new number everywhere, or everything as it was.

The toolstack is xl with a program in its place that notes its calls and fails when it
is told to; each step fails in turn.
"""

import concurrent.futures
import os
import re
import signal
import sqlite3

import pytest

from admin_support import (ADMIN, DECLINED, EXISTS, FAILED, NOT_FOUND, NOT_RUNNING, OK, USAGE, UUID,
                           FakeXl, Host, Running, script)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chown")
OWNER = 123456


@pytest.fixture
def host(place):
    """VM 7 is web1, which xl knows and runs."""
    host = Host(place)
    host.good("init")
    host.good("register-vm", "web1", "--vm-id", "7", "--uuid", UUID, "--owner", OWNER)
    (host.share / "vm7/left").write_text("by the guest")
    return host


@pytest.fixture
def xl(host):
    return FakeXl(host)


def everything(host, xl):
    return host.state()[0], host.vm("web1")["vm_id"], xl.device(), xl.running.exists()


def test_a_running_vm_is_stopped_renumbered_and_started(host, xl):
    answer = host.json("set-vm-id", "web1", "9", "--yes")
    assert list(answer) == ["vm", "before", "restarted", "toolstack", "mediator"]
    assert (answer["before"]["vm_id"], answer["vm"]["vm_id"]) == (7, 9)
    assert (answer["restarted"], answer["toolstack"]) == (True, "xl")
    assert xl.calls() == ["shutdown -w -F 3", f"create {xl.config}"]
    assert xl.running.exists()
    assert "vm_id=9" in xl.device()
    assert (host.share / "vm9/left").read_text() == "by the guest"
    assert not (host.share / "vm7").exists() and host.retired() == []


def test_in_words_each_step_that_takes_time_is_told(host, xl):
    assert host.good("set-vm-id", "7", "9", "--yes") == (
        "Stopping web1 ...\nStarting web1 ...\nVM 7 (web1) is VM 9 now, and runs again\n")


def test_a_vm_that_is_off_stays_off(host, xl):
    xl.running.unlink()
    answer = host.json("set-vm-id", "7", "9", "--yes")
    assert answer["restarted"] is False
    assert xl.calls() == [] and not xl.running.exists()
    assert "vm_id=9" in xl.device()


def test_a_definition_without_device_gets_none(place):
    host = Host(place)
    host.good("init")
    host.good("register-vm", "web1", "--vm-id", "7", "--uuid", UUID)
    xl = FakeXl(host, device=False)
    host.good("set-vm-id", "7", "9", "--yes")
    assert "vgpu-stub" not in xl.config.read_text()


def test_a_vm_that_no_toolstack_knows_changes_all_the_same(host):
    answer = host.json("set-vm-id", "7", "9", "--yes")
    assert (answer["restarted"], answer["toolstack"]) == (False, None)
    assert (host.share / "vm9/left").exists()


# --- asking ------------------------------------------------------------------------------


def test_it_shows_old_and_new_and_asks(host, xl):
    code, output = host.ask("yes\n", "set-vm-id", "7", "9")
    assert code == OK
    assert ("VM 7 (web1) becomes VM 9, directory vm7 becomes vm9. It runs: it is shut down and "
            "started again. Do it? (yes/no)") in output
    assert host.vm("web1")["vm_id"] == 9


@pytest.mark.parametrize("typed", ["no\n", "NO\n", "\x04", "what?\nwell\nhm\n"])
def test_anything_but_yes_changes_nothing(host, xl, typed):
    before = everything(host, xl)
    code, output = host.ask(typed, "set-vm-id", "7", "9")
    assert code == DECLINED
    assert "nothing was done, as the answer was no" in output
    assert everything(host, xl) == before and xl.calls() == []


def test_where_nobody_can_be_asked_yes_must_be_said(host, xl):
    message = host.bad(FAILED, "set-vm-id", "7", "9")
    assert "Nobody can be asked, as there is no terminal: say --yes" in message
    assert xl.calls() == []


# --- refused before anything is done --------------------------------------------------------


@pytest.mark.parametrize("words, exit_code, message", [
    (["7", "8"], EXISTS, "number 8 is another VM's, web2: choose a free one"),
    (["7", "7"], EXISTS, "VM 7 has this number already"),
    (["6", "9"], NOT_FOUND, "'6' is registered"),
    (["7", "0"], USAGE, "VM id '0'"),
    (["7", "nine"], USAGE, "VM id 'nine'"),
    (["7"], USAGE, "set-vm-id needs VM ID: 1 word came"),
    (["7", "9", "--timeout", "0"], USAGE, "--timeout '0': expected seconds from 1"),
    (["7", "9", "--toolstack", "xenopsd"], NOT_RUNNING, "xenopsd"),
])
def test_what_cannot_be_is_refused_and_the_guest_runs_on(host, xl, words, exit_code, message):
    host.good("register-vm", "web2", "--vm-id", "8")
    assert message in host.bad(exit_code, "set-vm-id", *words, "--yes")
    assert xl.calls() == [] and xl.running.exists()


def test_a_toolstack_that_does_not_answer_is_a_failure(host, xl):
    xl.fail("vm-list", times=9)
    before = host.state()
    done = host.run("set-vm-id", "7", "9", "--yes")
    assert done.returncode == FAILED and "vm-list does not work today" in done.stderr
    assert host.state() == before


def test_a_machine_that_only_has_the_name_is_left_alone(place):
    host = Host(place)
    host.good("init")
    host.good("register-vm", "web1", "--vm-id", "3")
    xl = FakeXl(host)
    device = xl.device()
    message = host.bad(FAILED, "set-vm-id", "web1", "9", "--yes")
    assert "has the device of VM 7 and may be another than VM 3" in message
    assert xl.calls() == [] and xl.running.exists() and xl.device() == device


def during(xl, command, lines):
    """`lines` of shell run before xl does this."""
    (xl.directory / "xl").rename(xl.directory / "xl-itself")
    script(xl.directory / "xl", f"""\
        if test $1 = {command} -a "$2" != -n; then
            {lines}
        fi
        exec {xl.directory}/xl-itself "$@"
        """)


def test_a_number_that_became_another_vms_meanwhile_is_left_alone(host, xl):
    admin = f"{ADMIN} %s --config {host.config} --toolstack none"
    during(xl, "shutdown", f"{admin % 'remove-vm'} 7 --yes >&2; "
                           f"{admin % 'register-vm'} other --vm-id 7 >&2")
    message = failed(host)
    assert message == ("the database failed: VM 7 is another now: somebody changed it meanwhile. "
                       "All is as it was")
    assert host.vm("other")["vm_id"] == 7
    assert xl.running.exists() and "vm_id=7" in xl.device()


@pytest.mark.parametrize("number", ["INT", "TERM", "HUP"])
def test_interrupted_while_it_stops_the_guest_is_started_again(host, xl, number):
    before = everything(host, xl)
    during(xl, "shutdown", f"kill -{number} $PPID")
    assert failed(host) == "interrupted: all is as it was"
    assert everything(host, xl) == before
    assert xl.calls() == ["shutdown -w -F 3", f"create {xl.config}"]


def test_interrupted_while_it_starts_all_is_done(host, xl):
    during(xl, "create", "kill -TERM $PPID")
    assert host.json("set-vm-id", "7", "9", "--yes")["restarted"] is True
    assert host.vm("web1")["vm_id"] == 9 and xl.running.exists()


def test_a_guest_that_takes_too_long_may_still_shut_down(host, xl):
    during(xl, "shutdown", "exec sleep 60")
    message = failed(host, "--timeout", "1")
    assert message.endswith("All is as it was, but the guest was asked to shut down and may still "
                            "do so")
    assert host.vm("web1")["vm_id"] == 7 and xl.running.exists()


# --- each step fails ---------------------------------------------------------------------------


def failed(host, *words):
    done = host.run("set-vm-id", "7", "9", "--yes", "--json", *words)
    assert done.returncode == FAILED, done
    return re.search(r'"message": "(.*)"', done.stderr)[1]


def test_a_guest_that_does_not_stop_runs_on_as_it_was(host, xl):
    before = everything(host, xl)
    xl.fail("shutdown")
    message = failed(host)
    assert message.startswith("stopping it failed:") and message.endswith("All is as it was")
    assert everything(host, xl) == before
    assert xl.calls() == ["shutdown -w -F 3"]


def test_with_force_it_is_powered_off(host, xl):
    xl.fail("shutdown")
    host.good("set-vm-id", "7", "9", "--yes", "--force")
    assert xl.calls() == ["shutdown -w -F 3", "destroy 3", f"create {xl.config}"]


def test_a_definition_that_cannot_be_written_undoes_all(host, xl):
    before = everything(host, xl)
    xl.fail("vm-list", after=4)  # looked at before twice, by stop twice, and by publish
    message = failed(host)
    assert message.startswith("its definition failed:") and message.endswith("All is as it was")
    assert everything(host, xl) == before
    assert xl.calls() == ["shutdown -w -F 3", f"create {xl.config}"]


def test_a_directory_that_cannot_be_moved_undoes_all(host, xl):
    (host.share / "vm9").mkdir()
    before = everything(host, xl)
    message = failed(host)
    assert message.startswith("its directory failed: directory 'vm9' is in the share already")
    assert message.endswith("All is as it was")
    assert everything(host, xl) == before
    assert xl.calls() == ["shutdown -w -F 3", f"create {xl.config}"]


def test_an_export_that_cannot_be_told_undoes_all(host, xl):
    reload = host.directory / "reload"
    reload.write_text("#!/bin/sh\nexit 0\n")
    reload.chmod(0o755)
    host.configure(toolstack="xl", exports_kind="kernel", exports_dir=host.directory / "exports",
                   exports_reload=reload)
    host.good("update-vm", "7", "--address", "10.77.0.11")
    export = (host.directory / "exports/vgpu-vm7.exports").read_text()
    before = everything(host, xl)
    reload.write_text("#!/bin/sh\nexit 1\n")
    message = failed(host)
    assert message.startswith("its directory failed: the NFS server could not be told")
    assert everything(host, xl) == before
    assert (host.directory / "exports/vgpu-vm7.exports").read_text() == export
    assert [path.name for path in (host.directory / "exports").iterdir()] == ["vgpu-vm7.exports"]


def test_a_guest_that_does_not_start_undoes_all_and_is_started_again(host, xl):
    before = everything(host, xl)
    xl.fail("create")
    message = failed(host)
    assert message.startswith("starting it failed:") and message.endswith("All is as it was")
    assert everything(host, xl) == before
    assert xl.calls() == ["shutdown -w -F 3", f"create {xl.config}", f"create {xl.config}"]
    actions = [event["action"] for event in host.json("events")["events"]]
    assert actions[-2:] == ["set-vm-id", "set-vm-id"]  # there and back


def test_what_could_not_be_put_back_is_said(host, xl):
    xl.fail("create", times=2)
    message = failed(host)
    assert message.startswith("starting it failed:")
    assert "NOT all could be put back" in message and "create does not work today" in message
    assert host.vm("web1")["vm_id"] == 7 and "vm_id=7" in xl.device()
    assert (host.share / "vm7/left").exists()


def test_a_database_that_another_holds_undoes_all(host, xl):

    before = everything(host, xl)
    other = sqlite3.connect(host.database, isolation_level=None)
    try:
        other.execute("BEGIN IMMEDIATE")
        message = failed(host)
    finally:
        other.close()
    assert message.startswith("the database failed:") and message.endswith("All is as it was")
    assert everything(host, xl) == before
    assert xl.calls() == ["shutdown -w -F 3", f"create {xl.config}"]


# --- what xl would not start again -----------------------------------------------------------


def test_xl_is_asked_about_the_new_definition_before_the_guest_is_stopped(host, xl):
    host.good("set-vm-id", "7", "9", "--yes")
    assert "vm_id=9" in (xl.directory / "asked").read_text()
    [asked] = [line for line in xl.log.read_text().splitlines() if line.startswith("create -n ")]
    assert xl.log.read_text().index("create -n") < xl.log.read_text().index("shutdown")
    assert asked.startswith(f"create -n {xl.config}.vgpu-")
    assert [path.name for path in xl.configs.iterdir()] == ["web1.cfg"]


def test_a_guest_whose_new_definition_xl_refuses_is_not_stopped(host, xl):
    before = everything(host, xl)
    xl.fail("dry-run", times=4)
    for words in (["--yes"], []):  # nobody is asked about what cannot be
        message = host.bad(FAILED, "set-vm-id", "7", "9", *words)
        assert message.startswith("VM 7 would not start again as VM 9, so nothing was done: ")
        assert "dry-run does not work today" in message
    assert everything(host, xl) == before and xl.calls() == []
    assert [path.name for path in xl.configs.iterdir()] == ["web1.cfg"]


def test_a_guest_that_has_no_file_is_not_stopped(host, xl):
    xl.config.unlink()
    message = host.bad(FAILED, "set-vm-id", "7", "9", "--yes")
    assert f"has no configuration file in {xl.configs}" in message
    assert xl.running.exists() and xl.calls() == []


def test_xl_is_not_asked_about_a_guest_that_is_off(host, xl):
    xl.running.unlink()
    xl.fail("dry-run")
    host.good("set-vm-id", "7", "9", "--yes")


# --- killed ------------------------------------------------------------------------------------

POINTS = [f"renumber-{step}" for step in range(6)] + ["share-moved", "share-exported"]
COMMITTED = ["renumber-4", "renumber-5"]


def kill(host, point, *words):
    host.environment["VGPU_FAULT"] = f"{point}:1"
    assert host.run("set-vm-id", *words, "--yes").returncode == -signal.SIGKILL
    del host.environment["VGPU_FAULT"]


def make_directory_anew(host, number):
    """As a mediator that still knows this number."""
    directory = host.share / f"vm{number}"
    if not directory.exists():
        directory.mkdir()
        (directory / "request.txt").touch()
        (directory / "response.txt").write_text("0:Ready\n")


def export(host):
    host.configure(toolstack="xl", exports_kind="kernel", exports_dir=host.directory / "exports",
                   exports_reload="none")
    host.good("update-vm", "7", "--address", "10.77.0.11")


def assert_done(host, xl, number=9):
    assert host.vm("web1")["vm_id"] == number
    assert (host.share / f"vm{number}/left").read_text() == "by the guest"
    assert sorted(path.name for path in host.share.iterdir()) == [f"vm{number}"]
    assert f"vm_id={number}," in xl.device()
    assert xl.running.exists()
    [path] = (host.directory / "exports").iterdir()
    assert path.name == f"vgpu-vm{number}.exports" and "10.77.0.11(rw" in path.read_text()
    assert list(host.directory.glob("vgpu.db.renumber*")) == []


@pytest.mark.fault_points
@pytest.mark.parametrize("made_anew", [False, True], ids=["mediator-down", "mediator-up"])
@pytest.mark.parametrize("word", ["web1", "7"])
@pytest.mark.parametrize("point", POINTS)
def test_killed_after_any_step_the_same_command_gets_to_the_end(host, xl, point, word, made_anew):
    export(host)
    kill(host, point, word, "9")
    assert (host.vm("web1")["vm_id"] == 9) == (point in COMMITTED)
    if made_anew:
        make_directory_anew(host, 7)
    host.good("set-vm-id", word, "9", "--yes")
    assert_done(host, xl)


@pytest.mark.fault_points
@pytest.mark.parametrize("first", POINTS)
@pytest.mark.parametrize("second", ["renumber-2", "share-moved", "share-exported", "renumber-5"])
def test_killed_twice_the_same_command_gets_to_the_end(host, xl, first, second):
    export(host)
    kill(host, first, "7", "9")
    make_directory_anew(host, 7)
    if first not in COMMITTED:
        kill(host, second, "7", "9")
    elif second == "renumber-5":  # the one step that is left to be killed behind
        kill(host, second, "7", "9")
    make_directory_anew(host, 7)
    host.good("set-vm-id", "7", "9", "--yes")
    assert_done(host, xl)


@pytest.mark.fault_points
@pytest.mark.parametrize("point", POINTS)
def test_after_a_killed_call_another_number_can_be_had(host, xl, point):
    export(host)
    kill(host, point, "7", "9")
    make_directory_anew(host, 7)
    host.good("set-vm-id", "web1", "12", "--yes")
    assert_done(host, xl, 12)


@pytest.mark.fault_points
@pytest.mark.parametrize("point", [point for point in POINTS if point not in COMMITTED])
def test_after_a_killed_call_one_that_fails_puts_all_back(host, xl, point):
    export(host)
    before = everything(host, xl)
    exported = (host.directory / "exports/vgpu-vm7.exports").read_text()
    kill(host, point, "7", "9")
    make_directory_anew(host, 7)
    xl.fail("create")
    message = failed(host)
    assert message.startswith("starting it failed:") and message.endswith("All is as it was")
    assert everything(host, xl) == before
    [path] = (host.directory / "exports").iterdir()
    assert path.name == "vgpu-vm7.exports" and path.read_text() == exported
    assert list(host.directory.glob("vgpu.db.renumber*")) == []


@pytest.mark.fault_points
def test_what_is_left_after_a_killed_call_is_asked_about(host, xl):
    kill(host, "renumber-3", "7", "9")
    code, output = host.ask("no\n", "set-vm-id", "7", "9")
    assert code == DECLINED
    assert "It ran when an earlier call was interrupted: it is started again. Do it?" in output
    kill(host, "renumber-4", "7", "9")
    code, output = host.ask("yes\n", "set-vm-id", "7", "9")
    assert code == OK
    assert ("VM 7 (web1) became, by a call that was interrupted, VM 9. It ran when an earlier call "
            "was interrupted: it is started again. Finish it?") in output
    assert "VM 7 (web1) is VM 9 now, and runs again" in output


@pytest.mark.fault_points
def test_finishing_that_fails_can_be_tried_again(host, xl):
    kill(host, "renumber-4", "7", "9")
    xl.fail("create")
    message = failed(host)
    assert message.startswith("starting it failed:")
    assert message.endswith("It is VM 9 all the same; the same command does the rest")
    assert host.json("set-vm-id", "7", "9", "--yes")["restarted"] is True
    assert xl.running.exists()


@pytest.mark.fault_points
def test_a_killed_call_is_no_pretext_once_its_numbers_are_others(host, xl):
    kill(host, "renumber-3", "7", "9")
    host.good("register-vm", "web9", "--vm-id", "9")
    assert "number 9 is another VM's, web9" in host.bad(EXISTS, "set-vm-id", "7", "9", "--yes")
    host.good("set-vm-id", "9", "10", "--yes")
    kill(host, "renumber-4", "10", "11")
    host.good("register-vm", "web10", "--vm-id", "10")
    assert "number 11 is another VM's, web9" in host.bad(EXISTS, "set-vm-id", "10", "11", "--yes")
    host.good("set-vm-id", "web9", "11", "--yes")
    assert (host.share / "vm10").is_dir()


@pytest.mark.fault_points
def test_a_killed_call_takes_no_directory_that_is_not_its_own(host, xl):
    kill(host, "renumber-2", "7", "9")
    (host.share / "vm9").mkdir()
    (host.share / "vm9/other").touch()
    assert "directory 'vm9' is in the share already" in failed(host)
    assert (host.share / "vm7/left").exists() and (host.share / "vm9/other").exists()


def test_a_directory_of_the_new_number_is_not_taken_over_where_the_old_one_is_missing(host):
    (host.share / "vm7").rename(host.directory / "away")
    (host.share / "vm9").mkdir()
    assert "directory 'vm9' is in the share already" in failed(host)
    (host.share / "vm9").rmdir()
    host.good("set-vm-id", "7", "9", "--yes")
    assert (host.share / "vm9").is_dir()


@pytest.mark.fault_points
def test_killed_beside_a_mediator_that_makes_the_directory_anew(host):
    with Running(host) as mediator:
        kill(host, "renumber-3", "7", "9")
        mediator.wait((host.share / "vm7").exists, "makes no vm7")
        host.json("set-vm-id", "7", "9", "--yes")
        mediator.wait(lambda: not (host.share / "vm7").exists(), "makes vm7 again")
        assert (host.share / "vm9/left").read_text() == "by the guest"
        assert mediator.ask(9, "A:1:9:PING").startswith("1:")


# --- publishing -----------------------------------------------------------------------------------


def test_a_definition_follows_each_change_of_pool_and_priority(host, xl):
    host.good("set-pool", "7", "B")
    assert "pool_id=B" in xl.device()
    host.good("set-priority", "7", "high")
    assert re.search(r"priority=(high|2)\b", xl.device())
    assert xl.calls() == []


def test_a_definition_that_two_change_at_once_ends_as_the_registry(host, xl):
    for pool, priority in [("B", "high"), ("A", "low"), ("B", "medium")]:
        with concurrent.futures.ThreadPoolExecutor(2) as threads:
            done = list(threads.map(lambda words: host.run(*words),
                                    [("set-pool", "7", pool), ("set-priority", "7", priority)]))
        assert [one.returncode for one in done] == [OK, OK], done
        assert xl.device() == f"vgpu-stub,vm_id=7,pool_id={pool},priority={priority}"


@pytest.mark.parametrize("after", [0, 1], ids=["not-found-out", "not-written"])
def test_a_definition_that_cannot_follow_is_a_note(host, xl, after):
    xl.fail("vm-list", after=after)
    done = host.run("set-pool", "7", "B")
    assert done.returncode == OK and host.vm("7")["pool"] == "B"
    assert ("note: the definition of VM 7 keeps its old values: " in done.stderr
            and "vgpu-admin publish 7 tries again" in done.stderr)
    host.good("publish", "7")
    assert "pool_id=B" in xl.device()


def test_a_definition_of_another_vm_that_has_the_name_is_left_alone(host, xl):
    host.good("update-vm", "7", "--uuid", "none")
    host.good("set-vm-id", "7", "9", "--yes", "--toolstack", "none")
    before = xl.device()
    host.good("set-pool", "9", "B")
    assert xl.device() == before


def test_publish_writes_the_registered_values(host, xl):
    host.good("set-pool", "7", "B", "--toolstack", "none")
    assert "pool_id=A" in xl.device()
    assert host.good("publish", "web1") == (
        "VM 7 (web1): its definition has the registered values, from its next start on\n")
    assert "pool_id=B" in xl.device()
    assert host.json("publish", "web1")["toolstack"] == "xl"


def test_publish_all_tells_which_are_not_there(host, xl):
    host.good("register-vm", "web2", "--vm-id", "8")
    done = host.run("publish")
    assert done.returncode == FAILED
    assert "1 of 2 VMs could not be published" in done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["VM", "NAME", "PUBLISHED", "WHY", "NOT"]
    assert lines[1].split()[:3] == ["7", "web1", "yes"]
    assert lines[2].split()[:3] == ["8", "web2", "no"]
    host.good("remove-vm", "8")
    [row] = host.json("publish")
    assert row == {"vm_id": 7, "name": "web1", "published": "yes", "message": None}


def test_publish_needs_a_toolstack(host):
    assert "a toolstack is needed" in host.bad(NOT_RUNNING, "publish", "7")
    assert "'9' is registered" in host.bad(NOT_FOUND, "publish", "9")


def test_registering_takes_the_uuid_from_the_toolstack(place):
    host = Host(place)
    host.good("init")
    FakeXl(host)
    assert host.json("register-vm", "web1")["vm"]["uuid"] == UUID
    assert host.vm(UUID)["name"] == "web1"
    host.good("remove-vm", "web1")
    assert host.json("register-vm", UUID)["vm"]["name"] == "web1"
    assert host.json("register-vm", "nobody")["vm"]["uuid"] is None
