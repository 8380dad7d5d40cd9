# SPDX-License-Identifier: Apache-2.0
"""The decision log: what mediator and workers write, `vgpu-admin trace`, and that vgpu-sim
replays it."""

import csv
import io
import json
import os
import random
import re
import subprocess

from control_support import ADMIN, admin, control, make_registered
from support import BUILD, REPOSITORY, WAIT_S, Vm, both_channels, wait_until

SIM = BUILD / "src/sim/vgpu-sim"
LOW, MEDIUM, HIGH = 0, 1, 2
NOT_FOUND = 3
COLUMNS = "time_us,vm,pool,priority,weight,event,job_us,device,number,device_us,count,reason"


def table(m, *words):
    """The log as rows of the CSV."""
    text = admin(m, "trace", "--format", "csv", *words)
    assert text.splitlines()[0] == COLUMNS
    return list(csv.DictReader(io.StringIO(text)))


def chrome(m, *words):
    return json.loads(admin(m, "trace", *words))


def events(rows, event, vm=None):
    return [row for row in rows if row["event"] == event and vm in (None, int(row["vm"]))]


def files(m):
    return sorted(path.name for path in (m.state / "run/trace").iterdir())


def refused(m, *words, exit_code=None):
    done = subprocess.run([str(ADMIN), "trace", "--config", str(m.config), *map(str, words)],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=WAIT_S, check=False, env=dict(os.environ, LC_ALL="C"))
    assert (done.returncode == exit_code if exit_code else done.returncode != 0)
    assert done.stdout == ""
    return done.stderr


def run_mix(mediator, **options):
    """Some of everything: two windows and a file channel, in both pools."""
    m = mediator({1: ("A", LOW), 2: ("B", HIGH), 3: ("A", MEDIUM)}, {"A": "cpu", "B": "cpu"},
                 channel="window", **options)
    for _ in range(4):
        m.vm(1).put("SPIN 4")
        m.vm(2).put("SPIN 3")
        assert Vm(m.share, 3, "A", MEDIUM).ask("SPIN 2").startswith("1:")
        assert m.vm(1).wait_answer().startswith("1:")
        assert m.vm(2).wait_answer().startswith("1:")
    # A guest has its answer before the mediator has the grant.
    wait_until(lambda: len(events(table(m), "return")) == 12, "all grants are back")
    return m


def check_chrome(trace):
    """What Trace Event Format asks for, of the phases that are used."""
    spans = {}
    named = set()
    assert set(trace) == {"displayTimeUnit", "traceEvents"}
    for event in trace["traceEvents"]:
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        assert isinstance(event["args"], dict) and event["name"]
        if event["ph"] == "M":
            assert event["name"] in ("process_name", "thread_name") and event["args"]["name"]
            named.add((event["pid"], event["tid"] if event["name"] == "thread_name" else None))
            continue
        assert event["ts"] >= 0 and event["cat"]
        assert event["ph"] in ("X", "i")
        if event["ph"] == "i":
            assert event["s"] in ("t", "p", "g")
            continue
        assert event["dur"] >= 0
        track = event["pid"], event["tid"]
        spans.setdefault(track, []).append((event["ts"], event["dur"]))
        assert (event["pid"], None) in named and track in named
    for track in spans.values():
        track.sort()
        for (at, lasts), (then, _) in zip(track, track[1:]):
            assert at + lasts <= then + 0.001  # numbers have three decimals
    return trace


# --- what is written ------------------------------------------------------------------------


def test_operations_of_windows_and_file_requests_are_logged(mediator):
    m = run_mix(mediator)
    rows = table(m)
    assert {vm: len(events(rows, "arrive", vm)) for vm in (1, 2, 3)} == {1: 4, 2: 4, 3: 4}
    assert {vm: len(events(rows, "complete", vm)) for vm in (1, 2, 3)} == {1: 4, 2: 4, 3: 4}
    for vm, us in [(1, 4000), (2, 3000), (3, 2000)]:
        assert all(int(row["job_us"]) >= us for row in events(rows, "arrive", vm))
    assert {(row["vm"], row["pool"], row["priority"], row["weight"]) for row in rows} == {
        ("1", "A", "0", "100"), ("2", "B", "2", "100"), ("3", "A", "1", "100")}
    assert len(events(rows, "grant")) == len(events(rows, "return")) == 12
    times = [int(row["time_us"]) for row in rows]
    assert times == sorted(times) and times[0] == 0


def test_device_time_is_that_of_the_statistics(mediator):
    m = run_mix(mediator)
    with control(m) as c:
        used = {vm["vm_id"]: vm["device_us"] for vm in c.call("stats")["vms"]}
    rows = table(m)
    for vm in (1, 2, 3):
        returned = sum(int(row["device_us"]) for row in events(rows, "return", vm))
        completed = sum(int(row["device_us"]) for row in events(rows, "complete", vm))
        assert abs(returned - used[vm]) <= 4  # each is cut to whole microseconds
        assert completed <= used[vm]  # what was used behind the last one is no operation's


