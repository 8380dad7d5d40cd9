# SPDX-License-Identifier: Apache-2.0
"""vgpu-client: device, command line, and one request with a mediator of a few lines."""

import json
import os
import signal
import stat
import threading

import pytest

import client_support as guests
import support

RESPONDING = ("--timeout", 20)  # an answer comes; only a failure takes so long
SILENT = ("--timeout", 0.4)     # nothing will come


@pytest.fixture
def guest(place):
    one = guests.Guest(place)
    yield one
    one.close()


@pytest.fixture
def bare_guest(place):
    """Without a device."""
    one = guests.Guest(place, device=False)
    yield one
    one.close()


# --- the device ------------------------------------------------------------------


def test_a_device_is_found_wherever_it_is_plugged_in(bare_guest):
    guests.add_device(bare_guest.sysfs, "0000:00:02.0", class_code=0x030000, vendor=0x1234)
    guests.add_device(bare_guest.sysfs, "0003:7f:1e.5", vm_id=7)
    device = bare_guest.run("--json", "info").json["devices"]
    assert [one["address"] for one in device] == ["0003:7f:1e.5"]


def test_info_shows_every_register_in_words(bare_guest):
    guests.add_device(bare_guest.sysfs, status=5, pool=ord("B"), priority=1, vm_id=4294967295,
                      version=0x10002, caps=3, window_lo=0, window_hi=1, error=5, irq_mask=3,
                      irq_status=0x80000002, doorbells=77, scratch=0xDEADBEEF)
    device, = bare_guest.run("--json", "info").json["devices"]
    words = {one["name"]: (one["offset"], one["value"], one["meaning"])
             for one in device["registers"]}
    assert words == {
        "status": (0x04, 5, "ready, resetting"),
        "pool_id": (0x08, 0x42, "pool B"),
        "priority": (0x0C, 1, "medium"),
        "vm_id": (0x10, 4294967295, "4294967295"),
        "magic": (0x14, guests.MAGIC, "VGPU"),
        "version": (0x18, 0x10002, "1.2"),
        "caps": (0x1C, 3, "window, MSI-X"),
        "window_lo": (0x20, 0, "window of 4294967296 bytes"),
        "window_hi": (0x24, 1, "window of 4294967296 bytes"),
        "error": (0x28, 5, "access not 32 bits wide and aligned, access beyond the last register"),
        "irq_mask": (0x2C, 3, "completion, configuration changed"),
        "irq_status": (0x30, 0x80000002, "configuration changed, unknown bits 0x80000000"),
        "doorbells": (0x34, 77, "77"),
        "scratch": (0x38, 0xDEADBEEF, "the guest's own"),
        "slots": (0x3C, 0, "0"),
    }


def test_info_says_which_channel_is_in_use_and_why(guest):
    done = guest.run("info")
    assert done.code == 0
    assert f"channel  file {guest.directory} (window not offered by this device)\n" in done.out
    assert "device   0000:00:04.0 vgpu-stub 1.0 (1af4:10f1, class 0x120000" in done.out
    assert "0x00c  priority    0x00000002  high\n" in done.out


def test_info_needs_no_share(guest):
    guest.directory.rmdir()
    guest.share.rmdir()
    assert guest.run("info").code == 0


def test_the_vendor_id_decides_nothing(bare_guest):
    guests.add_device(bare_guest.sysfs, "0000:00:03.0", class_code=0x020000)  # our id, a network card
    guests.add_device(bare_guest.sysfs, "0000:00:05.0", vendor=0x1F3C, device=1)
    device, = bare_guest.run("--json", "info").json["devices"]
    assert device["address"] == "0000:00:05.0"


def test_without_a_device_it_says_where_it_looked(bare_guest):
    done = bare_guest.run()
    assert done.code == 3
    assert f"{bare_guest.sysfs}/bus/pci/devices" in done.err
    assert "remedy" in done.err and "-device vgpu-stub" in done.err
    assert bare_guest.run("--json").json["error"]["code"] == "no-device"
    assert bare_guest.run("--json", "info").json["error"]["code"] == "no-device"


def test_without_sysfs_it_says_what_is_missing(place):
    done = support.subprocess.run([guests.CLIENT, "--sysfs", place / "none"], capture_output=True,
                                  text=True, check=False)
    assert done.returncode == 3
    assert f"{place}/none/bus/pci/devices: No such file" in done.stderr


