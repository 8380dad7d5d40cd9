# SPDX-License-Identifier: Apache-2.0
"""What the tests of vgpu-admin share: a host of its own in a directory.

Nothing of the machine is looked at: the configuration names share, database and
sockets below the directory, and no toolstack but the one that a test makes.
"""

import contextlib
import json
import os
import pathlib
import pty
import re
import select
import sqlite3
import stat
import subprocess
import textwrap
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("VGPU_BUILD_DIR", REPOSITORY / "build")).resolve()
ADMIN = BUILD / "src/admin/vgpu-admin"
MEDIATOR = BUILD / "src/mediator/vgpu-mediator"
TIMEOUT_S = 180
UUID = "5f7c0c2e-9d2a-4c39-8a52-0d1f2b3c4d5e"
OTHER_UUID = "11111111-2222-4333-8444-555555555555"

OK, FAILED, USAGE, NOT_FOUND, EXISTS, DATABASE, NOT_RUNNING, DECLINED, CHECKS_FAILED = range(9)
NAMES = ["ok", "failed", "usage", "not-found", "exists", "database", "not-running", "declined",
         "checks-failed"]


class Host:
    """A configuration, a share, a database."""

    def __init__(self, directory, **admin_keys):
        self.directory = pathlib.Path(directory)
        self.share = self.directory / "share"
        self.database = self.directory / "vgpu.db"
        self.config = self.directory / "mediator.conf"
        self.environment = dict(os.environ, LC_ALL="C")
        self.environment.pop("SUDO_USER", None)
        self.configure(**admin_keys)

    def configure(self, channels="file window", **admin_keys):
        admin_keys = {"toolstack": "none", **admin_keys}
        lines = "".join(f"{key} = {value}\n" for key, value in admin_keys.items())
        self.config.write_text(f"[mediator]\nshare = {self.share}\n"
                               f"state_dir = {self.directory}/state\n"
                               f"database = {self.database}\nchannels = {channels}\n"
                               f"[admin]\n{lines}")

    def run(self, command, *words, options=(), **run_options):
        return subprocess.run([str(ADMIN), *map(str, options), command, "--config",
                               str(self.config), *map(str, words)], text=True,
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S,
                              env=self.environment, check=False, **run_options)

    def good(self, command, *words):
        """What it prints; it must succeed, and say nothing but that the mediator is down."""
        done = self.run(command, *words)
        assert done.returncode == OK, done.stderr
        assert re.sub(r"^vgpu-admin: note: the mediator is not running .*\n", "", done.stderr,
                      flags=re.MULTILINE) == "", done.stderr
        return done.stdout

    def json(self, command, *words):
        done = self.run(command, "--json", *words)
        assert (done.returncode, done.stderr) == (OK, "")
        assert done.stdout.count("\n") == 1
        return json.loads(done.stdout)

    def bad(self, exit_code, command, *words):
        """The message; the same in words and in JSON, and nothing changes."""
        before = self.state()
        done = self.run(command, *words)
        assert (done.returncode, done.stdout) == (exit_code, ""), done
        assert done.stderr.startswith("vgpu-admin: ") and done.stderr.count("\n") == 1, done.stderr
        told = self.run(command, "--json", *words)
        assert (told.returncode, told.stdout) == (exit_code, "")
        error = json.loads(told.stderr)["error"]
        assert (error["code"], error["exit"]) == (NAMES[exit_code], exit_code)
        message = done.stderr.removeprefix("vgpu-admin: ").removesuffix("\n")
        assert error["message"] == message
        assert self.state() == before
        return message

    def bad_rows(self, exit_code, command, *words):
        """As bad(), where directories may come and go on the way."""
        before = self.state()[1:]
        done = self.run(command, *words)
        assert (done.returncode, done.stdout) == (exit_code, ""), done
        assert self.state()[1:] == before
        return done.stderr

    def state(self):
        """Rows, events and directories: what a refused command leaves as it was."""
        found = sorted(str(path.relative_to(self.share)) for path in self.share.rglob("*")
                       if path.name != ".retired") if self.share.is_dir() else []
        if not self.database.exists():
            return [found]
        with contextlib.closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)) as rows:
            return [found, list(rows.iterdump())]

    def vm(self, name):
        return self.json("show-vm", name)["vm"]

    def retired(self):
        place = self.share / ".retired"
        return sorted(path.name for path in place.iterdir()) if place.exists() else []

    def ask(self, answer, command, *words):
        """Runs it at a terminal where a person types `answer`: (exit code, all output)."""
        leader, follower = pty.openpty()
        process = subprocess.Popen([str(ADMIN), command, "--config", str(self.config),
                                    *map(str, words)], stdin=follower, stdout=follower,
                                   stderr=follower, env=self.environment)
        os.close(follower)
        try:
            os.write(leader, answer.encode())
            output = b""
            while select.select([leader], [], [], TIMEOUT_S)[0]:
                try:
                    part = os.read(leader, 4096)
                except OSError:  # the other end is closed
                    break
                if not part:
                    break
                output += part
            return process.wait(TIMEOUT_S), output.decode().replace("\r\n", "\n")
        finally:
            process.kill()
            process.wait()
            os.close(leader)


