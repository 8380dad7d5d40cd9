# SPDX-License-Identifier: Apache-2.0
"""vgpu-client and the window: which channel it takes and why, requests, bench, doctor.

The window is that of a process on the host, through a VM's socket; in a real
guest, through the module, it is tried by tests/vm.
"""

import contextlib
import os
import re
import signal
import subprocess

import pytest

import client_support as guests
import support
from support import wait_until

VMS = {1: ("A", 2), 2: ("B", 0)}


@pytest.fixture
def bare_guest(place):
    """Without a device."""
    one = guests.Guest(place, device=False)
    yield one
    one.close()


def socket_of(m, vm_id=1):
    return m.state / "run" / f"vm{vm_id}.sock"


def start(*words, env=None):
    return subprocess.Popen([guests.CLIENT, *map(str, words)], text=True,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, env={**os.environ, **(env or {})})


def run(*words, **options):
    return guests.Guest.end(start(*words, **options))


# --- which channel ------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    ["--share", "/nowhere"], ["--dir", "/nowhere/vm1"], ["--in-place"], ["--pool", "A"],
    ["--priority", "1"], ["--vm-id", "1"]], ids=lambda options: options[0])
def test_an_option_that_is_about_files_chooses_files(mediator, place, options):
    guests.add_device(place, caps=3)
    m = mediator(VMS)
    done = run("--json", "--sysfs", place, "--timeout", 0.3, *options, "PING",
               env={"VGPU_SOCKET": str(socket_of(m))}).json
    assert done["channel"]["kind"] == "file"
    assert done["channel"]["reason"] == f"{options[0]} was given"


def test_without_the_module_files_are_used_and_the_reason_is_told(bare_guest):
    guests.add_device(bare_guest.sysfs, caps=3)
    done = support.subprocess.run([guests.CLIENT, "--sysfs", bare_guest.sysfs, "info"],
                                  capture_output=True, text=True, check=False)
    assert re.search(r"^channel  file /mnt/vgpu/vm100 \(no window: /dev/vgpu0: there is no such "
                     r"device", done.stdout, re.MULTILINE), done.stdout


def test_channel_window_fails_where_there_is_none():
    done = run("--json", "--channel", "window", "PING")
    assert done.code == 3 and done.json["error"]["code"] == "window-missing"
    assert "vgpu_guest.ko" in done.json["error"]["text"]


def test_channel_file_takes_files_although_a_socket_is_named(mediator):
    m = mediator(VMS)
    done = run("--json", "--channel", "file", "--share", m.share, "--vm-id", 1, "--pool", "A",
               "--priority", 2, "PING", env={"VGPU_SOCKET": str(socket_of(m))}).json
    assert done["channel"]["kind"] == "file" and done["answer"]["message"] == "PONG"


def test_channel_window_goes_before_an_option_about_files(mediator):
    m = mediator(VMS)
    done = run("--json", "--channel", "window", "--socket", socket_of(m), "--share", m.share,
               "PING").json
    assert done["channel"]["kind"] == "window"


@pytest.mark.parametrize("word, expected", [
    (["--channel", "both"], "auto, window or file"), (["--mode", "fast"], "poll, sleep"),
    (["--depth", "0"], "from 1 to 512"), (["--depth", "513"], "from 1 to 512"),
    (["--seconds", "0"], "seconds from"), (["--socket", ""], "empty"), (["bench", "now"], "bench")])
def test_wrong_values_are_refused_with_what_was_expected(word, expected):
    done = run("--json", *word)
    assert done.code == 2 and expected in done.json["error"]["text"]


# --- requests ----------------------------------------------------------------------------


def test_a_request_goes_through_the_window_and_says_so(mediator):
    m = mediator(VMS)
    done = run("--socket", socket_of(m), "3", "4")
    assert done.code == 0, done
    assert re.fullmatch(
        rf"session  slot 0 of {socket_of(m)}, pool A, priority high \(2\), vm 1\n"
        r"channel  window of 16.0 MiB, socket, cached \(--socket was given\)\n"
        r"request  3:4\n"
        r"answer   1:3 \+ 4 = 7 \(\d+\.\d{3} ms\)\n", done.out)


