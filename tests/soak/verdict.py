# SPDX-License-Identifier: Apache-2.0
"""Was all right?  Checks of what a soak has gathered; each returns a list of problems.

    an account   a letter an operation, as the guest saw it (tests/vm/guest/window-load.c)
    executions   how often a worker began each operation, from the workers' own log
    samples      [(second, KiB)] of one life of the mediator
"""

import re
import statistics

WARM_UP_SHARE = 0.25  # of a life: what is made on first use is there then
SAMPLES_MIN = 8
GROWTH_MAX_KIB = 2048
EXAMPLES = 3

# A worker that is killed while it writes a line leaves the beginning of one.
_WINDOW = re.compile(rb"\d+ vm=(\d+) slot=\d+ generation=\d+ sequence=\d+ cookie=(\d+) "
                     rb"opcode=\d+$")
_FILE = re.compile(rb"\d+ vm=(\d+) sequence=(\d+) execution=\d+$")


class Executions:
    """Of windows by load: a byte an operation.  Of files by (vm, sequence)."""

    def __init__(self, lines, loads):
        """loads: {number: vm_id}; the number stands in the upper half of a cookie."""
        self.loads = loads
        self.counts = {number: bytearray() for number in loads}
        self.files = {}
        self.torn = self.others = 0
        for line in lines:
            self._add(line.rstrip(b"\n"))

    def _add(self, line):
        found = _WINDOW.search(line)
        if found:
            self._add_window(int(found[1]), int(found[2]))
            return
        found = _FILE.search(line)
        if found:
            key = int(found[1]), int(found[2])
            self.files[key] = self.files.get(key, 0) + 1
        else:
            self.torn += 1

    def _add_window(self, vm_id, cookie):
        number, at = cookie >> 32, (cookie & 0xFFFFFFFF) - 1
        if self.loads.get(number) != vm_id or at < 0:
            self.others += 1  # the mediator's own, and probes
            return
        counts = self.counts[number]
        if at >= len(counts):
            counts.extend(bytes(at + 1 - len(counts) + len(counts) // 2))
        counts[at] = min(counts[at] + 1, 255)

    def begun(self, number):
        """How many operations of that load were begun."""
        return len(self.counts[number]) - self.counts[number].count(0)


def _places(what, places):
    if not places:
        return []
    return [f"{len(places)} {what}, such as number {', '.join(map(str, places[:EXAMPLES]))}"]


def account_problems(number, account, counts):
    """account: b"" where a killed client left none; then only the host's side is judged."""
    problems = _places("operations ran twice",
                       [at for at, count in enumerate(counts) if count > 1])
    if account:
        never = [at for at, letter in enumerate(account)
                 if letter == ord("o") and (at >= len(counts) or counts[at] == 0)]
        problems += _places("operations have no answer",
                            [at for at, letter in enumerate(account) if letter == ord("u")])
        problems += _places("answers are of operations that never ran", never)
        problems += _places("operations ran that nobody submitted",
                            [at for at in range(len(account), len(counts)) if counts[at]])
    return [f"load {number}: {problem}" for problem in problems]


def letters(accounts):
    """{letter: how many} over all accounts."""
    found = {}
    for account in accounts:
        for letter in set(account):
            found[chr(letter)] = found.get(chr(letter), 0) + account.count(letter)
    return found


def file_problems(executions, reported):
    """reported: {(vm, sequence)} that the mediator's log names as run again."""
    return [f"vm{vm_id}: request {sequence} ran {count} times, and the log does not say why"
            for (vm_id, sequence), count in sorted(executions.files.items())
            if count > 1 and (vm_id, sequence) not in reported]


def idle_problems(begun, right, faults):
    """What did not happen cannot have gone well.

    begun: {vm: operations through its window}; right: {vm: right answers through its
    directory}; faults: {kind: how many}.
    """
    return ([f"vm{vm_id}: nothing ran through its window" for vm_id, count in begun.items()
             if count == 0]
            + [f"vm{vm_id}: nothing was answered through its directory"
               for vm_id, count in right.items() if count == 0]
            + [f"faults: there was none of kind {kind}" for kind, count in faults.items()
               if count == 0])


def growth_kib(samples):
    """Median of the last quarter less that of the one after the warm-up; None: too few samples."""
    if len(samples) < SAMPLES_MIN:
        return None
    first, last = samples[0][0], samples[-1][0]
    at = first + (last - first) * WARM_UP_SHARE
    early = [kib for second, kib in samples if at <= second <= at + (last - first) * 0.25]
    late = [kib for second, kib in samples if second >= last - (last - first) * 0.25]
    return statistics.median(late) - statistics.median(early) if early else None


def memory_problems(lives):
    """lives: the samples of each life of the mediator."""
    problems = []
    for number, samples in enumerate(lives, 1):
        grown = growth_kib(samples)
        if grown is None:
            problems.append(f"memory: life {number} of the mediator has {len(samples)} samples, "
                            f"{SAMPLES_MIN} needed: too short to be judged")
        elif grown > GROWTH_MAX_KIB:
            problems.append(f"memory: the mediator grew by {grown:.0f} KiB in life {number}, "
                            f"{GROWTH_MAX_KIB} allowed")
    return problems


def leak_problems(before, after):
    """before, after: {"descriptors": {what: how many}, "files": [...], "workers": [...]} at rest."""
    problems = []
    for what in sorted(set(before["descriptors"]) | set(after["descriptors"])):
        had, has = (counts["descriptors"].get(what, 0) for counts in (before, after))
        if has > had:
            problems.append(f"descriptors: the mediator holds {has} of {what} at rest, "
                            f"{had} before the load")
    problems += [f"files: {name} is left" for name in
                 sorted(set(after["files"]) - set(before["files"]))]
    problems += [f"workers: {pid} is left" for pid in after["workers"]]
    return problems
