# SPDX-License-Identifier: Apache-2.0
"""What the mediator counts and times, and how it is told: Prometheus' text on sockets,
`stats` on the control socket, `vgpu-admin stats`; dashboard and alert rules know it."""

import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import stat
import subprocess
import time
import urllib.request

import pytest
from control_support import ADMIN, Failed, admin, control, make_registered
from metrics_support import UnixHttp, page, samples, socket_path, text_of, told
from support import REPOSITORY, WAIT_S, both_channels, wait_until
from window_peer import OP_PING

LOW, MEDIUM, HIGH = 0, 1, 2
NOT_FOUND = 3
GUIDE = REPOSITORY / "docs/monitoring.md"
SOURCE = REPOSITORY / "src/mediator/exposition.c"
RULES = REPOSITORY / "integrations/prometheus"
DASHBOARD = REPOSITORY / "integrations/grafana/vgpu-mediator.json"

pytestmark = pytest.mark.threads


def families(text):
    return {name: kind for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)}


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


# --- what is told ----------------------------------------------------------------------------


@both_channels
def test_operations_are_counted_by_vm_and_by_pool_and_priority(mediator):
    m = mediator({1: ("A", LOW), 2: ("B", HIGH)}, {"A": "cpu", "B": "cpu"})
    for _ in range(5):
        assert m.vm(1).ask("PING") == "1:PONG"
    assert m.vm(2).ask("PING") == "1:PONG"
    got = samples(text_of(m))
    assert got["vgpu_vm_operations_total", (("vm", "1"),)] == 5
    assert got["vgpu_vm_operations_total", (("vm", "2"),)] == 1
    low = (("pool", "A"), ("priority", "low"))
    assert got["vgpu_operations_total", low] == 5
    for name in ["vgpu_queue_wait_seconds", "vgpu_run_seconds", "vgpu_turn_seconds"]:
        assert got[name + "_count", low] == 5
        assert got[name + "_bucket", (("le", "+Inf"), *low)] == 5
        assert got[name.replace("vgpu_", "vgpu_vm_") + "_count", (("vm", "1"),)] == 5
    assert got["vgpu_turn_seconds_sum", low] >= got["vgpu_run_seconds_sum", low] > 0
    quantile = [got["vgpu_vm_turn_seconds", (("quantile", q), ("vm", "1"))]
                for q in ["0.5", "0.95", "0.99", "0.999", "1"]]
    assert quantile == sorted(quantile) and quantile[0] > 0
    assert got["vgpu_pool_vms", (("pool", "B"), ("priority", "high"))] == 1


