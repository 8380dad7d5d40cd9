# SPDX-License-Identifier: Apache-2.0
"""Toolstacks that are not real: `xe` and `xl` as programs, and who calls them.

A fake takes the exact commands of its transcript (transcripts/*.txt) and no other, keeps
its VMs in a file, and fails where a test says.  A command that it does not know is an
error of the test, noted in `unexpected`.
"""

import json
import os
import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("VGPU_BUILD_DIR", REPOSITORY / "build")).resolve()
PROBE = BUILD / "tests/func/toolstack_probe"
WAIT_S = 90


class Fake:
    """The program NAME in a directory of its own; `state` is its world.

    fail_at: the calls (1, 2, ...) that fail, before they change anything; fail_from: all
    from there on.
    """

    def __init__(self, directory, name):
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.program = self.directory / name
        # A shebang of our own Python: a fake's environment is the product's.
        self.program.write_text(
            f"#!{sys.executable} -BIS\nimport sys\n"
            f"sys.path.insert(0, {str(REPOSITORY / 'tests/func')!r})\n"
            f"import fake_toolstack\nfake_toolstack.main_{name}({str(self.directory)!r})\n")
        self.program.chmod(0o755)
        self.save({"vms": []})

    def load(self):
        return json.loads((self.directory / "state.json").read_text())

    def save(self, state):
        path = self.directory / "state.json"
        path.with_suffix(".new").write_text(json.dumps(state))
        path.with_suffix(".new").rename(path)

    def change(self, **values):
        self.save({**self.load(), **values})

    def calls(self):
        return json.loads((self.directory / "calls.json").read_text()) \
            if (self.directory / "calls.json").exists() else []

    def unexpected(self):
        path = self.directory / "unexpected"
        return path.read_text() if path.exists() else ""

    def probe(self, name, *arguments, **environment):
        """(status, JSON) of src/toolstack/."""
        done = subprocess.run(
            [PROBE, "-t", name, *map(str, arguments)], stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=WAIT_S, check=False,
            env={"PATH": "/nonexistent", "VGPU_TOOLSTACK_PATH": str(self.directory), **environment})
        assert done.stderr == "", done.stderr
        assert self.unexpected() == ""
        return done.returncode, json.loads(done.stdout) if done.stdout else None