@pytest.mark.parametrize("device, problem", [
    ({"magic": 0x12345678}, "magic (BAR0 offset 0x014) is 0x12345678"),
    ({"magic": 0xFFFFFFFF}, "does not respond"),
    ({"version": 2 << 16}, "register version is 2.0"),
    ({"bar_bytes": 65536}, "BAR0 has 65536 bytes"),
])
def test_a_device_of_the_class_that_is_not_ours_is_named(bare_guest, device, problem):
    guests.add_device(bare_guest.sysfs, "0000:00:06.0", **device)
    error = bare_guest.run("--json").json["error"]
    assert error["code"] == "no-device"
    assert "0000:00:06.0" in error["text"] and problem in error["text"]


def test_a_device_without_bar0_is_named(bare_guest):
    (guests.add_device(bare_guest.sysfs) / "resource0").unlink()
    assert "resource0" in bare_guest.run("--json").json["error"]["text"]


def test_a_foreign_accelerator_beside_ours_does_not_disturb(guest):
    guests.add_device(guest.sysfs, "0000:00:01.0", magic=0)
    device, = guest.run("--json", "info").json["devices"]
    assert device["address"] == "0000:00:04.0"
    assert guest.run("--json", "info").json["not_ours"][0]["address"] == "0000:00:01.0"


def test_a_newer_minor_version_is_ours(bare_guest):
    guests.add_device(bare_guest.sysfs, version=0x10009)
    assert bare_guest.run("info").code == 0


def test_memory_space_that_is_off_is_switched_on(bare_guest):
    path = guests.add_device(bare_guest.sysfs, memory_space=False)
    device, = bare_guest.run("--json", "info").json["devices"]
    assert device["memory_space"] == "switched on now"
    assert (path / "enable").read_text().startswith("1")


def test_a_foreign_device_is_never_switched_on(bare_guest):
    path = guests.add_device(bare_guest.sysfs, vendor=0x10DE, device=0x2330, memory_space=False,
                             magic=0)
    assert bare_guest.run("info").code == 3
    assert (path / "enable").read_text() == "0\n"


@pytest.mark.skipif(not guests.IS_ROOT, reason="needs root, to become another user")
def test_without_the_right_to_read_the_device_it_says_so(guest):
    (guest.sysfs / "bus/pci/devices/0000:00:04.0/resource0").chmod(0o600)
    error = guest.run_as_nobody("--json").json["error"]
    assert error["code"] == "device-access"
    assert "run as root" in error["remedy"]


@pytest.mark.parametrize("registers, name", [
    ({"pool": 0}, "pool_id"), ({"pool": 0x141}, "pool_id"), ({"priority": 3}, "priority"),
    ({"vm_id": 0}, "vm_id")])
def test_a_bad_value_in_a_register_is_refused(bare_guest, registers, name):
    guests.add_device(bare_guest.sysfs, **registers)
    done = bare_guest.run("--json").json
    assert done["exit_code"] == 3 and name in done["error"]["text"]


def test_several_devices_are_listed_and_one_is_asked_for(guest):
    guests.add_device(guest.sysfs, "0000:00:09.0", vm_id=7, pool=ord("B"))
    done = guest.run("--json").json
    assert done["exit_code"] == 2 and done["error"]["code"] == "several-devices"
    assert "0000:00:04.0 (pool A, vm 100)" in done["error"]["text"]
    assert "0000:00:09.0 (pool B, vm 7)" in done["error"]["text"]
    assert "--device" in done["error"]["remedy"]
    assert len(guest.run("--json", "info").json["devices"]) == 2


@pytest.mark.parametrize("address", ["0000:00:09.0", "00:09.0"])
def test_a_named_device_is_used(guest, address):
    guests.add_device(guest.sysfs, "0000:00:09.0", vm_id=7)
    (guest.share / "vm7").mkdir()
    with guests.FakeMediator(guest.share / "vm7") as mediator:
        assert guest.run("--device", address, *RESPONDING).code == 0
    assert mediator.lines == ["A:2:7:VECTOR_ADD"]


def test_a_named_device_that_is_not_there_or_not_ours_is_refused(guest):
    guests.add_device(guest.sysfs, "0000:00:02.0", class_code=0x030000)
    assert guest.run("--device", "0000:00:1f.0").code == 3
    done = guest.run("--device", "0000:00:02.0")
    assert done.code == 3 and "class is 0x030000" in done.err


