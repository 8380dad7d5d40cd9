# SPDX-License-Identifier: Apache-2.0
"""The programs `xe` and `xl` of toolstack_support.py: what runs in them.

Few imports: a test may start one of them a dozen times.
"""

import json
import os
import re
import sys
import time

TRANSCRIPTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "transcripts")


def read(path):
    with open(path) as file:
        return file.read()


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


class Entry:
    def __init__(self, name):
        self.name = name
        self.sources = []
        self.command = None
        self.output = []
        self.problem = []
        self.status = 0

    def argv(self, **values):
        return [word.format(**values) for word in self.command.split(" ")[1:]]

    def text(self, **values):
        return "".join(line.format(**values) + "\n" for line in self.output)


def transcript(name):
    """{name: Entry} of transcripts/NAME.txt."""
    found = {}
    for line in read(os.path.join(TRANSCRIPTS, f"{name}.txt")).splitlines():
        mark, rest = line[:1], line[2:]
        if mark in ("", "#"):
            continue
        if mark == "=":
            entry = found[rest] = Entry(rest)
        elif mark == "@":
            entry.sources.append(rest)
        elif mark == "$":
            entry.command = rest
        elif mark == ">":
            entry.output.append(rest)
        elif mark == "!":
            entry.problem.append(rest)
        elif mark == "?":
            entry.status = int(rest)
        else:
            raise ValueError(f"{name}.txt: {line!r}")
    return found


class _Call:
    """One call of a fake: which command it is, and its answer."""

    def __init__(self, directory, name):
        self.directory = directory
        self.name = name
        self.entries = transcript(name)
        self.argv = sys.argv[1:]
        self.state = json.loads(read(f"{directory}/state.json"))
        calls = f"{directory}/calls.json"
        all_calls = (json.loads(read(calls)) if os.path.exists(calls) else []) + [self.argv]
        write(calls, json.dumps(all_calls))
        self.number = len(all_calls)

    def save(self):
        write(f"{self.directory}/state.json", json.dumps(self.state))

    def fail_if_told(self):
        if self.number in self.state.get("fail_at", []) or \
                self.number >= self.state.get("fail_from", 1 << 30):
            print(f"Error: {self.name} was told to fail at call {self.number}", file=sys.stderr)
            sys.exit(1)

    def match(self, name):
        """The values of {words} when the command is that one, else None."""
        words = self.entries[name].command.split(" ")[1:]
        if len(words) != len(self.argv):
            return None
        found = {}
        for word, argument in zip(words, self.argv):
            parts = re.split(r"\{(\w+)\}", word)
            pattern = "".join(re.escape(part) if i % 2 == 0 else f"(?P<{part}>.+)"
                              for i, part in enumerate(parts))
            match = re.fullmatch(pattern, argument)
            if match is None:
                return None
            found.update(match.groupdict())
        return found

    def answer(self, entry, /, **values):
        entry = self.entries[entry]
        sys.stdout.write(entry.text(**values))
        sys.stderr.write("".join(line.format(**values) + "\n" for line in entry.problem))
        sys.exit(entry.status)

    def unexpected(self):
        with open(f"{self.directory}/unexpected", "a") as file:
            file.write(f"{self.argv}\n")
        sys.exit(97)


# --- xe ---------------------------------------------------------------------------------


def platform_text(vm):
    return "; ".join(f"{key}: {value}" for key, value in vm["platform"].items())


def main_xe(directory):
    """VMs: {"uuid", "name", "state", "platform": {...}, "hangs": seconds at shutdown}."""
    call = _Call(directory, "xe")
    vms = {vm["uuid"]: vm for vm in call.state["vms"]}
    call.fail_if_told()
    if call.match("vm-list") is not None:
        for vm in call.state["vms"]:
            sys.stdout.write(call.entries["vm-list"].text(**{**vm, "platform": platform_text(vm)}))
        sys.exit(0)
    uuid = next((word[5:] for word in call.argv if word.startswith("uuid=")), None)
    if uuid is None:
        call.unexpected()
    if uuid not in vms:
        call.answer("no-such-uuid", uuid=uuid)
    _xe_vm(call, vms[uuid])
    call.unexpected()


