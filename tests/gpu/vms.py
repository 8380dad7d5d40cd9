# SPDX-License-Identifier: Apache-2.0
"""Four real VMs share a GPU: are all answers right, and is the order, and how long does who wait?

usage: tests/gpu/vms.py [--minutes N] [--bench-seconds N] [--double] [--output FILE]

answers and order: two pools on one GPU, three priorities.  Each guest loops VECTOR_ADD,
    MATRIX_MUL 100 and the examples, whose kernels are their own, for --minutes (default 5):
    every answer is checked, and every turn in the mediator's log by demo/order.py, which
    shares no line with the scheduler.  For that each operation has a grant of its own.
latency: how long the high-priority VM waits for a ping and for a launch with its end, alone
    and beside a low-priority VM that does as much as it can, --bench-seconds (default 5) each,
    with the mediator's usual grants.  Kernels longer than a grant are told apart, as what has
    begun on a GPU is not taken back.
shares: two VMs of one priority with weights 75 and 25, under the policy wfq, both with more to
    do than there is: how much device time each has, with kernels alike and with the lighter
    VM's 25 times as long.

--double takes a double of NVIDIA's library, which cannot run the examples' kernels, and whose
times nobody judges.
Writes what was found into FILE; its last line is a summary.  Exit status: 0 all is right.
`scripts/gpu-check.sh` builds or unpacks what this needs.
"""

import argparse
import datetime
import json
import pathlib
import shutil
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/vm"), str(ROOT / "tests/gpu"), str(ROOT / "tests/func")]

import machine  # noqa: E402  (the path comes first)
from control_support import Control  # noqa: E402  (the path comes first)
from harness import paths, process  # noqa: E402  (the path comes first)
from harness.load import answer_fits, order_problems, requests_of  # noqa: E402
from harness.windows import WindowLab  # noqa: E402

VMS = {1: ("A", "high"), 2: ("A", "low"), 3: ("B", "medium"), 4: ("B", "low")}
POOLS = {"A": "cuda:0", "B": "cuda:0"}
COMMANDS = ["VECTOR_ADD", "MATRIX_MUL 100"]
EXAMPLES = ["saxpy", "matrix", "digits"]
GRANT_MS = 2  # grant_ms' default
PROBLEMS_TOLD = 20
LAST_ROUND_S = 180  # what is begun in the last moment, under a translated processor
SHORT_US, LONG_US = 200, 5000  # kernels, beside a grant
WAITS = ["ping_poll_p50_us", "ping_poll_p99_us", "launch_sync_p50_us", "launch_sync_p99_us",
         "launch_sync_max_us"]
WEIGHTS = {1: 75, 2: 25}
SHARE_SLACK = 2  # percent


def saturating(seconds):
    """{name: what the low-priority guest runs meanwhile}"""
    return {"batch": f"vgpu-client --json bench --mode batch --seconds {seconds}",
            "copy": f"vgpu-client --json bench --mode copy --seconds {seconds}",
            "short_kernels": f"vgpu-load saturate {SHORT_US} {seconds}",
            "long_kernels": f"vgpu-load saturate {LONG_US} {seconds}"}


def lab_of(double, vms=None, **settings):
    settings = {"device_memory_mib": 2048, "execution_log": None, **settings}
    lab = WindowLab(vms or VMS, pools=POOLS, **settings)
    if double:
        copy = lab.directory / "libcuda.so.1"
        shutil.copy(paths.BUILD / "tests/doubles/fake_cuda.so", copy)
        lab.directory.chmod(0o755)
        config = lab.mediator.config
        config.write_text(config.read_text().replace("[mediator]\n",
                                                     f"[mediator]\ncuda_library={copy}\n", 1))
    return lab


def device_us(lab):
    """{vm: device time so far}"""
    with Control(lab.run / "control.sock") as control:
        return {vm["vm_id"]: vm["device_us"] for vm in control.call("status")["vms"]}


# --- right answers, right order --------------------------------------------------------------


def loop_script(seconds, examples):
    """For a guest's shell: a JSON line an answer, a line an example."""
    words = [f"vgpu-client --json --timeout 120 --channel window {command}" for command in COMMANDS]
    words += [f"vgpu-example-{name}" for name in examples]
    steps = "\n".join(f"{word} || echo \"failed: {word}: status $?\"" for word in words)
    return (f"end=$(( $(cut -d. -f1 /proc/uptime) + {int(seconds)} ))\n"
            f"while [ $(cut -d. -f1 /proc/uptime) -lt $end ]; do\n{steps}\ndone 2>&1")