# --- who asks ------------------------------------------------------------------------


def test_three_options_stand_in_for_the_device(bare_guest):
    (bare_guest.share / "vm9").mkdir()
    with guests.FakeMediator(bare_guest.share / "vm9") as mediator:
        done = bare_guest.run("--pool", "B", "--priority", "low", "--vm-id", 9, "--json",
                              *RESPONDING).json
    assert mediator.lines == ["B:0:9:VECTOR_ADD"]
    assert done["device"]["address"] is None and done["device"]["priority_name"] == "low"


@pytest.mark.parametrize("words, line", [
    (["--pool", "C"], "C:2:100:PING"), (["--priority", "medium"], "A:1:100:PING"),
    (["--priority", "0"], "A:0:100:PING")])
def test_an_option_claims_something_else_than_the_device(guest, words, line):
    with guests.FakeMediator(guest.directory) as mediator:
        assert guest.run(*words, *RESPONDING, "PING").code == 0
    assert mediator.lines == [line]


def test_dir_names_the_directory_itself(guest):
    (guest.place / "own").mkdir()
    with guests.FakeMediator(guest.place / "own"):
        done = guest.run("--dir", f"{guest.place}//own/./", "--json", *RESPONDING).json
    assert done["channel"]["directory"] == f"{guest.place}/own"


# --- the command line ----------------------------------------------------------------


@pytest.mark.parametrize("words, command", [
    ([], "VECTOR_ADD"), (["VECTOR_ADD", "3", "4"], "VECTOR_ADD 3 4"), (["3", "4"], "3:4"),
    (["3:4"], "3:4"), (["1"], "1"), (["VECTOR_ADD", "-3", "-4.5e1"], "VECTOR_ADD -3 -4.5e1"),
    (["3", "-4"], "3:-4"), (["--", "-3", "4"], "-3:4"), (["MATRIX_MUL", "128"], "MATRIX_MUL 128"),
    (["PING two words"], "PING two words"), (["x" * 255], "x" * 255)])
def test_words_become_a_command(guest, words, command):
    with guests.FakeMediator(guest.directory) as mediator:
        done = guest.run("--json", *RESPONDING, *words).json
    assert mediator.lines == [f"A:2:100:{command}"]
    assert done["request"] == f"A:2:100:{command}"


@pytest.mark.parametrize("words", [
    ["--bogus"], ["-x"], ["--timeout"], ["--timeout", "0"], ["--timeout", "-1"],
    ["--timeout", "1s"], ["--timeout", "inf"], ["--timeout", "86401"], ["--timeout", "1.2.3"],
    ["--timeout", "."], ["--timeout", "99999999999999999999"],
    ["--pool", "a"], ["--pool", "AB"], ["--pool", ""], ["--priority", "3"], ["--priority", "-1"],
    ["--priority", "urgent"], ["--vm-id", "0"], ["--vm-id", "4294967296"], ["--vm-id", "1x"],
    ["--share", ""], ["--dir", ""], ["--device", ""],
    [""], ["x" * 256], ["x" * 200, "y" * 55], ["PING\n"], ["PING\x01"], ["PING\x7f"], ["PING é"],
    ["info", "more"], ["doctor", "VECTOR_ADD"], ["--json=yes"],
    ["--dir", "/" + "d" * 4200]])
def test_a_usage_error_sends_nothing(guest, words):
    guest.request.write_text("")
    done = guest.run(*words)
    assert done.code == 2 and done.out == "" and "remedy" in done.err, done
    assert guest.text(guest.request) == "" and not guest.response.exists()
    if words != ["--json=yes"]:
        for order in (["--json", *words], ["--json", "--share", "x", *words]):
            assert guest.run(*order).json["error"]["code"] == "usage"


def test_json_is_understood_behind_a_usage_error(guest):
    assert guest.run("--pool", "a", "--json").json["error"]["code"] == "usage"


def test_help_usage_and_version_are_on_standard_output(guest):
    for word in ("--help", "-?", "--usage", "--version", "-V"):
        done = guest.run(word)
        assert done.code == 0 and "vgpu-client" in done.out and done.err == "", done
    assert "Exit status: 0 success" in guest.run("--help").out


# --- one request -----------------------------------------------------------------------


