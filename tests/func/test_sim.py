# SPDX-License-Identifier: Apache-2.0
"""vgpu-sim: what it prints, what it refuses, and that it says the same thing twice."""

import json
import os
import pathlib
import pty
import re
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("VGPU_BUILD_DIR", REPOSITORY / "build")).resolve()
SIM = BUILD / "src/sim/vgpu-sim"
SUCCESS, FAILURE, USAGE = 0, 1, 2

OPEN_LOADS = ["--load=web,vms=4,priority=high,arrivals=poisson,every_us=8000,sizes=exponential",
              "--load=burst,vms=3,arrivals=bursts,every_us=2000,job_us=100,sizes=pareto",
              "--load=batch,vms=3,priority=low,arrivals=poisson,every_us=12000,job_us=2000"]
CLOSED_LOAD = "--load=busy,vms=2,weight=300,depth=4,think_us=100"
FOUR = "strict,wfq,fifo,round-robin"


def sim(*arguments, **options):
    return subprocess.run([SIM, *map(str, arguments)], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, check=False, **options)


def runs(*arguments):
    done = sim("--json", *arguments)
    assert (done.returncode, done.stderr) == (SUCCESS, "")
    return json.loads(done.stdout)["runs"]


# --- the same again -------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    outputs = []
    for name in "ab":
        (tmp_path / name).mkdir()
        done = sim(*OPEN_LOADS, CLOSED_LOAD, "--policy", FOUR, "--seed=9", "--svg",
                   tmp_path / name)
        assert done.returncode == SUCCESS
        outputs.append([done.stdout] + [(tmp_path / name / f"{picture}.svg").read_bytes()
                                        for picture in ("latency", "shares", "depth")])
    assert outputs[0] == outputs[1]


def test_another_seed_gives_another_load():
    assert runs(*OPEN_LOADS, "--seed=1") != runs(*OPEN_LOADS, "--seed=2")


def test_an_open_load_is_the_same_under_each_policy():
    accepted = [[load["accepted"] for load in run["loads"]]
                for run in runs(*OPEN_LOADS, "--policy", FOUR)]
    assert len(accepted) == 4 and all(counts == accepted[0] for counts in accepted)


def test_a_load_does_not_change_when_another_one_is_added():
    alone = runs(OPEN_LOADS[0])[0]["loads"][0]
    beside = runs(OPEN_LOADS[0], CLOSED_LOAD)[0]["loads"][0]
    assert alone["accepted"] == beside["accepted"] > 1000


@pytest.mark.parametrize("devices", ["0", "0-2"])
def test_a_load_that_was_recorded_gives_the_same_when_it_is_replayed(tmp_path, devices):
    trace = tmp_path / "trace.csv"
    common = ["--policy", FOUR, f"--pool=A,devices={devices}", "--set=switch_us=30",
              "--set=stall_per_million=2000", "--set=stall_us=5000"]
    made = runs(*common, *OPEN_LOADS, "--write-trace", trace)
    replayed = runs(*common, "--duration-ms=10000", "--trace", trace)
    for first, second in zip(made, replayed):
        # Loads have other names, and with them the dues' sums; all else is equal.
        for run in (first, second):
            del run["loads"]
        assert first == second


# --- traces ---------------------------------------------------------------------------


TRACE = ("event,time_us,vm,pool,priority,weight,job_us,note\n"
         "arrive,0,7,A,0,100,1000,\n"
         "grant,0,7,A,0,100,0,\n"
         "arrive,100,7,A,0,100,1000,\n"
         "arrive,200,9,B,2,100,300,high comes while 7 runs\n"
         "complete,1000,7,A,0,100,1000,\n")