def test_the_text_passes_promtools_check(mediator):
    m = mediator({1: ("A", LOW), 2: ("B", HIGH), 3: ("A", LOW)}, {"A": "cpu", "B": "cpu"},
                 metrics_vms=2)
    for vm_id in [1, 2, 3]:
        assert m.vm(vm_id).ask("PING") == "1:PONG"
    done = subprocess.run(["promtool", "check", "metrics"], input=text_of(m), text=True,
                          capture_output=True, timeout=WAIT_S, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_window_that_keeps_a_long_grant_is_counted_while_it_has_it(mediator):
    m = mediator({1: ("A", LOW)}, channel="window", grant_ops=4096)
    for count in [1, 2, 3]:
        assert m.vm(1).ask("PING") == "1:PONG"
        assert told(m, "vgpu_vm_operations_total", vm="1") == count
        assert told(m, "vgpu_vm_run_seconds_count", vm="1") == count
        assert told(m, "vgpu_turn_seconds_count", pool="A", priority="low") == count
    assert told(m, "vgpu_vm_queue_wait_seconds_count", vm="1") == 1
    assert told(m, "vgpu_vm_running", vm="1") == 1


def test_how_long_operations_take_is_told_of_a_vm_that_is_alone(mediator):
    m = mediator({1: ("A", LOW)}, channel="window", grant_ops=4096)
    assert m.vm(1).ask("SPIN 50").startswith("1:")
    for name in ["vgpu_vm_run_seconds", "vgpu_vm_turn_seconds"]:
        assert told(m, name, vm="1", quantile="1") > 0.048


# At the end of a session's memory: time throttled, 2 x 528 counts, their sum, 1024 entries.
ENTRIES_BYTES, COUNTS_BYTES = 1024 * 24, 2 * 528 * 4


def forge(m, vm_id, before_the_end, data):
    [path] = (m.state / "run/sessions").glob(f"vm{vm_id}-*.session")
    with open(path, "r+b") as file:
        file.seek(-before_the_end, os.SEEK_END)
        file.write(data)


def test_what_no_worker_can_have_done_is_not_counted(mediator):
    m = mediator({1: ("A", LOW)}, channel="window", grant_ops=4096)
    assert m.vm(1).ask("PING") == "1:PONG"
    forge(m, 1, ENTRIES_BYTES + 8 + COUNTS_BYTES, b"\xff" * COUNTS_BYTES)
    forge(m, 1, ENTRIES_BYTES + 8, b"\xff" * 4)
    forge(m, 1, ENTRIES_BYTES + 8 + COUNTS_BYTES + 8, b"\xff" * 7 + b"\x7f")
    text_of(m)
    assert told(m, "vgpu_vm_run_seconds_count", vm="1") <= 1
    uptime_s = time.time() - told(m, "vgpu_start_time_seconds")
    assert 0 < told(m, "vgpu_vm_throttled_seconds_total", vm="1") <= uptime_s + 1
    assert m.vm(1).ask("PING") == "1:PONG"
    assert told(m, "vgpu_vm_run_seconds_count", vm="1") <= 2


def test_time_for_which_limits_keep_work_waiting_is_counted(mediator):
    m = make_registered(mediator, {1: ("A", LOW)}, channel="window")
    assert m.vm(1).ask("PING") == "1:PONG"
    assert told(m, "vgpu_vm_throttled_seconds_total", vm="1") == 0
    admin(m, "set-limit", 1, "--device-share", 10)
    for _ in range(3):
        assert m.vm(1).ask("SPIN 20").startswith("1:")
    assert told(m, "vgpu_vm_throttled_seconds_total", vm="1") > 0
    assert told(m, "vgpu_throttled_seconds_total", pool="A", priority="low") > 0


def test_what_is_refused_is_counted_with_its_reason(mediator):
    m = make_registered(mediator, {1: ("A", LOW), 2: ("B", LOW)})
    m.vm(1).ask_raw(b"no request at all\n")
    assert told(m, "vgpu_refusals_total", pool="A", reason="malformed") == 1
    admin(m, "quarantine", 1, "--reason", "too loud")
    assert m.vm(1).ask("PING").startswith("2:")
    admin(m, "update-pool", "B", "--enabled", "no")
    assert m.vm(2).ask("PING").startswith("2:")
    assert told(m, "vgpu_refusals_total", pool="A", reason="quarantined") == 1
    assert told(m, "vgpu_refusals_total", pool="B", reason="pool") == 1
    assert told(m, "vgpu_vm_refusals_total", vm="1") == 2
    assert told(m, "vgpu_vm_info", vm="1", state="quarantined", name="vm1") == 1
    assert told(m, "vgpu_pool_enabled", pool="B") == 0


@both_channels
def test_a_worker_that_dies_at_work_is_counted(mediator):
    m = mediator({1: ("A", LOW)})
    m.release(m.occupy(1))
    assert m.vm(1).wait_answer().startswith(m.killed_answer())
    wait_until(lambda: told(m, "vgpu_vm_worker_restarts_total", vm="1") == 1, "a worker that died")
    assert told(m, "vgpu_worker_restarts_total", pool="A", priority="low") == 1
    assert told(m, "vgpu_faults_total", pool="A", priority="low", kind="worker") == 1


def test_quarantines_that_begin_by_themselves_are_counted(mediator):
    m = mediator({1: ("A", LOW)}, operation_limit_ms=100, quarantine_faults=2)
    for _ in range(2):
        assert m.vm(1).ask("SPIN 60000").startswith("2:")
    wait_until(lambda: told(m, "vgpu_quarantines_total", pool="A") == 1, "the quarantine")
    assert told(m, "vgpu_vm_info", vm="1", state="quarantined") == 1
    assert m.vm(1).ask("PING").startswith("2:")
    wait_until(lambda: told(m, "vgpu_refusals_total", pool="A", reason="quarantined") == 1,
               "the refusal")


@both_channels
def test_an_operation_that_is_ended_for_its_time_is_counted(mediator):
    m = mediator({1: ("A", LOW)}, operation_limit_ms=100)
    assert m.vm(1).ask("SPIN 60000").startswith("2:")
    assert told(m, "vgpu_vm_faults_total", vm="1") == 1
    assert told(m, "vgpu_faults_total", pool="A", priority="low", kind="time_limit") == 1


def test_what_a_change_of_vm_costs_is_timed_where_the_next_one_waited(mediator, peer):
    m = mediator({1: ("A", LOW), 2: ("A", LOW), 3: ("A", LOW)}, {"A": "cpu"}, grant_ops=1)
    window = peer(m, 2).open(0)

    def switches():
        return told(m, "vgpu_device_switch_seconds_count", device="cpu")

    def device():
        with control(m) as c:
            return c.call("queue")["devices"][0]

    assert m.vm(1).ask("PING") == "1:PONG"
    wait_until(lambda: device()["running"] is None, "the device to be idle")
    pid = m.occupy(3)
    assert switches() == 0  # nobody waited
    m.queue(1)
    window.submit(OP_PING)
    wait_until(lambda: len(device()["waiting"]) == 2, "both to wait")
    m.release(pid)
    assert m.vm(1).wait_answer() == "1:PONG 1"
    window.wait()
    wait_until(lambda: switches() == 2, lambda: f"two changes, not {switches()}")
    assert 0 < told(m, "vgpu_device_switch_seconds_sum", device="cpu") < WAIT_S


def test_a_device_tells_how_busy_it_is_and_who_takes_turns(mediator):
    m = mediator({1: ("A", LOW), 2: ("A", LOW)}, {"A": "cpu"})
    before = told(m, "vgpu_device_switches_total", device="cpu")
    for vm_id in [1, 2, 1]:
        assert m.vm(vm_id).ask("SPIN 20").startswith("1:")
    assert told(m, "vgpu_device_switches_total", device="cpu") - before == 2
    assert told(m, "vgpu_device_busy_seconds_total", device="cpu") >= 0.06
    assert told(m, "vgpu_vm_device_time_seconds_total", vm="1") >= 0.04
    assert told(m, "vgpu_device_usable", device="cpu") == 1
    assert 0 <= told(m, "vgpu_device_utilization_ratio", device="cpu") <= 1


def test_what_waits_is_told(mediator):
    m = mediator({1: ("A", LOW), 2: ("A", LOW), 9: ("A", HIGH)}, {"A": "cpu"})
    pid = m.occupy(9)
    m.queue(1, 2)
    assert told(m, "vgpu_pool_waiting", pool="A") == 2
    assert told(m, "vgpu_vm_queue_depth", vm="1") == 1
    assert told(m, "vgpu_vm_running", vm="9") == 1
    m.release(pid)


def test_a_name_with_quotes_is_escaped(mediator):
    m = make_registered(mediator, {1: ("A", LOW)})
    admin(m, "update-vm", 1, "--name", 'a "b" \\ c')
    assert told(m, "vgpu_vm_info", vm="1", name=r'a \"b\" \\ c') == 1


# --- bounds -------------------------------------------------------------------------------------


def test_vms_beyond_the_bound_are_told_together(mediator):
    m = mediator({vm_id: ("A", LOW) for vm_id in range(1, 6)}, metrics_vms=2)
    for vm_id in range(1, 6):
        assert m.vm(vm_id).ask("PING") == "1:PONG"
    got = samples(text_of(m))
    per_vm = {dict(pairs)["vm"]: value for (name, pairs), value in got.items()
              if name == "vgpu_vm_operations_total"}
    assert len(per_vm) == 3 and per_vm["other"] == 3 and sum(per_vm.values()) == 5
    assert got["vgpu_vm_turn_seconds_count", (("vm", "other"),)] == 3
    assert ("vgpu_vm_info", (("vm", "other"),)) not in got
    with control(m) as c:  # all of them by name
        assert [vm["operations"] for vm in c.call("stats")["vms"]] == [1] * 5


def test_no_counter_falls_when_vms_come_and_go(mediator):
    m = make_registered(mediator, {1: ("A", LOW), 2: ("A", LOW), 3: ("A", LOW)}, metrics_vms=1)
    for vm_id in [1, 2, 3]:
        assert m.vm(vm_id).ask("PING") == "1:PONG"
    assert told(m, "vgpu_vm_operations_total", vm="other") == 2
    m.allow_error("cannot open directory")  # it goes before the mediator is told
    for vm_id in [1, 2]:
        admin(m, "remove-vm", vm_id, "--yes")
    wait_until(lambda: told(m, "vgpu_vm_operations_total", vm="1") is None, "VM 1 is gone")
    assert told(m, "vgpu_vm_operations_total", vm="other") == 2
    assert told(m, "vgpu_operations_total", pool="A", priority="low") == 3
    admin(m, "register-vm", "new", "--vm-id", 4, "--pool", "A")  # it takes the free place
    assert told(m, "vgpu_vm_operations_total", vm="4") == 0
    assert told(m, "vgpu_vm_operations_total", vm="3") is None


def test_with_no_label_at_all_the_sums_are_told(mediator):
    m = mediator({1: ("A", LOW), 2: ("A", LOW)}, metrics_vms=0)
    assert m.vm(1).ask("PING") == "1:PONG"
    assert told(m, "vgpu_vm_operations_total", vm="other") == 1
    assert told(m, "vgpu_pool_vms", pool="A", priority="low") == 2


# --- who may ask, and how -------------------------------------------------------------------------


def test_the_socket_is_for_administrators_and_goes_with_the_mediator(mediator):
    m = mediator()
    mode = socket_path(m).stat()
    assert stat.S_ISSOCK(mode.st_mode) and stat.S_IMODE(mode.st_mode) in (0o600, 0o660)
    m.stop()
    assert not socket_path(m).exists()


def test_a_mediator_that_follows_one_that_was_killed_has_the_socket(mediator):
    m = mediator()
    m.kill()
    assert socket_path(m).exists()
    m.start()
    assert told(m, "vgpu_ready") == 1


def test_other_pages_and_methods_are_refused(mediator_of_module):
    m = mediator_of_module
    assert page(m, "/")[0] == 200
    assert page(m, "/else")[0] == 404
    assert page(m, "/metrics", "POST")[0] == 405
    status, text = page(m, "/metrics", "HEAD")
    assert (status, text) == (200, "")


def test_the_port_is_on_loopback_only(mediator):
    port = free_port()
    m = mediator(metrics_port=port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=WAIT_S) as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert b"vgpu_ready 1\n" in answer.read()
    addresses = set()
    for table in ["tcp", "tcp6"]:
        path = pathlib.Path(f"/proc/{m.process.pid}/net/{table}")
        for line in path.read_text().splitlines()[1:] if path.exists() else []:
            words = line.split()
            if words[1].endswith(f":{port:04X}") and words[3] == "0A":
                addresses.add(words[1].split(":")[0])
    assert addresses <= {"0100007F", "00000000000000000000000001000000"} and "0100007F" in addresses


def test_no_port_is_the_default(mediator_of_module):
    pid = mediator_of_module.process.pid
    inodes = {match[1] for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir()
              if (match := re.match(r"socket:\[(\d+)\]", os.readlink(fd)))}
    table = pathlib.Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    assert not [line for line in table if line.split()[9] in inodes]


def test_a_port_in_use_is_a_warning_and_vms_are_served(mediator):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        m = mediator(metrics_port=port)
    m.wait_message(f"metrics_port = {port}: cannot listen at 127.0.0.1")
    assert m.vm(1).ask("PING") == "1:PONG"
    assert told(m, "vgpu_ready") == 1


def test_hostile_clients_hold_up_no_vm(mediator):
    m = mediator()
    with contextlib.ExitStack() as stack:
        for kind in range(40):
            one = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError, OSError):
                one.connect(str(socket_path(m)))
                one.send([b"", b"GET /met", b"\0" * 5000, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
                          b"GET /" + b"x" * 60000][kind % 5])
        for _ in range(3):
            assert m.vm(1).ask("PING") == "1:PONG"
    assert told(m, "vgpu_vm_operations_total", vm="1") == 3