def _xe_vm(call, vm):
    if call.match("power-state"):
        call.answer("power-state", **vm)
    if call.match("platform"):
        call.answer("platform", platform=platform_text(vm))
    if call.argv[0] == "vm-param-set":
        for word in call.argv[2:]:
            found = re.fullmatch(r"platform:(vgpu-\w+)=(\w+)", word)
            if found is None:
                call.unexpected()
            vm["platform"][found[1]] = found[2]
            if call.state.get("set_stops_after") == found[1]:  # keys are set one by one
                call.save()
                print("Error: the connection was lost", file=sys.stderr)
                sys.exit(1)
        call.save()
        sys.exit(0)
    if found := call.match("param-remove"):
        if found["key"] not in vm["platform"]:
            print(f"Error: Key {found['key']} not found in map", file=sys.stderr)
            sys.exit(1)
        del vm["platform"][found["key"]]
        call.save()
        sys.exit(0)
    if call.match("start"):
        _xe_power(call, vm, "halted", "running")
    if call.match("shutdown"):
        if vm.get("hangs"):
            time.sleep(vm["hangs"])
        _xe_power(call, vm, "running", "halted")
    if call.match("shutdown-force"):
        vm["state"] = "halted"
        call.save()
        sys.exit(0)


def _xe_power(call, vm, expected, after):
    if vm["state"] != expected:
        call.answer("bad-power-state", expected=expected, **vm)
    vm["state"] = after
    call.save()
    sys.exit(0)


# --- xl ---------------------------------------------------------------------------------


DOM0 = {"uuid": "00000000-0000-0000-0000-000000000000", "name": "Domain-0", "domain": 0,
        "letters": "r-----"}
NEW_UUID = "0f0f0f0f-0000-4000-8000-00000000000f"


def main_xl(directory):
    """VMs that run: {"uuid", "name", "domain", "letters", "hangs": seconds at shutdown,
    "lingers": in how many lists it still is after that, "ends_itself": just before it is told
    to}."""
    call = _Call(directory, "xl")
    call.fail_if_told()
    for name in ["vm-list", "list"]:
        if call.match(name) is not None:
            _xl_list(call, call.entries[name])
    if found := call.match("create"):
        text = read(found["file"])
        uuid = re.search(r"^uuid *= *['\"](.*?)['\"]", text, re.MULTILINE)
        call.state["vms"].append({
            "name": re.search(r"^name *= *['\"](.*?)['\"]", text, re.MULTILINE)[1],
            "uuid": uuid[1] if uuid else NEW_UUID, "domain": 9, "letters": "r-----"})
        call.state["created_with"] = text
        call.save()
        call.answer("create", **found)
    if found := call.match("dry-run"):
        call.state["asked_with"] = read(found["file"])
        call.save()
        call.answer("dry-run", **found)
    for name in ["shutdown", "destroy"]:
        if found := call.match(name):
            _xl_end(call, name, int(found["domain"]))
    call.unexpected()


def _xl_list(call, entry):
    # The heading once, then a line a domain.
    *heading, line = entry.output
    print("\n".join(heading + [line.format(**vm) for vm in [DOM0, *call.state["vms"]]]))
    for vm in [vm for vm in call.state["vms"] if vm["letters"] == "---s--" and "lingers" in vm]:
        vm["lingers"] -= 1
        if vm["lingers"] == 0:
            call.state["vms"].remove(vm)
    call.save()
    sys.exit(0)


def _xl_end(call, name, domain):
    vm = next((vm for vm in call.state["vms"] if vm["domain"] == domain), None)
    if vm is None:
        call.unexpected()
    if name == "shutdown" and vm.get("hangs"):
        time.sleep(vm["hangs"])
    if name == "shutdown" and vm.get("lingers"):
        vm["letters"] = "---s--"
    else:
        call.state["vms"].remove(vm)
    call.save()
    if vm.get("ends_itself"):
        call.answer("no-such-domain", domain=domain)
    call.answer(name, domain=domain)