def test_the_environment_names_a_socket_too(mediator):
    m = mediator(VMS)
    done = run("--json", "PING x", env={"VGPU_SOCKET": str(socket_of(m, 2))}).json
    assert done["answer"]["message"] == "PONG x" and done["device"]["vm_id"] == 2
    assert done["channel"] == {
        "kind": "window", "transport": "socket", "path": str(socket_of(m, 2)), "slot": 0,
        "slot_bytes": (16 << 20) - 4096, "generation": 1, "cached": True,
        "reason": "VGPU_SOCKET names it"}


@pytest.mark.parametrize("command", ["VECTOR_ADD", "MATRIX_MUL 16", "GPU_INFO", "PING a b",
                                     "TEST_IT", "1", "2", "3:4", "FROBNICATE", "SPIN x"])
def test_both_channels_give_the_same_answer(mediator, command):
    m = mediator(VMS)
    by_file = run("--json", "--share", m.share, "--vm-id", 1, "--pool", "A", "--priority", 2,
                  command)
    by_window = run("--json", "--socket", socket_of(m), command)
    assert by_window.code == by_file.code
    for key in ("status", "message"):
        said = [re.sub(r"\d+ us", "N us", done.json["answer"][key])
                for done in (by_window, by_file)]
        assert said[0] == said[1]


def test_quiet_prints_the_answers_text_only(mediator):
    m = mediator(VMS)
    assert run("--quiet", "--socket", socket_of(m), "PING").out == "PONG\n"
    done = run("-q", "--socket", socket_of(m), "FROBNICATE")
    assert (done.code, done.out) == (1, "") and "VECTOR_ADD" in done.err


def test_a_request_that_takes_too_long_ends_with_the_timeout(mediator):
    m = mediator(VMS)
    done = run("--json", "--timeout", 0.2, "--socket", socket_of(m), "SPIN 60000")
    assert done.code == 5 and done.json["error"]["code"] == "timeout-no-answer"
    assert run("--socket", socket_of(m), "PING").code == 0


def test_without_a_mediator_it_says_where_it_looked(tmp_path):
    done = run("--json", "--socket", tmp_path / "vm1.sock", "PING")
    assert done.code == 3 and done.json["error"]["code"] == "window-no-host"
    assert str(tmp_path / "vm1.sock") in done.json["error"]["text"]


def test_a_mediator_that_hangs_does_not_hang_it(mediator):
    m = mediator(VMS)
    m.pause()
    try:
        done = run("--json", "--timeout", 0.3, "--socket", socket_of(m), "PING")
    finally:
        m.process.send_signal(signal.SIGCONT)
    assert done.code == 3 and done.json["error"]["code"] == "window-no-host"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_another_user_is_told_that_the_socket_is_not_theirs(mediator):
    m = mediator(VMS)
    for path in (m.directory, m.state, m.state / "run"):
        path.chmod(0o755)
    program = m.directory / "vgpu-client"
    program.write_bytes(guests.CLIENT.read_bytes())
    program.chmod(0o755)
    done = subprocess.run(["setpriv", "--reuid", str(guests.NOBODY), "--regid",
                           str(guests.NOBODY), "--clear-groups", program, "--json", "--socket",
                           socket_of(m), "PING"], capture_output=True, text=True, check=False)
    result = guests.Result(done.returncode, done.stdout, done.stderr)
    assert result.code == 3 and result.json["error"]["code"] == "window-denied"
    assert "owner" in result.json["error"]["text"]


def test_all_sessions_taken_is_told(mediator):
    m = mediator(VMS, sessions_max=1)
    busy = start("--socket", socket_of(m), "SPIN 60000")
    try:
        m.wait_event("link", vm=1)
        wait_until(lambda: run("--json", "--socket", socket_of(m), "PING").code == 3,
                   "a refusal")
        done = run("--json", "--socket", socket_of(m), "PING")
        assert done.json["error"]["code"] == "window-busy"
        assert "1 session" in done.json["error"]["text"]
    finally:
        busy.kill()
        busy.communicate()


def test_a_worker_that_dies_ends_the_request_and_not_the_next(mediator):
    m = mediator(VMS, log_level="debug")
    process = start("--json", "--socket", socket_of(m), "SPIN 60000")
    os.kill(m.wait_event("process", vm=1)["worker_pid"], signal.SIGKILL)
    done = guests.Guest.end(process)
    assert done.code == 1 and done.json["error"]["code"] == "window-status"
    assert "device lost" in done.json["error"]["text"]
    assert run("--socket", socket_of(m), "PING").code == 0