def test_many_may_ask_while_vms_work(mediator):
    m = mediator({1: ("A", LOW)})
    askers = [UnixHttp(socket_path(m)) for _ in range(12)]
    for asker in askers:
        asker.request("GET", "/metrics")
    assert m.vm(1).ask("PING") == "1:PONG"
    for asker in askers:
        answer = asker.getresponse()
        assert answer.status == 200 and b"vgpu_ready 1\n" in answer.read()
        asker.close()


def test_a_mediator_can_be_stopped_while_somebody_asks(mediator):
    m = mediator({vm_id: ("A", LOW) for vm_id in range(1, 200)})
    m.pause()
    asker = UnixHttp(socket_path(m))
    asker.request("GET", "/metrics")
    m.process.send_signal(signal.SIGTERM)
    m.process.send_signal(signal.SIGCONT)
    assert m.wait() == 0
    asker.close()


# --- the control socket, vgpu-admin ------------------------------------------------------------------


@both_channels
def test_stats_on_the_control_socket(mediator):
    m = mediator({1: ("A", LOW), 2: ("B", HIGH)}, {"A": "cpu", "B": "cpu"})
    for _ in range(4):
        assert m.vm(1).ask("PING") == "1:PONG"
    with control(m) as c:
        stats = c.call("stats")
        one = c.call("stats", vm_id=1)
        of_pool = c.call("stats", pool="B")
        with pytest.raises(Failed) as failure:
            c.call("stats", vm_id=99)
        assert failure.value.code == "no-such-vm"
        with pytest.raises(Failed) as failure:
            c.call("stats", pool="Q")
        assert failure.value.code == "no-such-pool"
        with pytest.raises(Failed) as failure:
            c.call("stats", pool="ab")
        assert failure.value.code == "bad-argument"
    vm, idle = sorted(stats["vms"], key=lambda vm: vm["vm_id"])
    assert (vm["vm_id"], vm["operations"], vm["refusals"]) == (1, 4, {})
    wait = vm["last_minute"]["wait"]
    assert wait == vm["since_start"]["wait"] and wait["count"] == 4
    assert 0 < wait["p50_us"] <= wait["p95_us"] <= wait["p99_us"] <= wait["p999_us"] <= wait["max_us"]
    assert idle["since_start"] == {"wait": None, "run": None, "total": None}
    group, = stats["pools"]
    assert (group["pool"], group["priority"], group["operations"]) == ("A", LOW, 4)
    assert [vm["vm_id"] for vm in one["vms"]] == [1]
    assert [vm["vm_id"] for vm in of_pool["vms"]] == [2] and of_pool["pools"] == []
    assert stats["devices"][0]["name"] == "cpu" and stats["vms_left_out"] == 0


