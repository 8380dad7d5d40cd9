# SPDX-License-Identifier: Apache-2.0
"""Requests from guests, each with operands of its own, and what became of them."""

import json
import sys

from . import paths

sys.path.insert(0, str(paths.REPOSITORY / "demo"))

from order import Request, answer_fits, answer_problems, order_problems  # noqa: E402

__all__ = ["Request", "answer_fits", "answer_problems", "order_problems", "spawn_loop",
           "requests_of", "sum_command"]


def sum_command(vm_id, number):
    """Two numbers that no other request of the test has."""
    return f"{vm_id * 100000 + number}:{number * 7 + vm_id}"


def spawn_loop(guest, commands, timeout=180, options=""):
    """The guest sends one command after the other with vgpu-client."""
    words = " ".join(f"'{command}'" for command in commands)
    return guest.spawn(f"for command in {words}; do vgpu-client --json --timeout {timeout} "
                       f"--channel {guest.channel} {options} \"$command\" || echo \"status $?\" >&2; done")


def requests_of(output):
    """What the guest's vgpu-client wrote down, in order."""
    found = []
    for line in output.splitlines():
        if line.startswith("{"):
            record = json.loads(line)
            if "request" in record:
                found.append(Request.from_client(line))
    return found
