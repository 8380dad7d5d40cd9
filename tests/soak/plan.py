# SPDX-License-Identifier: Apache-2.0
"""What a soak does and when: its arguments, its VMs, its faults.

All of it follows from the arguments; nothing here starts anything.
"""

import argparse
import os
import random

PRIORITIES = ["low", "medium", "high"]
POOLS = {"A": "cpu:0", "B": "cpu:1"}
# Boot, load and checks: a shorter one could not tell what it is there to tell.
DURATION_MIN_S, DURATION_MAX_S = 60, 7 * 24 * 3600
VMS_MIN, VMS_MAX = 2, 60
BOOT_SHARE = 0.75  # of the duration, at most; the load has the rest
END_RESERVE_S = 20  # before the end: the loads end in order, all is counted
FAULT_EVERY_S = 2.5
RESET_EVERY_S = 45
FAULTS_UNTIL = 0.95  # of the load
RESETS_UNTIL = 0.6   # a guest takes its time to be up again beside so many others
FAULTS = ["worker"] * 3 + ["client", "file_worker"]
FILE_VMS_EVERY = 5  # of the VMs, one in so many uses its directory too


def _number(name, least, most):
    def parse(text):
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(
                f"'{text}' is no {name}; expected a whole number from {least} to {most}")
        return int(text)
    return parse


def arguments(argv=None):
    """Errors end the program with status 2 and say what was expected."""
    parser = argparse.ArgumentParser(
        prog="soak", description="Many real VMs, mixed load, faults, one restart of the mediator.")
    parser.add_argument("--duration", metavar="SECONDS", default=1800,
                        type=_number("duration in seconds", DURATION_MIN_S, DURATION_MAX_S),
                        help="all of it, boot included (%(default)s)")
    parser.add_argument("--vms", metavar="N", default=30, help="real guests (%(default)s)",
                        type=_number("number of VMs", VMS_MIN, VMS_MAX))
    parser.add_argument("--seed", metavar="N", type=_number("seed", 0, 2**31 - 1),
                        default=os.environ.get("VGPU_TEST_SEED", "20240607"),
                        help="of all that is random (VGPU_TEST_SEED, or %(default)s)")
    parser.add_argument("--output", metavar="DIR", default="build/soak",
                        help="where the report goes (%(default)s)")
    parser.add_argument("--plan", action="store_true", help="print what would be done, and end")
    return parser.parse_args(argv)


def command(options):
    """What repeats it, but for what chance does."""
    return (f"scripts/soak --duration {options.duration} --vms {options.vms} "
            f"--seed {options.seed}")


def vms(count):
    """{vm_id: (pool, priority)}: each priority in each pool."""
    return {vm_id: (list(POOLS)[vm_id % len(POOLS)], PRIORITIES[vm_id // 2 % len(PRIORITIES)])
            for vm_id in range(1, count + 1)}


def file_vms(count):
    """Those that send requests through their directory as well."""
    return list(range(1, count + 1, FILE_VMS_EVERY))


def sessions_of(vm_id):
    """How many sessions the VM keeps open."""
    return 1 + vm_id % 2


def faults(seed, load_s):
    """[(second of the load, kind)], rising: worker, file_worker, client, reset; one
    mediator, halfway.
    """
    rng = random.Random(seed)
    made = [(load_s / 2, "mediator")]
    for every, until, kinds in [(FAULT_EVERY_S, FAULTS_UNTIL, FAULTS),
                                (RESET_EVERY_S, RESETS_UNTIL, ["reset"])]:
        at = every / 2
        while at < load_s * until:
            made.append((at, rng.choice(kinds)))
            at += every * rng.uniform(0.5, 1.5)
    return sorted(made)


def text(options):
    """The plan for people.  How long the load lasts depends on the boot: the most is said."""
    load_s = options.duration - END_RESERVE_S
    kinds = [kind for _, kind in faults(options.seed, load_s)]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds)))
    pools = [pool for pool, _ in vms(options.vms).values()]
    return "\n".join([
        f"soak: {options.vms} VMs, " + ", ".join(f"{pools.count(pool)} in pool {pool}"
                                                 for pool in POOLS),
        f"soak: {len(file_vms(options.vms))} of them use their directory too",
        f"soak: {options.duration} s, load at most {load_s} s, seed {options.seed}",
        f"soak: faults at most: {counts}"])