def test_stats_tells_the_vms_first_that_used_most(mediator):
    m = mediator({1: ("A", LOW), 2: ("A", LOW), 3: ("A", LOW)})
    assert m.vm(3).ask("SPIN 30").startswith("1:") and m.vm(2).ask("SPIN 10").startswith("1:")
    with control(m) as c:
        assert [vm["vm_id"] for vm in c.call("stats")["vms"]] == [3, 2, 1]


def test_vgpu_admin_shows_the_same(mediator):
    m = make_registered(mediator, {1: ("A", LOW), 2: ("B", HIGH)})
    for _ in range(3):
        assert m.vm(2).ask("PING") == "1:PONG"
    text = admin(m, "stats")
    assert re.search(r"^POOL +PRIORITY +DONE ", text, re.MULTILINE)
    assert re.search(r"^B +high +3 ", text, re.MULTILINE)
    assert re.search(r"^ *2 +vm2 +B +high +3 ", text, re.MULTILINE)
    assert re.search(r"^cpu +", text, re.MULTILINE)
    assert "vm1" not in admin(m, "stats", "--vm", "vm2") and "vm2" not in admin(m, "stats", "--vm", 1)
    assert "vm1" not in admin(m, "stats", "--pool", "B")
    assert "vm2" in admin(m, "stats", "--pool", "Pool B")
    with control(m) as c:
        told_json = json.loads(admin(m, "stats", "--json"))
        asked = c.call("stats")
        recent = c.vm(2)["grant"]  # what status and top show
    assert told_json["pools"] == asked["pools"] and told_json["vms"] == asked["vms"]
    shown = next(vm for vm in asked["vms"] if vm["vm_id"] == 2)["last_minute"]["wait"]
    assert recent == {key: shown[key] for key in ["count", "p50_us", "p99_us"]}