def test_success_prints_device_channel_request_and_answer(guest):
    with guests.FakeMediator(guest.directory, "1:Vector add PASSED"):
        done = guest.run(*RESPONDING)
    lines = done.out.splitlines()
    assert done.code == 0 and done.err == "", done
    assert lines[:3] == ["device   0000:00:04.0 vgpu-stub 1.0, pool A, priority high (2), vm 100",
                         f"channel  file {guest.directory} (window not offered by this device)",
                         "request  A:2:100:VECTOR_ADD"]
    assert lines[3].startswith("answer   1:Vector add PASSED (") and lines[3].endswith(" ms)")


def test_json_tells_the_same(guest):
    with guests.FakeMediator(guest.directory, "1:7"):
        done = guest.run("--json", *RESPONDING, "3", "4").json
    assert done["device"] == {"address": "0000:00:04.0", "version": "1.0", "pool": "A",
                              "priority": 2, "priority_name": "high", "vm_id": 100}
    assert done["channel"] == {"kind": "file", "directory": str(guest.directory),
                               "reason": "window not offered by this device"}
    assert done["answer"]["status"] == "1" and done["answer"]["message"] == "7"
    assert 0 <= done["answer"]["taken_milliseconds"] <= done["answer"]["milliseconds"]
    assert "error" not in done


def test_an_error_answer_is_exit_1(guest):
    with guests.FakeMediator(guest.directory, "2:unknown command 'X'"):
        done = guest.run(*RESPONDING, "X")
        told = guest.run("--json", *RESPONDING, "X").json
    assert done.code == 1 and "answer   2:unknown command 'X' (" in done.out
    assert told["error"]["code"] == "error-answer" and told["answer"]["status"] == "2"


@pytest.mark.parametrize("answer", ["3:what", "nonsense", "1", ":"])
def test_an_answer_that_is_none_is_exit_1(guest, answer):
    with guests.FakeMediator(guest.directory, answer):
        done = guest.run("--json", *RESPONDING).json
        plain = guest.run(*RESPONDING)
    assert done["exit_code"] == 1 and done["error"]["code"] == "bad-answer"
    assert plain.code == 1 and "expected `1:" in plain.err


def test_quiet_prints_the_answer_alone(guest):
    with guests.FakeMediator(guest.directory, "1:7"):
        done = guest.run("--quiet", *RESPONDING, "3", "4")
    assert (done.code, done.out, done.err) == (0, "7\n", "")
    with guests.FakeMediator(guest.directory, "2:no"):
        done = guest.run("-q", *RESPONDING)
    assert done.code == 1 and done.out == "" and "no" in done.err


def test_verbose_tells_each_step_on_standard_error(guest):
    with guests.FakeMediator(guest.directory, "1:7"):
        done = guest.run("--verbose", *RESPONDING)
    assert done.code == 0
    for word in ("look at", "write the request", "sent", "taken"):
        assert word in done.err
    assert "write the request" not in done.out


def test_output_that_cannot_be_written_is_an_error(guest):
    with guests.FakeMediator(guest.directory, "1:7"), open("/dev/full", "w") as full:
        done = support.subprocess.run(guest.command(*RESPONDING), stdout=full, check=False,
                                      stderr=support.subprocess.PIPE, text=True)
    assert done.returncode == 70 and "standard output" in done.stderr


def test_an_answer_cannot_speak_to_the_terminal(guest):
    answer = b"1:\x1b[2Jred\xff\xc2\x9b \xe2\x80\xa6\n"
    with guests.FakeMediator(guest.directory, lambda line: answer):
        done = guest.run(*RESPONDING)
        told = guest.run("--json", *RESPONDING).json
    assert "answer   1:\\x1b[2Jred\\xff\\xc2\\x9b …" in done.out
    assert told["answer"]["message"] == "\\x1b[2Jred\\xff\\xc2\\x9b …"


def test_an_answer_of_the_greatest_length_arrives_whole(guest):
    answer = "1:" + "x" * 1000
    with guests.FakeMediator(guest.directory, answer):
        assert guest.run("--json", *RESPONDING).json["answer"]["message"] == "x" * 1000


def test_an_answer_may_end_in_carriage_return_and_newline(guest):
    with guests.FakeMediator(guest.directory, lambda line: b"1:dos\r\n"):
        assert guest.run("--json", *RESPONDING).json["answer"]["message"] == "dos"