def check_output(vm, output, examples):
    """What one guest wrote: (counts, problems)."""
    problems = [f"vm{vm}: {line}" for line in output.splitlines() if line.startswith("failed: ")]
    requests = requests_of(output)
    problems += [f"vm{vm}: {request!r}: that is not the answer to it" for request in requests
                 if not answer_fits(request.command, request.answer)]
    problems += [f"vm{vm}: {request!r}: not by the GPU" for request in requests
                 if "(cuda, " not in (request.answer or "")]
    counts = {command: sum(request.command == command for request in requests)
              for command in COMMANDS}
    for name in examples:
        counts[name] = sum(line.startswith(f"{name}: ") for line in output.splitlines())
    problems += [f"vm{vm}: no {what} was answered" for what, count in counts.items() if not count]
    return counts, problems


def seconds_of(event):
    return datetime.datetime.fromisoformat(event["time"].replace("Z", "+00:00")).timestamp()


def turns_of(events):
    """{vm: [milliseconds of each turn]}, as the log has them."""
    begun, turns = {}, {}
    for event in events:
        key = event.get("vm"), event.get("slot"), event.get("sequence")
        if event.get("event") == "process":
            begun[key] = seconds_of(event)
        elif event.get("event") == "returned" and key in begun:
            turns.setdefault(event["vm"], []).append((seconds_of(event) - begun.pop(key)) * 1e3)
    return turns


def long_turns(turns):
    return {f"vm{vm}": {"turns": len(all_ms),
                        "longer_than_a_grant": sum(ms > GRANT_MS for ms in all_ms),
                        "longest_ms": round(max(all_ms), 3)} for vm, all_ms in turns.items()}


def overtaken(events):
    """How often one ran while another waited: without that, order says nothing."""
    waiting, count = 0, 0
    for event in events:
        if event.get("event") == "queue":
            waiting += 1
        elif event.get("event") == "process":
            waiting -= 1
            count += waiting > 0
    return count


def answers_and_order(arguments):
    examples = [] if arguments.double else EXAMPLES
    seconds = arguments.minutes * 60
    with lab_of(arguments.double, grant_ops=1, log_level="debug") as lab:
        lab.start()
        guests = lab.boot()
        jobs = {vm: guest.spawn(loop_script(seconds, examples)) for vm, guest in zip(VMS, guests)}
        counts, problems = {}, []
        for vm, job in jobs.items():
            _, output = job.wait(seconds + LAST_ROUND_S)
            counts[f"vm{vm}"], found = check_output(vm, output, examples)
            problems += found
        events = lab.mediator.events()
        problems += order_problems(events, POOLS)
        problems += [event["message"] for event in events
                     if event.get("event") in ("lost", "fault", "xid", "gpu-lost")]
    return {"seconds": seconds, "answers": counts, "turns": long_turns(turns_of(events)),
            "turns_while_others_waited": overtaken(events), "problems": problems}


# --- how long the important one waits -----------------------------------------------------------


def waits_of(guest, seconds):
    """Of pings, and of launches with their end, for so long each."""
    words = [f"vgpu-client --json bench --mode poll --seconds {seconds}",
             f"vgpu-load latency {seconds}"]
    told = {}
    for word in words:
        told |= json.loads(guest.check(word, seconds + 60))
    return {key: told[key] for key in WAITS}


def waits_beside(lab, guests, load, seconds):
    """VM 1's, while VM 2 runs `load`; and how much of the device that had, percent."""
    high, low = guests
    job = low.spawn(load)
    low.check("sleep 1")
    before, begun = device_us(lab), time.monotonic()
    waits = waits_of(high, seconds)
    used_us, lasted_us = device_us(lab)[2] - before[2], (time.monotonic() - begun) * 1e6
    if job.done():
        raise RuntimeError(f"vm2 ended too early: {job.wait()}")
    job.kill()
    job.wait(60)
    return waits | {"vm2_device_percent": round(100 * used_us / lasted_us, 1)}


def allowed_us(alone):
    """{key: the longest wait}: a tenth more than alone, and a grant."""
    return {key: round(1.1 * alone[key] + GRANT_MS * 1000, 3)
            for key in ("ping_poll_p99_us", "launch_sync_p99_us")}


def wait_problems(found):
    """Of what is never longer than a grant."""
    return [f"vm1's {key} {name.replace('_', ' ')} is {found[name][key]} us, allowed are {limit}"
            for name in found if name.startswith("beside_") and name != "beside_long_kernels"
            for key, limit in found["allowed_us"].items() if found[name][key] > limit]