def test_vgpu_admin_says_what_it_does_not_find(mediator):
    m = make_registered(mediator, {1: ("A", LOW)})
    for words, message in [(["--vm", "nobody"], "nobody"), (["--vm", "77"], "no VM 77"),
                           (["--pool", "Q"], "no pool Q"), (["--pool", "nowhere"], "nowhere")]:
        done = subprocess.run([str(ADMIN), "stats", "--config", str(m.config), *words], text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=WAIT_S,
                              check=False)
        assert (done.returncode, done.stdout) == (NOT_FOUND, "") and message in done.stderr


# --- the guide, Prometheus, Grafana -----------------------------------------------------------------


def documented():
    """{metric: (type, labels)} of the guide's table."""
    rows = re.findall(r"^\| `(vgpu_\w+)` \| (\w+) \|([\w, ]*)\| \S.* \|$", GUIDE.read_text(),
                      re.MULTILINE)
    return {name: (kind, {label.strip() for label in labels.split(",")} - {""})
            for name, kind, labels in rows}


def in_source():
    rows = re.findall(r'FAMILY\(\w+, "(\w+)", "(\w+)",', SOURCE.read_text())
    return {f"vgpu_{name}": kind for name, kind in rows}


def test_every_metric_is_in_the_guide_and_no_other():
    assert len(in_source()) > 45
    assert {name: kind for name, (kind, _) in documented().items()} == in_source()


