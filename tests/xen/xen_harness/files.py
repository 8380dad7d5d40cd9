# SPDX-License-Identifier: Apache-2.0
"""Files in and out of a machine that has an agent, as text through its commands."""

import base64
import shlex

STEP_TIMEOUT_S = 180  # for what may block, in a machine whose processor is translated
CHUNK_BYTES = 24576


def put(machine, data, path):
    """Makes the file `path` with these bytes in a machine that has an agent."""
    quoted = shlex.quote(str(path))
    machine.check(f": >{quoted}", STEP_TIMEOUT_S)
    for at in range(0, len(data), CHUNK_BYTES):
        text = base64.encodebytes(data[at:at + CHUNK_BYTES]).decode()
        machine.check(f"base64 -d >>{quoted} <<END\n{text}END\n", STEP_TIMEOUT_S)


def get(machine, path):
    """The bytes of its file `path`."""
    return base64.b64decode(machine.check(f"base64 {shlex.quote(str(path))}", STEP_TIMEOUT_S))