# --- what counts as the answer ----------------------------------------------------------


def test_an_old_answer_is_not_ours(guest):
    guest.response.write_text("1:of yesterday, and longer than the ready line\n")
    with guests.FakeMediator(guest.directory, "1:of today", resets=False) as mediator:
        done = guest.run("--quiet", *RESPONDING)
    assert done.out == "of today\n"
    assert mediator.response_at_accept == ["0:Ready\n"]


def test_an_answer_to_an_earlier_request_that_comes_late_is_not_ours(guest):
    """It is written after our 0:Ready, and before our request is taken."""
    gate = threading.Event()
    with guests.FakeMediator(guest.directory, "1:ours", gate=gate):
        process = guest.start("--quiet", *RESPONDING)
        guest.wait_sent()
        guest.response.write_text("1:of another\n")
        with pytest.raises(support.subprocess.TimeoutExpired):
            process.wait(0.3)
        gate.set()
        assert guest.end(process).out == "ours\n"


@pytest.mark.parametrize("half", [b"1:ha", b"1", b"", b"\0\0\0\0\n", b"1:\0\0\0\0\n", b"\n"])
def test_half_an_answer_is_not_yet_one(guest, half):
    """A network file system may show a length before the bytes."""
    seen = threading.Event()

    def answer(line):
        guest.response.write_bytes(half)
        timer = threading.Timer(0.15, lambda: guest.response.write_bytes(b"1:whole\n"))
        timer.start()
        seen.set()

    with guests.FakeMediator(guest.directory, answer):
        done = guest.run("--quiet", *RESPONDING)
    assert seen.is_set() and done.out == "whole\n"


def test_ready_after_taking_is_no_answer(guest):
    with guests.FakeMediator(guest.directory, "0:Ready"):
        assert guest.run(*SILENT).code == 5


def test_an_earlier_unread_request_is_not_overwritten(guest):
    guest.request.write_text("A:2:100:SOMEONE_ELSES\n")
    gate = threading.Event()
    with guests.FakeMediator(guest.directory, lambda line: "1:" + line, gate=gate) as mediator:
        process = guest.start("--quiet", "--verbose", *RESPONDING, "PING")
        assert "earlier request" in "".join(process.stderr.readline() for _ in range(3))
        gate.set()
        done = guest.end(process)
    assert mediator.lines == ["A:2:100:SOMEONE_ELSES", "A:2:100:PING"]
    assert done.out == "A:2:100:PING\n"


def test_an_earlier_unread_request_stays_when_the_time_is_up(guest):
    guest.request.write_text("A:2:100:SOMEONE_ELSES\n")
    error = guest.run("--json", *SILENT).json["error"]
    assert error["code"] == "timeout-not-taken" and "an earlier request" in error["text"]
    assert "nothing was sent" in error["text"]
    assert guest.text(guest.request) == "A:2:100:SOMEONE_ELSES\n"


# --- how the request is written -----------------------------------------------------------


def test_a_request_comes_by_rename(guest):
    guest.request.write_text("")
    before = guest.request.stat().st_ino
    with guests.FakeMediator(guest.directory):
        assert guest.run(*RESPONDING).code == 0
    assert guest.request.stat().st_ino != before
    assert not guest.temporary.exists()


def test_in_place_keeps_the_file(guest):
    guest.request.write_text("\n\n\n")
    before = guest.request.stat().st_ino
    mediator = guests.FakeMediator(guest.directory)
    mediator.take = lambda line, take=mediator.take: take(line) if line.strip() else None
    with mediator:
        assert guest.run("--in-place", *RESPONDING).code == 0
    assert guest.request.stat().st_ino == before
    assert mediator.lines == ["A:2:100:VECTOR_ADD"]


@pytest.mark.parametrize("way", [[], ["--in-place"]])
def test_files_get_the_mode_of_the_directory_whatever_the_umask(guest, way):
    guest.directory.chmod(0o2770)
    with guests.FakeMediator(guest.directory):
        done = guest.run(*way, *RESPONDING, preexec_fn=lambda: os.umask(0o077))
    assert done.code == 0
    for path in (guest.request, guest.response):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660