def test_metrics_have_the_labels_that_the_guide_says(cuda):
    m = cuda(vms={1: ("A", 1), 2: ("A", 2)}, metrics_vms=1)
    for vm_id in [1, 2]:
        assert m.vm(vm_id).ask("PING") == "1:PONG"
    text = text_of(m)
    known, seen = documented(), set()
    for (name, pairs) in samples(text):
        family = name if name in known else re.sub(r"_(bucket|sum|count)$", "", name)
        seen.add(family)
        labels = {label for label, _ in pairs} - {"le"}
        expected = known[family][1]
        assert labels in (expected, expected - {"quantile"}), (name, labels)
    assert families(text) == {name: known[name][0] for name in seen}
    missing = set(known) - seen
    assert all(name.startswith("vgpu_gpu_") for name in missing), missing  # no management library


def series_of(text, *labels):
    """How many have these labels, whatever their others."""
    return sum(1 for _, pairs in samples(text) if set(labels) <= set(pairs))


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_there_are_as_many_series_as_the_guide_says(mediator, cuda, kind):
    guide = " ".join(GUIDE.read_text().split())
    vm, both, pool, cpu, gpu, other = map(int, re.search(
        r"A VM has (\d+) series, each pool at a priority that was used (\d+), each pool (\d+) "
        r"besides, each device (\d+), or (\d+) where it is a GPU: at most 200 × \d+ \+ (\d+) for "
        r"`other`", guide).groups())
    assert f"200 × {vm} + {other} for `other` + 78 × {both} + 26 × {pool} " in guide
    machines = {1: ("A", LOW), 2: ("A", LOW)}
    m = (cuda(vms=machines, metrics_vms=1) if kind == "gpu" else mediator(machines, metrics_vms=1))
    for vm_id in machines:
        assert m.vm(vm_id).ask("PING") == "1:PONG"
    text = text_of(m)
    # vgpu_vm_info has both labels, too, and vgpu_pool_vms is told of each priority.
    with_both = series_of(text, ("pool", "A"), ("priority", "low")) - 2
    assert (series_of(text, ("vm", "1")), series_of(text, ("vm", "other"))) == (vm, other)
    assert (with_both, series_of(text, ("pool", "A")) - 1 - with_both) == (both, pool)
    assert series_of(text, ("device", "cpu")) == (0 if kind == "gpu" else cpu)
    assert series_of(text, ("device", "cuda:0")) == (gpu if kind == "gpu" else 0)


def test_every_reason_of_a_refusal_is_in_the_guide(mediator_of_module):
    m = mediator_of_module
    m.vm(1).ask_raw(b"no request\n")
    reasons = {dict(pairs)["reason"] for name, pairs in samples(text_of(m))
               if name == "vgpu_refusals_total"}
    section = re.search(r"^### Reasons$(.*?)^## ", GUIDE.read_text(), re.MULTILINE | re.DOTALL)[1]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == reasons


