# SPDX-License-Identifier: Apache-2.0
"""vgpu-client doctor: each check can pass, and each can fail with its remedy."""

import errno
import os
import signal
import subprocess

import pytest

import client_support as guests
import support

QUICK = ("--timeout", 0.5)
PATIENT = ("--timeout", 20)


@pytest.fixture
def guest(place):
    one = guests.Guest(place)
    one.request.write_text("")
    one.response.write_text("0:Ready\n")
    yield one
    one.close()


@pytest.fixture(scope="module")
def shim():
    with support.directory() as path:
        yield guests.build_shim(path)


def examine(guest, *words, **options):
    done = guest.run("--json", *words, "doctor", **options)
    checks = {one["name"]: one for one in done.json["checks"]}
    for one in checks.values():
        assert one["text"] and (one["remedy"] or one["status"] == "pass"), one
    return done, checks


def statuses(checks):
    return {name: one["status"] for name, one in checks.items()}


def test_a_healthy_guest_passes(guest):
    with guests.FakeMediator(guest.directory, "1:pong") as mediator:
        done, checks = examine(guest, *PATIENT)
    # A local directory in place of a mount is worth a warning.
    assert statuses(checks) == {
        "device": "pass", "magic": "pass", "memory space": "pass", "registers": "pass",
        "share mounted": "warn", "vm directory": "pass", "permissions": "pass",
        "request file": "pass", "response file": "pass", "writable": "pass", "clock": "pass",
        "mediator": "pass"}
    assert done.code == 0 and "pong" in checks["mediator"]["text"]
    assert mediator.lines == ["A:2:100:PING"]


def test_the_real_mediator_passes(mediator, place):
    host = mediator({100: ("A", 2)})
    (place / "guest").mkdir()
    guest = guests.Guest(place / "guest", vm_directory=False)
    assert guest.run("--share", host.share, *PATIENT, "PING").code == 0
    # Right after a request, whose answer still stands there.
    done = guest.run("--share", host.share, *PATIENT, "doctor")
    assert done.code == 0 and "pass  mediator       answered PING" in done.out, done
    guest.close()


def test_it_leaves_no_file_behind(guest):
    before = sorted(os.listdir(guest.directory))
    with guests.FakeMediator(guest.directory):
        examine(guest, *PATIENT)
    assert sorted(os.listdir(guest.directory)) == before


def test_text_has_one_line_a_check_and_remedies(guest):
    guest.directory.chmod(0o777)
    done = guest.run(*QUICK, "doctor")
    assert "pass  device         0000:00:04.0" in done.out
    assert "warn  permissions    " in done.out and "chmod o-rwx" in done.out
    assert "fail  mediator       " in done.out and "systemctl status vgpu-mediator" in done.out
    assert done.out.endswith(" 1 failed\n")
    quiet = guest.run(*QUICK, "--quiet", "doctor")
    assert "pass  " not in quiet.out and "fail  mediator" in quiet.out


def test_a_mediator_that_does_not_run_is_exit_5(guest):
    done, checks = examine(guest, *QUICK)
    assert done.code == 5 and checks["mediator"]["status"] == "fail"
    assert guest.text(guest.request) == ""


def test_a_mediator_that_refuses_is_exit_1(guest):
    with guests.FakeMediator(guest.directory, "2:vm100 is not registered"):
        done, checks = examine(guest, *PATIENT)
    assert done.code == 1 and "not registered" in checks["mediator"]["text"]


def test_no_device_is_exit_3(place):
    guest = guests.Guest(place, device=False)
    done, checks = examine(guest, *QUICK)
    assert done.code == 3 and checks["device"]["status"] == "fail"
    assert "--vm-id" in checks["share"]["remedy"]


def test_without_a_device_the_share_is_looked_at_when_named(place):
    guest = guests.Guest(place, device=False)
    done, checks = examine(guest, *QUICK, "--vm-id", 100)
    assert done.code == 3 and checks["writable"]["status"] == "pass"
    assert checks["mediator"]["status"] == "warn"


def test_with_three_options_no_device_is_missed(guest):
    with guests.FakeMediator(guest.directory):
        done, checks = examine(guest, *PATIENT, "--pool", "A", "--priority", 2, "--vm-id", 100)
    assert done.code == 0 and checks["device"]["status"] == "warn"


def test_memory_space_that_was_off_is_told(place):
    guest = guests.Guest(place, device=False)
    guests.add_device(guest.sysfs, memory_space=False)
    _, checks = examine(guest, *QUICK)
    assert "switched on" in checks["memory space"]["text"]


@pytest.mark.skipif(not guests.IS_ROOT, reason="needs root, to become another user")
def test_memory_space_that_cannot_be_switched_on_is_a_failure(place):
    guest = guests.Guest(place, device=False)
    guests.add_device(guest.sysfs, memory_space=False)
    done = guest.run_as_nobody("--json", "doctor")
    device, = [one for one in done.json["checks"] if one["name"] == "device"]
    assert done.code == 3 and "echo 1 >" in device["remedy"]


def test_registers_that_are_not_valid_yet_are_a_warning(place):
    guest = guests.Guest(place, device=False)
    guests.add_device(guest.sysfs, status=4)
    assert examine(guest, *QUICK)[1]["registers"]["status"] == "warn"


@pytest.mark.parametrize("registers", [{"pool": 0}, {"priority": 9}, {"vm_id": 0}])
def test_bad_registers_are_a_failure(place, registers):
    guest = guests.Guest(place, device=False)
    guests.add_device(guest.sysfs, **registers)
    done, checks = examine(guest, *QUICK)
    assert done.code == 3 and checks["registers"]["status"] == "fail"