def latency(arguments):
    """VM 1's waits, alone and beside VM 2, under the mediator's usual settings."""
    seconds = arguments.bench_seconds
    with lab_of(arguments.double) as lab:
        lab.start()
        guests = lab.boot(1, 2)
        found = {"grant_ms": GRANT_MS, "alone": waits_of(guests[0], seconds)}
        for name, load in saturating(2 * seconds + 60).items():
            found[f"beside_{name}"] = waits_beside(lab, guests, load, seconds)
    found["allowed_us"] = allowed_us(found["alone"])
    found["problems"] = wait_problems(found)
    return found


# --- who has how much -----------------------------------------------------------------------------


def percents(before, after):
    """{vm: its part of the device time that all used between two looks}"""
    used = {vm: after[vm] - before[vm] for vm in before}
    return {vm: round(100 * one / max(1, sum(used.values())), 2) for vm, one in used.items()}


def share_of(lab, guests, kernels_us, seconds):
    """{"vm1_percent", ...}, while each guest has more of its kernels to run than it can."""
    jobs = [guest.spawn(f"vgpu-load saturate {kernel_us} {seconds + 60}")
            for guest, kernel_us in zip(guests, kernels_us)]
    time.sleep(2)
    before = device_us(lab)
    time.sleep(seconds)
    after = device_us(lab)
    for job in jobs:
        if job.done():
            raise RuntimeError(f"a guest's load ended too early: {job.wait()}")
        job.kill()
        job.wait(60)
    return {f"vm{vm}_percent": percent for vm, percent in percents(before, after).items()} | {
        "kernels_us": list(kernels_us)}


def share_problems(found):
    return [f"{name}: vm{vm} has {found[name][f'vm{vm}_percent']} % of the device's time, "
            f"expected {weight} +- {SHARE_SLACK}" for name in ("alike", "unlike")
            for vm, weight in WEIGHTS.items()
            if abs(found[name][f"vm{vm}_percent"] - weight) > SHARE_SLACK]


def shares(arguments):
    vms = {vm: ("A", "medium") for vm in WEIGHTS}
    seconds = 2 * arguments.bench_seconds
    with lab_of(arguments.double, vms, weights=WEIGHTS, policy="wfq") as lab:
        lab.start()
        guests = lab.boot()
        found = {"weights": list(WEIGHTS.values()), "seconds": seconds,
                 "alike": share_of(lab, guests, (SHORT_US, SHORT_US), seconds),
                 "unlike": share_of(lab, guests, (SHORT_US, LONG_US), seconds)}
    found["problems"] = share_problems(found)
    return found


# --- all ------------------------------------------------------------------------------------------


def summary(found):
    answers, waits, parts = (found[key] for key in ("answers_and_order", "latency", "shares"))
    total = sum(sum(counts.values()) for counts in answers["answers"].values())
    long_ones = sum(turn["longer_than_a_grant"] for turn in answers["turns"].values())
    turns = sum(turn["turns"] for turn in answers["turns"].values())
    p99 = ", ".join(f"{name.replace('_', ' ')} {waits[name]['launch_sync_p99_us']:.0f} us"
                    for name in waits if name == "alone" or name.startswith("beside_"))
    return (f"4 VMs, {answers['seconds']:.0f} s: {total} answers, {turns} turns "
            f"({answers['turns_while_others_waited']} while others waited, {long_ones} longer than "
            f"a grant), {len(answers['problems'])} problems; high priority's launch and its end, "
            f"p99: {p99}, allowed {waits['allowed_us']['launch_sync_p99_us']:.0f} us; weights 75 "
            f"and 25: {parts['alike']['vm1_percent']} % and {parts['alike']['vm2_percent']} % of "
            f"the time, of unlike kernels {parts['unlike']['vm1_percent']} % and "
            f"{parts['unlike']['vm2_percent']} %; Xids: {found['xids']['new']}")


def xids_since(before):
    """What the kernel's log had, and has more."""
    after = machine.xids()
    new = None if before is None or after is None else after[len(before):]
    return {"before": None if before is None else len(before),
            "after": None if after is None else len(after), "new": new}


def problems_of(found, double):
    problems = list(found["answers_and_order"]["problems"])
    if not double:  # on a double nothing is to be learned of time
        problems += found["latency"]["problems"] + found["shares"]["problems"]
        problems += [f"Xids in the kernel's log: {found['xids']['new']}"] * bool(
            found["xids"]["new"])
    return problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--bench-seconds", type=int, default=5)
    parser.add_argument("--double", action="store_true")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("vms.json"))
    arguments = parser.parse_args()
    process.install_cleanup()
    xids = machine.xids()
    found = {"machine": machine.describe(), "answers_and_order": answers_and_order(arguments),
             "latency": latency(arguments), "shares": shares(arguments)}
    found["xids"] = xids_since(xids)
    arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    problems = problems_of(found, arguments.double)
    for problem in problems[:PROBLEMS_TOLD]:
        print(problem)
    print(summary(found))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