@pytest.mark.skipif(not guests.IS_ROOT, reason="needs root, to change a group")
def test_a_replaced_file_keeps_its_mode_and_group(guest):
    guest.request.write_text("")
    guest.request.chmod(0o640)
    os.chown(guest.request, -1, 12345)
    with guests.FakeMediator(guest.directory):
        assert guest.run(*RESPONDING).code == 0
    info = guest.request.stat()
    assert (stat.S_IMODE(info.st_mode), info.st_gid) == (0o640, 12345)


def test_a_leftover_of_a_killed_client_is_no_hindrance(guest):
    guest.temporary.write_text("A:2:100:a long leftover of a client that was killed\n")
    with guests.FakeMediator(guest.directory) as mediator:
        assert guest.run(*RESPONDING).code == 0
    assert mediator.lines == ["A:2:100:VECTOR_ADD"]


# --- timeouts --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [[], ["--in-place"]])
def test_a_request_that_nobody_takes_is_withdrawn(guest, way):
    done = guest.run("--json", *way, *SILENT).json
    assert done["exit_code"] == 5 and done["error"]["code"] == "timeout-not-taken"
    assert "withdrawn" in done["error"]["text"] and "vgpu-mediator" in done["error"]["remedy"]
    assert guest.text(guest.request) == "" and not guest.temporary.exists()


def test_a_request_that_was_taken_is_told_so(guest):
    with guests.FakeMediator(guest.directory, None):
        done = guest.run("--json", *SILENT).json
    assert done["exit_code"] == 5 and done["error"]["code"] == "timeout-no-answer"
    assert "queued or running" in done["error"]["text"]


def test_what_another_wrote_is_not_withdrawn(guest):
    process = guest.start(*SILENT)
    guest.wait_sent()
    guest.request.write_text("A:2:100:SOMEONE_ELSES\n")
    assert guest.end(process).code == 5
    assert guest.text(guest.request) == "A:2:100:SOMEONE_ELSES\n"


def test_a_timeout_may_have_decimals_and_be_tiny(guest):
    for timeout in ["0.001", ".05"]:
        done = guest.run("--timeout", timeout)
        assert done.code == 5
        # On a busy machine there may be no time left to take the request back:
        # then it says so.
        if guest.text(guest.request) != "":
            assert "may still stand" in done.err or "not known" in done.err
            guest.request.write_text("")


# --- signals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_withdraws_the_request(guest, number):
    process = guest.start("--json")
    guest.wait_sent()
    process.send_signal(number)
    done = guest.end(process).json
    assert done["exit_code"] == 128 + number and done["error"]["code"] == "interrupted"
    assert "withdrawn" in done["error"]["text"]
    assert guest.text(guest.request) == ""


def test_a_signal_to_the_whole_group_withdraws_the_request(guest):
    """As the terminal's Ctrl-C does."""
    process = guest.start(start_new_session=True)
    guest.wait_sent()
    os.killpg(process.pid, signal.SIGINT)
    assert guest.end(process).code == 130
    assert guest.text(guest.request) == ""


def test_a_signal_after_taking_says_that_it_runs(guest):
    with guests.FakeMediator(guest.directory, None) as mediator:
        process = guest.start("--json")
        support.wait_until(lambda: mediator.lines and not guest.text(guest.request), "taking")
        support.wait_until(lambda: guest.text(guest.response) == "0:Ready\n", "ready")
        process.send_signal(signal.SIGTERM)
        done = guest.end(process).json
    assert done["exit_code"] == 143 and "took the request" in done["error"]["text"]


def test_an_ignored_hangup_stays_ignored(guest):
    gate = threading.Event()
    with guests.FakeMediator(guest.directory, gate=gate):
        process = guest.start(*RESPONDING, preexec_fn=guests.ignore_hangup)
        guest.wait_sent()
        process.send_signal(signal.SIGHUP)
        gate.set()
        assert guest.end(process).code == 0


def test_a_killed_client_leaves_no_request_behind(guest):
    process = guest.start()
    guest.wait_sent()
    process.kill()
    process.communicate()
    support.wait_until(lambda: guest.text(guest.request) == "", "withdrawal by the child")
    support.wait_until(lambda: not guest.processes_left(), "the child's end")
    # Its lock file is the next one's, which removes it.
    with guests.FakeMediator(guest.directory):
        assert guest.run(*RESPONDING).code == 0


# --- several clients ----------------------------------------------------------------------------


