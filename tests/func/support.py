# SPDX-License-Identifier: Apache-2.0
"""What the functional tests share: a mediator with its log, a VM's directory.

Nothing waits for a fixed time.  A test waits for an event in the mediator's JSON
log or for what a file holds, up to a deadline that only a failure reaches.
"""

import contextlib
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time

import pytest

import window_peer

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("VGPU_BUILD_DIR", REPOSITORY / "build")).resolve()
MEDIATOR = BUILD / "src/mediator/vgpu-mediator"
WORKER = BUILD / "src/exec/vgpu-worker"

WAIT_S = 90  # only a failure takes so long
LOOK_S = 0.003

# The same test on each channel; see Mediator.
both_channels = pytest.mark.parametrize("channel", ["file", "window"])

READY = "0:Ready"
PROBE = 4000000000  # and up: VMs that only find out what the mediator has seen
FOREVER_MS = 60000


@functools.cache
def is_sanitized():
    """Whether the build has a sanitizer.  Each step is slow there and tells of each crash, memory
    that was freed is kept, and more system calls are made."""
    program = MEDIATOR.read_bytes()
    return b"__asan_init" in program or b"__tsan_init" in program


def wait_until(condition, what, timeout=WAIT_S):
    """Returns what `condition` returns as soon as that is true; fails with `what`."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout} s: {what() if callable(what) else what}")
        time.sleep(LOOK_S)


def run(*arguments, **options):
    """Runs the mediator to its end: for what fails or only prints."""
    return subprocess.run([MEDIATOR, *map(str, arguments)], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=WAIT_S, check=False, **options)


def has_fault_points():
    return "fault points" in run("--version").stdout


def is_worker(pid):
    """A worker that lives: a zombie only waits for its parent."""
    try:
        status = pathlib.Path(f"/proc/{pid}/stat").read_text()
        command = pathlib.Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rsplit(")", 1)[1].split()[0] not in "ZX" and "vgpu-worker" in command


class Vm:
    """A VM's directory, as its client sees it."""

    def __init__(self, share, vm_id, pool, priority):
        self.vm_id = vm_id
        self.pool = pool
        self.priority = priority
        self.directory = pathlib.Path(share) / f"vm{vm_id}"
        self.request = self.directory / "request.txt"
        self.response = self.directory / "response.txt"
        self.command = self.directory / "command.txt"

    def wait_directory(self):
        """Until the mediator has made it and what belongs into it."""
        wait_until(lambda: self.response.exists() and self.request.exists(),
                   f"vm{self.vm_id}'s directory")

    def line(self, command):
        return f"{self.pool}:{self.priority}:{self.vm_id}:{command}"

    def put(self, command):
        """As `echo LINE > request.txt` does."""
        self.request.write_text(self.line(command) + "\n")

    def put_raw(self, data, name="request.txt"):
        """Any bytes at all, by rename, so that they are seen whole."""
        temporary = self.directory / f".{name}.new"
        temporary.write_bytes(data)
        temporary.rename(self.directory / name)

    def put_renamed(self, command):
        self.put_raw((self.line(command) + "\n").encode())

    def ready(self):
        """What our client does before a request."""
        self.response.write_text(READY + "\n")

    def answer(self):
        """The first line of response.txt if it is an answer, else None."""
        line, newline, _ = self.response_bytes().partition(b"\n")
        return line.decode() if newline and line[:2] in (b"1:", b"2:") else None

    def read_answer(self):
        """Reads response.txt as an old client does: open, read, close."""
        with open(self.response, "rb") as file:
            return file.read()

    def response_bytes(self):
        """What a plain response.txt holds; nothing where something else stands there."""
        try:
            fd = os.open(self.response, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return b""
        try:
            return os.read(fd, 2000) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        finally:
            os.close(fd)

    def wait_answer(self, timeout=WAIT_S):
        return wait_until(self.answer, lambda: f"an answer to vm{self.vm_id}; response.txt holds "
                          f"{self.response_bytes()!r}", timeout)

    def ask(self, command, timeout=WAIT_S):
        """A whole exchange, as a good client does it."""
        self.ready()
        self.put(command)
        return self.wait_answer(timeout)

    def ask_raw(self, data, name="request.txt"):
        self.ready()
        self.put_raw(data, name)
        return self.wait_answer()


class WindowVm:
    """A VM's window, used as Vm is: one text command at a time."""

    COMMAND_AT, ANSWER_AT, ANSWER_BYTES = window_peer.ARENA, window_peer.ARENA + 4096, 1024

    def __init__(self, mediator, vm_id, pool, priority):
        self.mediator = mediator
        self.vm_id, self.pool, self.priority = vm_id, pool, priority
        self._peer = None
        self._session = None
        self._answer = None
        self._owed = False
        self._mediator_pid = None

    def session(self):
        """Open, by whatever mediator there is now."""
        if self._session is not None and self.mediator.process is None:
            return self._session  # nobody is there, the window is
        if self._session is not None and self._mediator_pid != self.mediator.process.pid:
            self._mediator_pid = self.mediator.process.pid  # a restart
            self._peer.reconnect()
        if self._session is None:
            self._mediator_pid = self.mediator.process.pid
            path = self.mediator.state / "run" / f"vm{self.vm_id}.sock"
            self._peer = window_peer.Peer(path).connect().hello()
            self._session = self._peer.open()
        return self._session

    def wait_directory(self):
        """Until the mediator has made its socket."""
        path = self.mediator.state / "run" / f"vm{self.vm_id}.sock"
        wait_until(path.exists, f"vm{self.vm_id}'s socket")

    def ready(self):
        """An answer that nobody asked for is taken and forgotten."""
        if self._owed:
            self.wait_answer()
        self._answer = None

    def put(self, command):
        data = command.encode()
        session = self.session()
        self._owed = True
        session.put(self.COMMAND_AT, data)
        session.submit(window_peer.OP_TEXT, [self.COMMAND_AT, self.ANSWER_AT,
                                             len(data) | self.ANSWER_BYTES << 32])

    def answer(self):
        """The answer if it is there, as it would stand in response.txt, else None."""
        taken = self.session().take() if self._answer is None else []
        if taken:
            (_, length, status), = taken
            self._owed = False
            text = self._session.get(self.ANSWER_AT, length).decode()
            self._answer = {window_peer.OK: f"1:{text}", window_peer.COMMAND_FAILED: f"2:{text}",
                            window_peer.DEVICE_LOST: "2:device lost",
                            window_peer.TIME_LIMIT: "2:time limit",
                            window_peer.REFUSED_STATUS: "2:refused"}[status]
            if status in (window_peer.DEVICE_LOST, window_peer.TIME_LIMIT):
                self.close()  # the next command opens a new one
        return self._answer

    def wait_answer(self, timeout=WAIT_S):
        return wait_until(self.answer, f"an answer to vm{self.vm_id}", timeout)

    def ask(self, command, timeout=WAIT_S):
        self.ready()
        self.put(command)
        return self.wait_answer(timeout)

    def close(self):
        if self._peer is not None:
            self._peer.close()
        self._peer = self._session = None

    @property
    def is_open(self):
        return self._session is not None

    put_renamed = put


class Mediator:
    """One state directory and share; start() after kill() is a restart.

    vms: {vm_id: (pool, priority)}; pools: {"A": "cpu"}; pools_mode: "shared" or
    "independent"; settings: other keys of [mediator].

    channel: which one vm() uses.  With "window" each operation is scheduled by
    itself and its turns stand in the log, so that tests of order mean the same; a
    turn's end ("returned", or "lost" with its worker) is then its "response".
    """

    def __init__(self, directory, vms, pools=None, pools_mode=None, arguments=(), channel="file",
                 **settings):
        self.channel = channel
        if channel == "window":
            settings = {"grant_ops": 1, "log_level": "debug", **settings}
        self._window_vms = {}
        self.directory = pathlib.Path(directory)
        self.share = self.directory / "share"
        self.state = self.directory / "state"
        self.log = self.directory / "log"
        self.stderr = self.directory / "stderr"
        self.execution_log = self.directory / "executions"
        self.config = self.directory / "mediator.conf"
        self.arguments = list(arguments)
        self.settings = {
            "share": self.share, "state_dir": self.state, "log": self.log, "log_format": "json",
            "worker": WORKER, "execution_log": self.execution_log, "poll_max_ms": 20,
            "worker_memory_mib": 0,  # cgroups have tests of their own, and so has this:
            "quarantine_faults": 0,
            # Long: what holds an answer for a short time says so.
            "response_hold_ms": FOREVER_MS, "unterminated_hold_ms": FOREVER_MS, "pools": pools_mode, **settings}
        self.vms = dict(vms)
        self.pools = dict(pools or {})
        self.process = None
        self.user = None
        self._events = []
        self._log_file = None
        self._rest = b""
        self._allowed = []
        self.kills = 0
        self._listings = 0
        self.write_config()

    def write_config(self):
        text = "[mediator]\n" + "".join(f"{k} = {v}\n" for k, v in self.settings.items()
                                        if v is not None)
        if "database" in self.settings:  # pools and VMs stand there
            self.config.write_text(text)
            return
        for pool, device in self.pools.items():
            text += f"[pool {pool}]\ndevice = {device}\n"
        for vm_id, (pool, priority) in self.vms.items():
            text += f"[vm {vm_id}]\npool = {pool}\npriority = {priority}\n"
        self.config.write_text(text)

    def vm(self, vm_id, pool="A", priority=1):
        pool, priority = self.vms.get(vm_id, (pool, priority))
        if self.channel == "file":
            return Vm(self.share, vm_id, pool, priority)
        if vm_id not in self._window_vms:
            self._window_vms[vm_id] = WindowVm(self, vm_id, pool, priority)
        return self._window_vms[vm_id]

    def can_run(self):
        """Whether `user` can start the programs."""
        done = subprocess.run(["setpriv", "--reuid", str(self.user), "--regid", str(self.user),
                               "--clear-groups", "test", "-x", MEDIATOR, "-a", "-x", WORKER],
                              check=False)
        return done.returncode == 0

    def own(self, path):
        """Makes a file that this test has made the mediator's user's."""
        if self.user is not None:
            os.chown(path, self.user, self.user)

    # --- life -----------------------------------------------------------------

    def launch(self, *arguments, fault=None, stdin=subprocess.DEVNULL, stdout=None):
        """Starts it and does not wait."""
        environment = dict(os.environ)
        environment.pop("VGPU_FAULT", None)
        if fault:
            environment["VGPU_FAULT"] = fault
        # Tests that are killed leave no mediator behind.
        argv = ["setpriv", "--pdeathsig", "KILL"]
        if self.user is not None:
            argv += ["--reuid", str(self.user), "--regid", str(self.user), "--clear-groups"]
        with open(self.stderr, "ab") as stderr:
            self.process = subprocess.Popen(
                [*argv, str(MEDIATOR), "--config", str(self.config), *self.arguments,
                 *map(str, arguments)], stdin=stdin, stdout=stdout or stderr, stderr=stderr,
                env=environment)
        return self

    def start(self, *arguments, **options):
        after = self.mark()
        self.launch(*arguments, **options)
        self.wait_event("ready", after=after)
        return self

    def end(self, number=signal.SIGTERM, timeout=WAIT_S):
        """Ends it in order; returns the exit status."""
        self.process.send_signal(number)
        return self.wait(timeout)

    def wait(self, timeout=WAIT_S):
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"mediator has not ended:\n{self.tail()}") from None
        self.process = None
        return status

    def stop(self, number=signal.SIGTERM):
        """Ends it in order and requires that it did."""
        status = self.end(number)
        assert status == 0, f"mediator ended with status {status}:\n{self.tail()}"
        if not any(vm.is_open for vm in self._window_vms.values()):  # those keep theirs
            self.wait_no_workers()

    def stop_but_keep_workers(self):
        """Where a worker of an earlier mediator still runs."""
        status = self.end()
        assert status == 0, f"mediator ended with status {status}:\n{self.tail()}"

    def wait_killed(self):
        """Until it has died at a fault point."""
        self.kills += 1
        status = self.wait()
        assert status == -signal.SIGKILL, f"status {status}:\n{self.tail()}"

    def read_again(self):
        """Has it read its configuration, as it is now, and waits for that."""
        self.write_config()
        after = self.mark()
        self.process.send_signal(signal.SIGHUP)
        self.wait_message("was read again", after=after)

    def pause(self):
        """Stops all its threads, until SIGCONT."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = pathlib.Path(f"/proc/{self.process.pid}/task")
        wait_until(lambda: all((task / "stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
                               for task in tasks.iterdir()), "the mediator stopped")

    def kill(self):
        self.kills += 1
        self.process.kill()
        self.process.wait()
        self.process = None

    def finish(self):
        """The end of each test: whatever it left must be in order."""
        self.close_windows()
        if self.process is not None:
            self.stop()
        self.wait_no_workers()
        errors = [entry["message"] for entry in self.events() if entry.get("level") == "error"
                  and not any(re.search(allowed, entry["message"]) for allowed in self._allowed)]
        assert not errors, f"errors in the log: {errors}"
        self.check_sanitizers()

    def close_windows(self):
        for vm in self._window_vms.values():
            vm.close()

    def check_sanitizers(self):
        text = self.stderr.read_text(errors="replace") if self.stderr.exists() else ""
        assert "Sanitizer" not in text and "runtime error" not in text, text

    def abandon(self):
        """Ends all that is left, by whatever means."""
        self.close_windows()
        if self.process is not None:
            self.kill()
        for pid in self.worker_pids():
            if is_worker(pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if self._log_file:
            self._log_file.close()

    def allow_error(self, pattern):
        """The log may hold errors that match."""
        self._allowed.append(pattern)

    # --- log ------------------------------------------------------------------

    def _read_log(self):
        while self.settings["log_format"] == "json":
            if self._log_file is None:
                if not self.log.exists():
                    return
                self._log_file = open(self.log, "rb")
            data = self._rest + self._log_file.read()
            whole, _, self._rest = data.rpartition(b"\n")
            self._events.extend(filter(None, map(self._parse, whole.splitlines())))
            # Rotated: what comes stands in the new file.
            if not self.log.exists() or self.log.stat().st_ino == os.fstat(
                    self._log_file.fileno()).st_ino:
                return
            self._log_file.close()
            self._log_file = None

    def _parse(self, line):
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            assert self.kills, f"no JSON in the log: {line!r}"
            return None  # kill -9 can cut a write(2) in two

    def mark(self):
        """A place in the log, for `after`."""
        self._read_log()
        return len(self._events)

    def events(self, event=None, after=0, **fields):
        self._read_log()
        names = {event}
        if self.channel == "window" and event == "response":
            names = {"response", "returned"}  # also "returned" with a worker that was killed
        return [entry for entry in self._events[after:]
                if (event is None or entry.get("event") in names)
                and all(entry.get(key) == value for key, value in fields.items())
                and ("vm" in fields or entry.get("vm", 0) < PROBE)]

    def wait_event(self, event, count=1, after=0, timeout=WAIT_S, **fields):
        """The count-th such event behind the first `after` entries of the log."""
        def found():
            entries = self.events(event, after, **fields)
            if len(entries) >= count:
                return entries[count - 1]
            if self.process is None or self.process.poll() is not None:
                entries = self.events(event, after, **fields)
                assert len(entries) >= count, f"no {event} {fields}, mediator ended:\n{self.tail()}"
                return entries[count - 1]
            return None
        return wait_until(found, lambda: f"event {event} {fields}, {count} times:\n{self.tail()}",
                          timeout)

    def wait_message(self, text, after=0):
        def found():
            return [entry for entry in self.events(after=after) if text in entry["message"]]
        return wait_until(found, lambda: f"'{text}' in the log:\n{self.tail()}")[0]

    def messages(self, text, after=0):
        return [entry for entry in self.events(after=after) if text in entry["message"]]

    def order(self, event="process", after=0):
        """The VMs of these events, one after the other."""
        return [entry["vm"] for entry in self.events(event, after)]

    def executions(self):
        """[(vm, sequence)], one for each time that a worker began to run something.

        In a window operations are numbered from 0 by their place in the ring; here
        they count from 1, as requests do.
        """
        if not self.execution_log.exists():
            return []
        text = self.execution_log.read_text()
        found = re.findall(r"^\d+ vm=(\d+) sequence=(\d+) execution=\d+$", text, re.MULTILINE)
        windows = re.findall(r"^\d+ vm=(\d+) slot=\d+ generation=\d+ sequence=(\d+) ", text,
                             re.MULTILINE)
        return [(int(vm), int(sequence)) for vm, sequence in found] + \
            [(int(vm), int(sequence) + 1) for vm, sequence in windows]

    def tail(self, lines=40):
        text = ""
        for path in (self.log, self.stderr):  # what ended it last
            if path.exists():
                text += f"--- {path.name}\n" + "\n".join(
                    path.read_text(errors="replace").splitlines()[-lines:]) + "\n"
        return text

    # --- workers ----------------------------------------------------------------

    def worker_pids(self):
        return {entry["worker_pid"] for entry in self.events("process")}

    def wait_no_workers(self):
        pids = self.worker_pids()
        wait_until(lambda: not any(is_worker(pid) for pid in pids), "no worker left")

    def wait_workers_reaped(self):
        """Only then is all that they had mapped free."""
        pids = self.worker_pids()
        wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids),
                   "workers reaped")

    # --- a device that is busy for exactly as long as a test wants -----------------

    def occupy(self, vm_id):
        """Runs a SPIN that does not end before release()."""
        after = self.mark()
        before = self.begun(vm_id)
        vm = self.vm(vm_id)
        vm.ready()
        vm.put(f"SPIN {FOREVER_MS}")
        entry = self.wait_event("process", after=after, vm=vm_id)
        # Before a worker has begun it, another one could take over.
        wait_until(lambda: self.begun(vm_id) > before, "the execution's begin")
        return entry["worker_pid"]

    def killed_answer(self):
        """How the answer to what a killed worker ran begins."""
        return "2:device lost" if self.channel == "window" else "2:worker killed by signal 9"

    def begun(self, vm_id):
        """How many executions of this VM have begun."""
        return sum(1 for vm, _ in self.executions() if vm == vm_id)

    def release(self, pid):
        """Ends such a SPIN, by way of its worker."""
        os.kill(pid, signal.SIGKILL)

    def kill_worker_of(self, vm_id):
        """For a log that is not JSON: finds the worker by its parent and command line."""
        for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = path.read_text().split("\0")
                status = (path.parent / "stat").read_text().rsplit(")", 1)[1].split()
                if words[1:3] == ["--vm", str(vm_id)] and int(status[1]) == self.process.pid:
                    os.kill(int(path.parent.name), signal.SIGKILL)

    # --- looks that find nothing leave no trace ------------------------------------

    def wait_looks(self, count=2):
        """What stands in the directories now has been looked at.

        A VM of ours that is always refused tells that a look was made.  One look
        may have begun before this call, so the second one counts.
        """
        probe = Vm(self.share, PROBE, "A", 1)
        for _ in range(count):
            after = self.mark()
            self.make_directory(probe)
            probe.put_raw(b"probe\n")
            self.wait_event("response", after=after, vm=PROBE)
            probe.ready()  # the answer was read

    def wait_listings(self):
        """What stands in the share now has been listed."""
        for _ in range(2):
            self._listings += 1
            vm_id = PROBE + self._listings
            probe = Vm(self.share, vm_id, "A", 1)
            self.make_directory(probe)
            probe.put_raw(b"probe\n")
            self.wait_event("response", vm=vm_id)
            probe.ready()

    def make_directory(self, vm):
        """Made elsewhere and moved in: its owner is seen with it."""
        if not vm.directory.exists():
            made = self.directory / f"new-{vm.vm_id}"
            made.mkdir()
            self.own(made)
            made.rename(vm.directory)

    @staticmethod
    def set_time(path, seconds):
        os.utime(path, (seconds, seconds))

    def queue(self, *vm_ids, command="PING {vm}"):
        """Puts one request of each VM into the queue, in this order."""
        for vm_id in vm_ids:
            after = self.mark()
            vm = self.vm(vm_id)
            vm.ready()
            vm.put(command.format(vm=vm_id))
            self.wait_event("queue", after=after, vm=vm_id)


@contextlib.contextmanager
def directory():
    """A place of its own for one test, gone afterwards whatever lies in it."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="vgpu-func-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def copy_for_others(program, place):
    """A copy that any user may run, wherever the build lies: it may be its owner's alone."""
    copy = pathlib.Path(place) / pathlib.Path(program).name
    shutil.copy(program, copy)
    for path in (copy, copy.parent):
        path.chmod(0o755)
    return copy