def names_in(text):
    return {re.sub(r"_(bucket|sum|count)$", "", name) if name not in documented() else name
            for name in re.findall(r"\bvgpu_\w+", text)}


def test_dashboard_and_rules_ask_for_metrics_that_exist():
    dashboard = json.loads(DASHBOARD.read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(asked) > 20
    assert names_in(" ".join(asked)) <= set(documented())
    assert names_in((RULES / "vgpu-rules.yml").read_text()) <= set(documented())
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) and dashboard["uid"] == "vgpu-mediator"


def test_the_rules_are_right_and_alert_when_they_should():
    for words in [["check", "rules", "vgpu-rules.yml"], ["test", "rules", "vgpu-rules.test.yml"]]:
        done = subprocess.run(["promtool", *words], cwd=RULES, capture_output=True, text=True,
                              timeout=WAIT_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_in_the_guide_and_no_other():
    rules = set(re.findall(r"- alert: (\w+)", (RULES / "vgpu-rules.yml").read_text()))
    assert set(re.findall(r"^\| `(Vgpu\w+)` \|", GUIDE.read_text(), re.MULTILINE)) == rules


@contextlib.contextmanager
def prometheus(place, target):
    """A Prometheus of its own that asks this port; yields its address."""
    port = free_port()
    config = place / "prometheus.yml"
    config.write_text(f"""
global: {{scrape_interval: 200ms}}
rule_files: [{RULES}/vgpu-rules.yml]
scrape_configs:
  - job_name: vgpu
    static_configs: [{{targets: ["127.0.0.1:{target}"]}}]
""")
    log = open(place / "prometheus.log", "wb")
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "prometheus", f"--config.file={config}",
         f"--storage.tsdb.path={place}/data", f"--web.listen-address=127.0.0.1:{port}"],
        stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(WAIT_S)
        finally:
            process.kill()
            process.wait()
            log.close()


def query(address, expression):
    """[(labels, number)]; empty while it does not answer yet."""
    url = f"{address}/api/v1/query?query={urllib.request.quote(expression)}"
    try:
        with urllib.request.urlopen(url, timeout=WAIT_S) as answer:
            rows = json.load(answer)["data"]["result"]
    except OSError:
        return []
    return [(row["metric"], float(row["value"][1])) for row in rows]


def test_a_real_prometheus_reads_the_numbers(mediator, place):
    port = free_port()
    m = mediator({1: ("A", LOW), 2: ("B", HIGH)}, {"A": "cpu", "B": "cpu"}, metrics_port=port)
    with prometheus(place, port) as address:
        wait_until(lambda: [value for _, value in query(address, 'up{job="vgpu"}')] == [1],
                   lambda: "a scrape:\n" + (place / "prometheus.log").read_text())
        for _ in range(3):
            assert m.vm(1).ask("PING") == "1:PONG"
        wait_until(lambda: [value for _, value in query(
            address, 'vgpu_vm_operations_total{vm="1"}')] == [3], "the count of operations")
        found = query(address, 'histogram_quantile(0.99, sum by (pool, priority, le) '
                               '(vgpu_turn_seconds_bucket))')
        (labels, p99), = found
        assert labels == {"pool": "A", "priority": "low"} and 0 < p99 < WAIT_S
        wait_until(lambda: query(address, "vgpu_exposition_seconds_total"), "its own time")
        assert query(address, 'ALERTS{alertstate="firing"}') == []


def test_the_text_of_many_vms_is_made_in_turns(mediator):
    """Requests that come meanwhile are answered before the next text is asked for."""
    m = mediator({vm_id: ("A", vm_id % 3) for vm_id in range(1, 400)})
    deadline = time.monotonic() + WAIT_S
    m.vm(7).ready()
    m.vm(7).put("PING")
    asked = 0
    while not m.vm(7).answer():
        assert time.monotonic() < deadline
        text_of(m)
        asked += 1
    assert told(m, "vgpu_vm_operations_total", vm="7") == 1
    assert told(m, "vgpu_pool_vms", pool="A", priority="low") == 133