def test_two_clients_at_once_get_their_own_answers(guest):
    gate = threading.Event()
    with guests.FakeMediator(guest.directory, lambda line: "1:" + line.split(":")[-1],
                             gate=gate) as mediator:
        first = guest.start("--quiet", *RESPONDING, "PING first")
        guest.wait_sent()
        second = guest.start(*RESPONDING, "PING second")
        assert "waiting for another vgpu-client" in second.stderr.readline()
        assert mediator.lines == []
        gate.set()
        assert guest.end(first).out == "PING first\n"
        assert "answer   1:PING second" in guest.end(second).out
    assert mediator.lines == ["A:2:100:PING first", "A:2:100:PING second"]


def test_eight_clients_at_once_get_their_own_answers(guest):
    with guests.FakeMediator(guest.directory, lambda line: "1:" + line.split(":")[-1]) as mediator:
        clients = [guest.start("--quiet", *RESPONDING, f"PING {i}") for i in range(8)]
        assert [guest.end(one).out for one in clients] == [f"PING {i}\n" for i in range(8)]
    assert sorted(mediator.lines) == [f"A:2:100:PING {i}" for i in range(8)]


def test_waiting_for_another_client_has_an_end(guest):
    first = guest.start()
    guest.wait_sent()
    done = guest.run("--json", *SILENT).json
    assert done["exit_code"] == 5 and done["error"]["code"] == "timeout-busy"
    assert "nothing was sent" in done["error"]["text"]
    first.send_signal(signal.SIGTERM)
    guest.end(first)


def test_a_signal_ends_waiting_for_another_client(guest):
    first = guest.start()
    guest.wait_sent()
    second = guest.start("PING")
    assert "waiting" in second.stderr.readline()
    second.send_signal(signal.SIGINT)
    assert guest.end(second).code == 130
    assert guest.text(guest.request) == "A:2:100:VECTOR_ADD\n"
    first.send_signal(signal.SIGTERM)
    guest.end(first)


def test_clients_of_two_directories_do_not_wait_for_each_other(guest):
    first = guest.start()
    guest.wait_sent()
    (guest.place / "own").mkdir()
    with guests.FakeMediator(guest.place / "own"):
        assert guest.run("--dir", guest.place / "own", *RESPONDING).code == 0
    first.send_signal(signal.SIGTERM)
    guest.end(first)


def test_the_lock_is_the_same_however_the_directory_is_written(guest):
    first = guest.start()
    guest.wait_sent()
    done = guest.run("--json", "--dir", f"{guest.share}/./vm100//", *SILENT).json
    assert done["error"]["code"] == "timeout-busy"
    first.send_signal(signal.SIGTERM)
    guest.end(first)


def test_no_lock_file_stays(guest):
    process = guest.start("--json")
    guest.wait_sent()
    busy = guest.run("--json", *SILENT).json["error"]["text"]
    path = support.pathlib.Path(busy.split("(lock ")[1].split(")")[0])
    assert path.exists()
    process.send_signal(signal.SIGTERM)
    guest.end(process)
    assert not path.exists()


# --- with the real mediator, and the binary itself ------------------------------------------------


@pytest.mark.parametrize("way", [[], ["--in-place"]])
def test_the_real_mediator_answers(mediator, place, way):
    host = mediator({100: ("A", 2)})
    (place / "guest").mkdir()
    guest = guests.Guest(place / "guest", vm_directory=False)
    asks = ["--share", host.share, "--quiet", *RESPONDING, *way]
    assert "7" in guest.run(*asks, "3", "4").out
    assert "PASSED" in guest.run(*asks).out
    done = guest.run(*asks, "NONSENSE")
    assert done.code == 1 and "VECTOR_ADD" in done.err
    assert guest.run("--vm-id", 101, *asks).code == 4
    guest.close()


@pytest.mark.skipif(not guests.is_static(guests.CLIENT), reason="built without static_client")
def test_the_static_binary_needs_no_other_file(guest):
    """It runs where there is nothing else: in an empty root."""
    if not guests.IS_ROOT:
        pytest.skip("needs root, to change the root directory")
    support.shutil.copy(guests.CLIENT, guest.place / "vgpu-client")
    done = support.subprocess.run(["chroot", guest.place, "/vgpu-client", "--sysfs", "/sys",
                                   "--json", "info"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and json.loads(done.stdout)["devices"]