def test_a_trace_that_can_be_computed_by_hand(tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text(TRACE)
    run = runs("--trace", trace, "--set=grant_ops=1", "--set=long_grants=no",
               "--duration-ms=100")[0]
    # 7 from 0 to 1000, 9 to 1300, 7 again to 2300.
    assert run["classes"]["high"]["max_us"] == 1100
    assert 1000 <= run["classes"]["low"]["p50_us"] <= 1008
    assert run["classes"]["low"]["max_us"] == 2200
    assert run["classes"]["low"]["longest_wait_us"] == 1200
    assert (run["vms"], run["grants"], run["switches"]) == (2, 3, 2)
    assert run["utilisation_percent"] == 2.3


def test_a_trace_is_replayed_to_its_end_unless_it_is_told_otherwise(tmp_path):
    trace = tmp_path / "t.csv"
    trace.write_text(TRACE + "arrive,29000000,7,A,0,100,1000,\n")
    run = runs("--trace", trace)[0]
    assert run["duration_us"] == 30000000 and run["classes"]["low"]["completed"] == 3
    assert runs("--trace", trace, "--duration-ms=20")[0]["duration_us"] == 20000
    assert runs("--trace", trace, "--load=a")[0]["duration_us"] == 10000000


@pytest.mark.parametrize("text, error", [
    ("", "has no line of the event 'arrive'"),
    ("time_us,vm\n", "line 1: no column 'pool'"),
    (TRACE.replace("100,7,A", "100,0,A"), "line 4: vm = '0': expected a number from 1"),
    (TRACE.replace(",B,", ",b,"), "line 5: pool = 'b': expected one letter"),
    (TRACE.replace(",B,2", ",B,3"), "line 5: priority = '3': expected 0, 1 or 2"),
    (TRACE.replace("2,100,300", "2,0,300"), "line 5: weight = '0'"),
    (TRACE.replace(",300,", ",0,"), "line 5: job_us = '0'"),
    (TRACE.replace("arrive,200", "arrive,50"), "line 5: time_us goes back"),
    (TRACE.replace("arrive,200", "arrive,-1"), "line 5: time_us = '-1'"),
    (TRACE + "arrive,1\n", "line 7: 2 fields: the first line promises more"),
])
def test_a_wrong_trace_is_refused_with_line_and_reason(tmp_path, text, error):
    trace = tmp_path / "t.csv"
    trace.write_text(text)
    done = sim("--trace", trace)
    assert (done.returncode, done.stdout) == (FAILURE, "")
    assert error in done.stderr and str(trace) in done.stderr


# --- files and options ------------------------------------------------------------------


@pytest.mark.parametrize("arguments, status, error", [
    ([], USAGE, "nothing to simulate"),
    (["--load=a,vms=6000", "--load=b,vms=6000"], USAGE, "12000 VMs: expected at most 10000"),
    (["--nonsense"], USAGE, "unrecognized option"),
    (["a.ini", "b.ini"], USAGE, "unexpected argument 'b.ini'"),
    (["/nonexistent/a.ini"], FAILURE, "cannot open scenario '/nonexistent/a.ini'"),
    (["--trace=/nonexistent/a.csv"], FAILURE, "cannot open trace '/nonexistent/a.csv'"),
    (["--load=a", "--policy=best"], USAGE, "policy = best: expected one of strict, wfq"),
    (["--load=a", "--policy=" + ",".join(["wfq"] * 9)], USAGE, "more than 8 are too many"),
    (["--load=a", "--set=seed"], USAGE, "'seed': expected KEY=VALUE"),
    (["--load=a", "--seed=x"], USAGE, "seed = x: expected a whole number"),
    (["--load=a,vms=0"], USAGE, "vms = 0: expected a whole number from 1 to 10000"),
    (["--load=a,speed=1"], USAGE, "unknown key 'speed' in [load NAME]"),
    (["--pool=A,devices=1000", "--load=a"], USAGE, "devices = 1000: expected a device 0 to 999"),
    (["--load=a,vms=1,depth=2,vms=3"], USAGE, "'vms' stands twice"),
    (["--pool=A,demand=yes,demand=no", "--load=a"], USAGE, "'demand' stands twice"),
    (["--load=a", "--policy=strict:grant_us=500:grant_us=600"], USAGE, "'grant_us' stands twice"),
    (["--load=a", "--svg=/dev/null"], FAILURE, "--svg=/dev/null: expected a directory"),
    (["--load=a", "--write-trace=/nonexistent/t"], FAILURE, "cannot write trace"),
    (["--load=a"] * 65, USAGE, "more than 64 are too many"),
])
def test_wrong_usage_says_what_was_expected(arguments, status, error):
    done = sim(*arguments)
    assert done.returncode == status
    assert error in done.stderr


def test_a_directory_that_is_missing_is_told_before_anything_is_simulated():
    done = sim("--load=a", "--svg=/nonexistent", "--progress")
    assert (done.returncode, done.stdout) == (FAILURE, "")
    assert done.stderr == ("vgpu-sim: cannot write pictures into '/nonexistent': "
                           "No such file or directory\n")


@pytest.mark.parametrize("text, error", [
    ("[load a]\nvms = 2\ndepth = 2\nvms = 3\n", "line 4: 'vms' stands twice"),
    ("[load a]\npool = B\npool = B\n", "line 3: 'pool' stands twice"),
    ("[pool A]\ndevices = 0\ndevices = 1\n", "line 3: 'devices' stands twice"),
    ("[simulation]\nseed = 1\n[load a]\n[simulation]\nseed = 2\n",
     "line 5: 'seed' stands twice"),
    ("[load a]\ndepth = 2\n  3\n", "line 3: 'depth' stands twice, or its value has several lines"),
    ("[load a]\nvms = 6000\n[load b]\nvms = 6000\n", "12000 VMs: expected at most 10000"),
])
def test_a_wrong_scenario_is_refused_with_the_reason(tmp_path, text, error):
    scenario = tmp_path / "s.ini"
    scenario.write_text(text)
    done = sim(scenario)
    assert (done.returncode, done.stdout) == (FAILURE, "")
    assert error in done.stderr


def test_each_section_may_have_the_same_keys(tmp_path):
    scenario = tmp_path / "s.ini"
    scenario.write_text("[simulation]\nduration_ms = 10\ndemand = no\n"
                        "[pool A]\ndemand = no\n[pool B]\ndemand = yes\n"
                        "[load a]\nvms = 2\n[load b]\nvms = 3\npool = B\n")
    assert runs(scenario, "--set=demand=yes", "--set=demand=no")[0]["vms"] == 5


def test_a_byte_order_mark_is_passed_over(tmp_path):
    scenario, trace = tmp_path / "s.ini", tmp_path / "t.csv"
    scenario.write_text("[load a]\nvms = 2\n", encoding="utf-8-sig")
    assert runs(scenario)[0]["vms"] == 2
    trace.write_text(TRACE, encoding="utf-8-sig")
    assert runs("--trace", trace)[0]["vms"] == 2


def test_a_full_disk_is_told():
    with open("/dev/full", "w") as full:
        done = subprocess.run([SIM, "--load=a"], stdout=full, stderr=subprocess.PIPE, text=True,
                              check=False)
    assert done.returncode == FAILURE and "cannot write to standard output" in done.stderr
    done = sim("--load=a,arrivals=poisson", "--write-trace=/dev/full")
    assert done.returncode == FAILURE and "cannot write trace '/dev/full'" in done.stderr


def test_options_stand_over_the_scenario_wherever_they_stand(tmp_path):
    scenario = tmp_path / "s.ini"
    scenario.write_text("[simulation]\nseed = 4\nduration_ms = 50\n[load a]\n")
    run = runs("--seed=5", scenario, "--load=b")[0]
    assert (run["seed"], run["duration_us"]) == (5, 50000)
    assert [load["name"] for load in run["loads"]] == ["a", "b"]


def test_the_tables_tell_what_the_json_does():
    arguments = [*OPEN_LOADS, CLOSED_LOAD, "--policy=wfq"]
    table, run = sim(*arguments).stdout, runs(*arguments)[0]
    for name, tally in run["classes"].items():
        row = re.search(rf"^{name} +(\d+) +(\d+) +(\d+) +([\d.]+)", table, re.MULTILINE)
        assert [int(row[i]) for i in (1, 2, 3)] == [tally["completed"], tally["refused"],
                                                     tally["left"]]
        assert abs(float(row[4]) * 1000 - tally["p50_us"]) <= 1
    assert f"events            {run['events']}\n" in table


def test_the_brief_tables_have_a_row_a_run():
    text = sim(*OPEN_LOADS, "--policy", FOUR, "--brief").stdout
    for name in ("high", "medium", "low", "web", "burst", "batch"):
        assert re.findall(rf"^{name} +(\S+) ", text, re.MULTILINE) == FOUR.split(",")
    assert re.findall(r"^(\S+) +[\d.]+ +[\d.]+ +\d+", text, re.MULTILINE) == FOUR.split(",")


def test_pools_have_policies_of_their_own_which_take_turns():
    run = runs("--pool=A,policy=wfq", "--pool=B,policy=strict", "--load=heavy,weight=300,depth=4",
               "--load=light,weight=100,depth=4", "--load=high,pool=B,priority=high,depth=4",
               "--load=low,pool=B,priority=low,depth=4")[0]
    shares = {load["name"]: load["share_percent"] for load in run["loads"]}
    assert abs(shares["heavy"] - 3 * shares["light"]) < 1
    assert abs(shares["heavy"] + shares["light"] - 50) < 1 and shares["low"] < 1


def test_what_does_not_fit_a_queue_is_refused_and_counted():
    run = runs("--set=queue_max=3", "--load=flood,arrivals=poisson,every_us=100,job_us=1000")[0]
    tally = run["classes"]["medium"]
    assert tally["refused"] > 50000 and tally["left"] <= 3
    assert tally["accepted"] == tally["completed"] + tally["left"]


def test_stalls_and_switches_cost_what_they_say():
    loads = ["--load=a,vms=2,depth=2,job_us=1000", "--set=grant_ops=1",
             "--set=switch_share_percent=0", "--set=long_grants=no"]
    plain, switched, stalled = [runs(*loads, *more)[0] for more in (
        [], ["--set=switch_us=1000"], ["--set=stall_per_million=1000000", "--set=stall_us=1000"])]
    assert plain["classes"]["medium"]["completed"] == 9999
    assert switched["classes"]["medium"]["completed"] == 5000
    assert stalled["classes"]["medium"]["completed"] == 4999


# --- progress and pictures -----------------------------------------------------------------


def test_progress_is_told_on_demand_and_nothing_else():
    done = sim("--load=a", "--progress")
    assert re.fullmatch(r"(strict: +\d+ %\n)*strict: \d+ events in [\d.]+ s of processor time, \d+ a second\n",
                        done.stderr)
    assert sim("--load=a").stderr == ""


def test_progress_is_shown_on_a_terminal():
    terminal, theirs = pty.openpty()
    try:
        done = subprocess.run([SIM, "--load=a,vms=2,job_us=10", "--duration-ms=60000"],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs,
                              check=False)
        assert done.returncode == SUCCESS
        os.write(theirs, b"end")
        shown = b""
        while not shown.endswith(b"end"):
            shown += os.read(terminal, 65536)
    finally:
        os.close(theirs)
        os.close(terminal)
    # Nothing of it stays.
    assert shown.endswith(b"\r\x1b[Kend")


def test_pictures_have_a_panel_a_run_axes_and_a_legend(tmp_path):
    assert sim(*OPEN_LOADS, CLOSED_LOAD, "--policy", FOUR, "--svg", tmp_path).returncode == SUCCESS
    texts = {}
    for name in ("latency", "shares", "depth"):
        root = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        texts[name] = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
        assert set(FOUR.split(",")) <= set(texts[name])
    assert {"high", "medium", "low", "operations done, %"} <= set(texts["latency"])
    assert {"web", "burst", "batch", "busy", "time, s"} <= set(texts["shares"])
    assert {"operations that wait", "time, s"} <= set(texts["depth"])
    assert texts["latency"].count("99.9") == 4


# --- what is written about it -------------------------------------------------------------


def keys_in_the_source():
    text = (REPOSITORY / "src/sim/scenario.c").read_text()
    tables = dict(re.findall(r"(\w+)_keys\[\] = \{(.*?)\{NULL\}", text, re.DOTALL))
    policy = re.search(r"#define POLICY_KEYS.*?\n\n", text, re.DOTALL)[0]
    shared = set(re.findall(r"structure, \"(\w+)\"", policy))
    assert len(shared) == 6
    found = {name: set(re.findall(r"(?:NUMBER|CHOICE)\(\w+, (\w+),", table))
             for name, table in tables.items()}
    return {"simulation": found["simulation"] | shared, "load": found["load"] | {"pool"},
            "pool": shared | {"devices"}}


def test_every_key_is_in_the_manual_page():
    page = (REPOSITORY / "man/vgpu-sim.1.scd").read_text()
    keys = keys_in_the_source()
    assert len(keys["simulation"]) > 20 and len(keys["load"]) > 10
    parts = {"simulation": page.split("## [simulation]")[1].split("## [pool X]")[0],
             "pool": page.split("## [pool X]")[1].split("## [load NAME]")[0],
             "load": page.split("## [load NAME]")[1].split("# TRACES")[0]}
    for name, part in parts.items():
        lines = " ".join(line for line in part.splitlines() if line.startswith("*"))
        assert set(re.findall(r"\*(\w+)\*", lines)) == keys[name], name


def test_completion_knows_the_options_and_the_keys():
    text = (REPOSITORY / "packaging/vgpu-sim.bash").read_text()
    options = set(re.findall(r"^ .*?(--[a-z][a-z-]+)", sim("--help").stdout, re.MULTILINE))
    listed = re.search(r"local options='(.*?)'", text, re.DOTALL)[1].split()
    assert set(listed) == options
    assert set(re.search(r"local keys='(.*?)'", text, re.DOTALL)[1].split()) == \
        keys_in_the_source()["simulation"]