def script(path, text):
    """A program made of lines of shell."""
    path.write_text("#!/bin/sh\n" + textwrap.dedent(text))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class FakeXl:
    """A host with xl: it keeps which domains run, notes each call, and fails on demand.

    It knows domain `web1`.  fail("create") lets the next call of a kind fail; "dry-run" is
    `create -n`.
    """

    def __init__(self, host, running=True, device=True):
        self.directory = host.directory / "xl"
        self.configs = self.directory / "etc"
        self.configs.mkdir(parents=True)
        self.log = self.directory / "log"
        self.log.touch()
        self.running = self.directory / "running"
        if running:
            self.running.touch()
        self.config = self.configs / "web1.cfg"
        arguments = ('device_model_args_hvm = [ "-device", '
                     '"vgpu-stub,vm_id=7,pool_id=A,priority=medium" ]\n')
        self.config.write_text(f'name = "web1"\nuuid = "{UUID}"\n' + (arguments if device else ""))
        script(self.directory / "xl", f"""\
            here={self.directory}
            what=$1
            test "$1 $2" != "create -n" || what=dry-run
            echo "$*" >>$here/log
            if test -s $here/fail-$what; then
                read after times <$here/fail-$what
                if test $after -gt 0; then
                    echo $((after - 1)) $times >$here/fail-$what
                else
                    test $times -gt 1 && echo 0 $((times - 1)) >$here/fail-$what ||
                        rm $here/fail-$what
                    echo "xl: $what does not work today" >&2
                    exit 1
                fi
            fi
            case $what in
            dry-run) cat "$3" >$here/asked ;;
            vm-list)
                echo "UUID                                  ID    name"
                echo "00000000-0000-0000-0000-000000000000  0    Domain-0                      "
                test ! -e $here/running || echo "{UUID}  3    web1                          "
                ;;
            list)
                echo "Name                                        ID   Mem VCPUs      State   Time(s)"
                test ! -e $here/running || \\
                    echo "web1                                         3   512     1     -b----       1.0"
                ;;
            shutdown | destroy) rm -f $here/running ;;
            create) touch $here/running ;;
            esac
            """)
        host.environment.update(VGPU_TOOLSTACK_PATH=f"{self.directory}:/usr/bin:/bin",
                                VGPU_XL_DIRECTORY=str(self.configs))
        host.configure(toolstack="xl")

    def fail(self, command, times=1, after=0):
        """`after` so many that work."""
        (self.directory / f"fail-{command}").write_text(f"{after} {times}\n")

    def calls(self):
        """What changed something."""
        return [line for line in self.log.read_text().splitlines()
                if line.split()[0] not in ("vm-list", "list") and not line.startswith("create -n ")]

    def device(self):
        return re.search(r'"(vgpu-stub,[^"]*)"', self.config.read_text())[1]


class Running:
    """A mediator on the host's configuration, as a context."""

    def __init__(self, host, config=None):
        self.host = host
        self.config = config or host.config
        self.log = host.directory / "mediator.log"

    def __enter__(self):
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen([MEDIATOR, "--config", self.config],
                                            stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.wait(lambda: "READY" in self.log.read_text(), "is not ready")
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            assert self.process.wait(TIMEOUT_S) == 0, self.log.read_text()
        finally:
            self.process.kill()
            self.process.wait()

    def wait(self, condition, what):
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"the mediator {what}:\n{self.log.read_text()}"
            time.sleep(0.01)

    def ask(self, vm_id, line):
        """The answer to a request of this VM, as its guest would ask."""
        directory = self.host.share / f"vm{vm_id}"
        response = directory / "response.txt"
        self.wait(response.exists, f"makes no {response}")
        response.write_text("0:Ready\n")
        (directory / "request.new").write_text(line + "\n")
        (directory / "request.new").rename(directory / "request.txt")
        self.wait(lambda: response.read_text()[:2] in ("1:", "2:"), "does not answer")
        return response.read_text().strip()