def test_a_missing_share_is_exit_4(guest):
    done, checks = examine(guest, *QUICK, "--share", guest.place / "none")
    assert done.code == 4 and "mount" in checks["vm directory"]["remedy"]
    assert checks["mediator"]["status"] == "warn"


@pytest.mark.skipif(not guests.IS_ROOT, reason="needs root, to become another user")
def test_a_directory_without_our_permission_is_a_failure(guest):
    guest.directory.chmod(0o555)
    done = guest.run_as_nobody("--json", "doctor")
    checks = {one["name"]: one["status"] for one in done.json["checks"]}
    assert done.code == 4 and checks["permissions"] == "fail" and checks["writable"] == "fail"


@pytest.mark.parametrize("name, check", [("request.txt", "request file"),
                                         ("response.txt", "response file")])
def test_a_fifo_in_place_of_a_file_is_a_failure(guest, name, check):
    (guest.directory / name).unlink()
    os.mkfifo(guest.directory / name)
    done, checks = examine(guest, *QUICK)
    assert done.code == 4 and checks[check]["status"] == "fail"


def test_missing_files_are_a_warning(guest):
    guest.request.unlink()
    guest.response.unlink()
    _, checks = examine(guest, *QUICK)
    assert checks["request file"]["status"] == checks["response file"]["status"] == "warn"


def test_a_share_that_cannot_be_written_is_a_failure(guest, shim):
    # The name of the probe ends in the child's number.
    rules = [f"fsync,{digit},{errno.ENOSPC},1" for digit in range(10)]
    done, checks = examine(guest, *QUICK, shim=shim, rules=rules)
    assert checks["writable"]["status"] == "fail" and done.code == 4
    assert "room" in checks["writable"]["remedy"]


@pytest.mark.parametrize("seconds, word", [(100, "behind"), (-100, "ahead")])
def test_a_clock_that_is_wrong_is_a_warning(guest, shim, seconds, word):
    with guests.FakeMediator(guest.directory):
        done, checks = examine(guest, *PATIENT, shim=shim,
                               env={"VGPU_SHIM_CLOCK_S": str(seconds)})
    assert done.code == 0 and checks["clock"]["status"] == "warn"
    assert f"100.0 s {word}" in checks["clock"]["text"]


@pytest.mark.parametrize("place_of_fault, check", [
    ("stat,vm100", "vm directory"), ("open,request.txt", "request file"),
    ("read,response.txt", "response file")])
def test_a_share_that_hangs_is_a_failure_of_the_check_that_hung(guest, shim, place_of_fault,
                                                                check):
    done, checks = examine(guest, *QUICK, shim=shim, rules=[f"{place_of_fault},hang,1"])
    assert done.code == 5 and checks[check]["status"] == "fail"
    assert "did not respond" in checks[check]["text"]
    assert checks["mediator"]["status"] == "warn"


def test_a_read_only_mount_is_a_failure(guest):
    script = (f"mount -t tmpfs none {guest.share} && mkdir {guest.directory} && "
              f"mount -o remount,ro {guest.share} && exec \"$@\"")
    wrapper = ["unshare", "--mount", "sh", "-c", script, "sh"]
    if subprocess.run([*wrapper, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount")
    done = subprocess.run([*wrapper, *guest.command("--json", *QUICK, "doctor")],
                          capture_output=True, text=True, check=False)
    checks = {one["name"]: one for one in guests.Result(done.returncode, done.stdout,
                                                        done.stderr).json["checks"]}
    assert done.returncode == 4 and checks["share mounted"]["status"] == "fail"
    assert "tmpfs" in checks["share mounted"]["text"]


def test_a_request_that_waits_is_not_disturbed(guest):
    guest.request.write_text("A:2:100:SOMEONE_ELSES\n")
    done, checks = examine(guest, *QUICK)
    assert done.code == 0 and checks["mediator"]["status"] == "warn"
    assert "not asked" in checks["mediator"]["text"]
    assert guest.text(guest.request) == "A:2:100:SOMEONE_ELSES\n"


def test_a_fresh_answer_of_another_is_not_disturbed(guest):
    guest.response.write_text("1:for someone else\n")
    _, checks = examine(guest, *QUICK)
    assert "not asked" in checks["mediator"]["text"]
    assert guest.text(guest.response) == "1:for someone else\n"


def test_an_old_answer_is_no_hindrance(guest):
    guest.response.write_text("1:for someone who never came\n")
    guests.age(guest.response, 60)
    with guests.FakeMediator(guest.directory, "1:pong"):
        _, checks = examine(guest, *PATIENT)
    assert checks["mediator"]["status"] == "pass"


def test_another_client_at_work_is_not_disturbed(guest):
    with guests.FakeMediator(guest.directory, None) as mediator:
        process = guest.start()
        support.wait_until(lambda: mediator.lines, "a request")
        _, checks = examine(guest, *QUICK)
        assert checks["mediator"]["status"] == "warn"
        assert "another vgpu-client" in checks["mediator"]["text"]
        process.send_signal(signal.SIGTERM)
        guest.end(process)
    assert mediator.lines == ["A:2:100:VECTOR_ADD"]


def test_a_signal_ends_it(guest):
    process = guest.start("--timeout", 30, "doctor")
    support.wait_until(lambda: "PING" in guest.text(guest.request), "the PING")
    process.send_signal(signal.SIGINT)
    assert guest.end(process).code == 130
    assert guest.text(guest.request) == ""