def test_ctrl_c_ends_the_request_and_its_session(mediator):
    m = mediator(VMS, log_level="debug")
    process = start("--socket", socket_of(m), "SPIN 60000")
    pid = m.wait_event("process", vm=1)["worker_pid"]
    process.send_signal(signal.SIGINT)
    assert guests.Guest.end(process).code == -signal.SIGINT
    wait_until(lambda: not support.is_worker(pid), "the end of its worker")


# --- info, doctor, bench --------------------------------------------------------------------


def test_info_tells_the_session(mediator):
    m = mediator(VMS)
    done = run("--json", "--socket", socket_of(m), "info").json
    assert done["channel"]["kind"] == "window" and done["devices"] == []
    assert "pool A, priority high (2), vm 1" in run("--socket", socket_of(m), "info").out


def test_info_tells_the_state_of_each_slot(bare_guest):
    device = guests.add_device(bare_guest.sysfs, caps=3)
    with open(device / "resource0", "r+b") as bar:
        for offset, value in ((0x3C, 3), (0x80, 2), (0x88, 6 | 16 << 8)):
            bar.seek(offset)
            bar.write(value.to_bytes(4, "little"))
    registers = bare_guest.run("--json", "info").json["devices"][0]["registers"]
    words = {one["name"]: one["meaning"] for one in registers if one["name"].startswith("slot ")}
    assert words == {"slot 0": "in use", "slot 1": "free",
                     "slot 2": "refused: Device or resource busy"}


def test_doctor_finds_a_good_window_good(mediator):
    m = mediator(VMS)
    done = run("--json", "--socket", socket_of(m), "doctor")
    assert {one["name"]: one["status"] for one in done.json["checks"]} == {
        "session": "pass", "answer": "pass"}


def test_doctor_names_what_the_window_lacks(bare_guest):
    guests.add_device(bare_guest.sysfs, caps=3)
    done = guests.Guest.end(start("--json", "--sysfs", bare_guest.sysfs, "--channel", "window",
                                  "doctor"))
    checks = {one["name"]: one for one in done.json["checks"]}
    assert done.code == 3
    assert checks["window"]["status"] == "pass" and checks["session"]["status"] == "fail"
    if not os.path.exists("/sys/module/vgpu_guest"):
        assert checks["module"]["status"] == "fail"
        assert "modprobe" in checks["module"]["remedy"]


def test_doctor_warns_only_where_files_can_take_over(bare_guest):
    guests.add_device(bare_guest.sysfs)
    done = run("--json", "--sysfs", bare_guest.sysfs, "--timeout", 0.5, "doctor")
    checks = {one["name"]: one for one in done.json["checks"]}
    assert checks["window"]["status"] == "warn" and "memdev" in checks["window"]["remedy"]


def test_doctor_tells_that_nobody_listens(tmp_path):
    done = run("--json", "--socket", tmp_path / "vm1.sock", "doctor")
    check, = done.json["checks"]
    assert done.code == 3 and check["status"] == "fail" and "systemctl" in check["remedy"]


@pytest.mark.skipif(os.path.exists("/dev/xen"), reason="this is a Xen domain")
@pytest.mark.parametrize("device", [False, True])
def test_doctor_names_what_a_xen_guest_lacks(bare_guest, device):
    if device:
        guests.add_device(bare_guest.sysfs)  # without a window
    hypervisor = bare_guest.sysfs / "hypervisor"
    hypervisor.mkdir(parents=True)
    (hypervisor / "type").write_text("xen\n")
    (hypervisor / "uuid").write_text("5f7c0c2e-9d2a-4c39-8a52-0d1f2b3c4d5e\n")
    done = run("--json", "--sysfs", bare_guest.sysfs, "--channel", "window", "doctor")
    checks = {one["name"]: one for one in done.json["checks"]}
    assert done.code == 3 and checks["xen"]["status"] == "fail"
    assert "/dev/xen/xenbus" in checks["xen"]["text"] and "modprobe" in checks["xen"]["remedy"]
    assert checks["session"]["status"] == "fail"
    assert "vgpu-xen" in checks["session"]["remedy"]
    assert "UUID 5f7c0c2e-9d2a-4c39-8a52-0d1f2b3c4d5e" in checks["session"]["remedy"]