def test_vgpu_sim_replays_what_was_recorded(mediator, place):
    m = run_mix(mediator)
    rows = table(m)
    path = place / "recorded.csv"
    path.write_text(admin(m, "trace", "--format", "csv"))
    done = subprocess.run([SIM, "--trace", path, "--json", "--duration-ms=60000"],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
    run, = json.loads(done.stdout)["runs"]
    for name, vm in [("low", 1), ("high", 2), ("medium", 3)]:
        jobs = [int(row["job_us"]) for row in events(rows, "arrive", vm)]
        assert run["classes"][name]["completed"] == len(jobs) == 4
        assert run["classes"][name]["used_us"] == sum(jobs)


def test_who_waits_for_a_grant_is_seen_with_the_reason_of_its_end(mediator):
    m = mediator({1: ("A", LOW), 2: ("A", LOW)}, {"A": "cpu"}, channel="window", grant_ops=4096)
    assert m.vm(1).ask("PING") == "1:PONG"  # it keeps its long grant ...
    assert m.vm(2).ask("PING") == "1:PONG"  # ... until another one comes
    wait_until(lambda: events(table(m), "grant", 2), "VM 2's grant")
    rows = table(m)
    revoke, = events(rows, "revoke", 1)
    assert revoke["reason"] == "others-wait"
    switch, = events(rows, "switch")
    assert (switch["vm"], switch["number"]) == ("2", "1")
    order = [(row["event"], row["vm"]) for row in rows
             if row["event"] in ("grant", "revoke", "return")]
    assert order[:4] == [("grant", "1"), ("revoke", "1"), ("return", "1"), ("grant", "2")]


def test_a_grant_that_ended_with_its_worker_says_so(mediator):
    m = mediator({1: ("A", LOW)}, channel="window")
    m.release(m.occupy(1))
    m.vm(1).wait_answer()
    wait_until(lambda: events(table(m), "return", 1), "the return")
    assert events(table(m), "return", 1)[0]["reason"] == "worker-ended"


# --- how long it is kept -----------------------------------------------------------------------


def test_a_sessions_file_goes_with_it_and_the_mediators_stays(mediator):
    m = mediator({1: ("A", LOW)}, channel="window")
    assert m.vm(1).ask("PING") == "1:PONG"
    assert len(files(m)) == 2 and files(m)[0] == "mediator.trace"
    assert all((m.state / "run/trace" / name).stat().st_mode & 0o777 == 0o600 for name in files(m))
    m.vm(1).close()
    wait_until(lambda: files(m) == ["mediator.trace"], "the session's file is gone")
    assert events(table(m), "grant", 1)


def test_the_next_mediator_goes_on_with_the_log(mediator):
    m = mediator({1: ("A", LOW)})
    assert m.vm(1).ask("PING") == "1:PONG"
    m.stop()
    assert len(events(table(m), "complete")) == 1  # also while none runs
    (m.state / "run/trace/vm9-1f-0.trace").write_bytes(b"")  # of a session that is gone
    m.start()
    assert m.vm(1).ask("PING") == "1:PONG"
    assert len(events(table(m), "complete")) == 2
    assert files(m) == ["mediator.trace"]


def test_the_oldest_are_written_over(mediator):
    m = mediator({1: ("A", LOW)}, trace_kib=1)
    for _ in range(20):
        assert m.vm(1).ask("PING") == "1:PONG"
    rows = [row for row in table(m) if row["event"] != "arrive"]
    assert 0 < len(rows) < 32
    assert events(rows, "complete")[-1]["number"] == "20"


@both_channels
def test_without_a_log_all_works_and_the_command_says_why(mediator):
    m = mediator({1: ("A", LOW)}, trace_kib=0)
    assert m.vm(1).ask("PING") == "1:PONG"
    assert not (m.state / "run/trace/mediator.trace").exists()
    assert "trace_kib" in refused(m)


def test_a_log_of_decisions_alone(mediator):
    m = mediator({1: ("A", LOW)}, channel="window", trace_session_kib=0)
    assert m.vm(1).ask("PING") == "1:PONG"
    assert files(m) == ["mediator.trace"]
    assert events(table(m), "grant") and not events(table(m), "complete")


def test_a_directory_that_cannot_be_had_stops_nothing(mediator):
    m = mediator({1: ("A", LOW)}, start=False)
    m.allow_error("decision log")
    (m.state / "run").mkdir(parents=True)
    (m.state / "run/trace").write_text("in the way")
    m.start()
    assert m.vm(1).ask("PING") == "1:PONG"
    assert m.messages("there is no decision log")


# --- the command ---------------------------------------------------------------------------------


def test_chromes_format_is_kept_to(mediator):
    trace = check_chrome(chrome(run_mix(mediator)))
    names = {event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"}
    assert {"devices", "VM 1", "VM 2", "VM 3", "device 0"} <= names
    kinds = {event["cat"] for event in trace["traceEvents"] if event["ph"] == "X"}
    assert kinds == {"grant", "wait", "operation"}


def test_one_vm_alone_and_the_end_alone(mediator):
    m = run_mix(mediator)
    assert {row["vm"] for row in table(m, "--vm", 2)} == {"2"}
    assert len(table(m, "--last", 600)) == len(table(m))
    assert len(events(table(m, "--vm", 2), "complete")) == 4


def test_a_file_is_written_and_summed_up(mediator, place):
    m = run_mix(mediator)
    path = place / "trace.json"
    said = admin(m, "trace", "--output", path)
    assert re.match(r"\d+ records of 3 files; 0 older ones were written over\.\n$", said)
    assert check_chrome(json.loads(path.read_text()))["traceEvents"]
    told = json.loads(admin(m, "trace", "--json", "--output", path))
    assert told["files"] == 3 and told["rejected"] == 0
    assert "cannot make" in refused(m, "--output", place / "missing/trace.json")
    assert "No space" in refused(m, "--output", "/dev/full")


def test_what_is_wrong_is_refused_with_what_was_expected(mediator):
    m = mediator({1: ("A", LOW)})
    assert "chrome or csv" in refused(m, "--format", "svg")
    assert "1 to 604800" in refused(m, "--last", 0)


def test_grants_of_sessions_that_have_ended_are_counted(mediator):
    m = run_mix(mediator)
    words = [str(ADMIN), "trace", "--config", str(m.config), "--format", "csv"]

    def said():
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=WAIT_S, check=True)
        return done.stderr

    assert said() == ""
    gone, = (m.state / "run/trace").glob("vm1-*.trace")
    gone.unlink()
    assert "4 grants without operations: their sessions have ended" in said()


def test_a_damaged_file_of_the_mediator_leaves_the_sessions(mediator):
    m = run_mix(mediator)
    path = m.state / "run/trace/mediator.trace"
    for noise in [b"\xff" * 64 + path.read_bytes()[64:], b"short"]:
        path.write_bytes(noise)
        done = subprocess.run([str(ADMIN), "trace", "--config", str(m.config), "--format", "csv"],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=WAIT_S, check=False)
        assert done.returncode == 0 and "mediator.trace" in done.stderr
        rows = list(csv.DictReader(io.StringIO(done.stdout)))
        assert {vm: len(events(rows, "complete", vm)) for vm in (1, 2, 3)} == {1: 4, 2: 4, 3: 0}
        check_chrome(chrome(m))


def test_a_vm_that_nobody_knows_is_not_found(mediator):
    m = make_registered(mediator, {1: ("A", LOW)})
    assert "no VM 99 " in refused(m, "--vm", 99, exit_code=NOT_FOUND)
    assert table(m, "--vm", 1) == []  # it is there, and has done nothing
    m.stop()
    assert "no VM 99 " in refused(m, "--vm", 99, exit_code=NOT_FOUND)
    assert table(m, "--vm", 1) == []


def test_without_a_database_the_mediator_says_who_is_known(mediator):
    m = mediator({1: ("A", LOW)})
    assert "no VM 99 " in refused(m, "--vm", 99, exit_code=NOT_FOUND)
    assert table(m, "--vm", 1) == []


def test_what_a_worker_writes_counts_for_its_vm_only(mediator):
    """Noise of all kinds in a session's file: the log stays whole, others' part untouched."""
    m = run_mix(mediator)
    before = [row for row in table(m) if row["vm"] != "1"]
    path = next((m.state / "run/trace").glob("vm1-*.trace"))
    generator = random.Random(1)
    whole = path.read_bytes()
    for _ in range(20):
        noise = bytearray(whole)
        for at in range(64, len(noise), 32):
            noise[at:at + 32] = generator.randbytes(32)
            noise[at + 28] = generator.randrange(10)  # its kind
            noise[at + 4:at + 8] = bytes(4)           # long ago
        noise[16:24] = generator.randrange(1 << 20).to_bytes(8, "little")  # the position
        path.write_bytes(noise)
        check_chrome(chrome(m))
        assert [row["event"] for row in table(m) if row["vm"] != "1"] == [
            row["event"] for row in before]
    path.write_bytes(b"short")
    assert [row for row in table(m) if row["vm"] != "1"]


def test_completion_and_manual_know_the_command():
    page = (REPOSITORY / "man/vgpu-admin.8.scd").read_text()
    words = (REPOSITORY / "packaging/vgpu-admin.bash").read_text()
    for option in ["format", "last", "output"]:
        assert f"*--{option}*" in page and f"--{option}" in words