def test_doctor_says_nothing_of_xen_elsewhere(bare_guest):
    done = run("--json", "--sysfs", bare_guest.sysfs, "--channel", "window", "doctor")
    assert not any(one["name"] == "xen" or "vgpu-xen" in one["remedy"]
                   for one in done.json["checks"])


def test_bench_measures_everything_it_names(mediator):
    m = mediator(VMS)
    done = run("--json", "--socket", socket_of(m), "--seconds", 0.02, "bench").json
    for key in ("ping_poll_p50_us", "ping_poll_p99_us", "ping_poll_p999_us", "ping_sleep_p50_us",
                "ping_sleep_p99_us", "ping_sleep_p999_us", "pings_per_s", "copy_gbps",
                "copy_out_gbps", "copy_other_gbps", "copy_other_out_gbps", "memcpy_gbps"):
        assert done[key] > 0, key
    assert done["idle_cpu_pct"] >= 0
    assert done["ping_poll_p50_us"] <= done["ping_poll_p99_us"] <= done["ping_poll_p999_us"]
    assert "file_pings_per_s" not in done and done["not_measured"]


def test_bench_measures_the_share_too(mediator):
    m = mediator(VMS)
    done = run("--json", "--share", m.share, "--vm-id", 1, "--pool", "A", "--priority", 2,
               "--seconds", 0.05, "bench").json
    assert done["file_pings_per_s"] > 0 and done["memcpy_gbps"] > 0
    assert "pings_per_s" not in done and done["not_measured"] == "--share was given"


@pytest.mark.parametrize("mode, keys", [
    ("poll", {"ping_poll_p50_us", "ping_poll_p99_us", "ping_poll_p999_us"}),
    ("batch", {"pings_per_s"}), ("memcpy", {"memcpy_gbps"}), ("idle", {"idle_cpu_pct"})])
def test_bench_of_one_mode_measures_that_alone(mediator, mode, keys):
    m = mediator(VMS)
    done = run("--json", "--socket", socket_of(m), "--seconds", 0.02, "--mode", mode, "--depth",
               3, "bench").json
    assert {key for key in done if key.endswith(("_us", "_s", "_gbps", "_pct"))} == keys


def test_bench_prints_a_table(mediator):
    m = mediator(VMS)
    done = run("--socket", socket_of(m), "--seconds", 0.02, "--mode", "batch", "bench")
    assert re.search(r"^pings in batches, a second +\d+\.\d\d$", done.out, re.MULTILINE), done


@contextlib.contextmanager
def idle(m, seconds=3600):
    """A bench that idles for so long: (itself, its worker)."""
    process = start("--json", "--socket", socket_of(m), "--mode", "idle", "--seconds", seconds,
                    "bench")
    try:
        worker = m.wait_event("process", vm=1)["worker_pid"]
        wait_until(lambda: m.begun(1) > 0, "its one operation")
        yield process, worker
    finally:
        process.kill()
        process.communicate()


def test_bench_that_idles_ends_when_its_worker_does(mediator):
    m = mediator(VMS, log_level="debug")
    with idle(m) as (process, worker):
        os.kill(worker, signal.SIGKILL)
        done = guests.Guest.end(process)
    assert done.code == 1 and done.json["error"]["code"] == "window-status"
    assert "device lost" in done.json["error"]["text"] and "idle_cpu_pct" not in done.json


def test_bench_that_idles_ends_when_its_session_does(mediator):
    m = mediator(VMS, log_level="debug")
    with idle(m) as (process, _):
        m.allow_error("cannot open directory")
        del m.vms[1]
        m.read_again()
        done = guests.Guest.end(process)
    assert done.code == 3 and done.json["error"]["code"] == "window-ended"
    assert "idle_cpu_pct" not in done.json


def test_bench_that_idles_goes_on_while_the_mediator_is_started_anew(mediator):
    m = mediator(VMS, log_level="debug")
    with idle(m, seconds=5) as (process, _):
        m.stop_but_keep_workers()
        m.start()
        done = guests.Guest.end(process)
    assert done.code == 0 and done.json["idle_cpu_pct"] >= 0


def test_bench_of_the_window_fails_where_there_is_none(tmp_path):
    done = run("--json", "--dir", tmp_path, "--mode", "poll", "bench")
    assert done.code == 3 and done.json["error"]["code"] == "window-missing"
    assert "--dir was given" in done.json["error"]["text"]
