# SPDX-License-Identifier: Apache-2.0
"""Starting processes so that none is left behind.

Three nets, one below the other:

1. Whoever starts a process ends it (`Process.stop`), by its id.
2. `install_cleanup()` turns SIGTERM into an orderly exit and ends what is
   still there when Python ends.
3. Each process is started through setpriv(1) with a parent-death signal, so
   the kernel ends it when this process is killed with -9.  The signal comes
   when the starting *thread* ends: start processes from the main thread only.

What a program of ours starts in turn (the mediator's workers) carries the
run's mark in its environment or on its command line; `end_marked()` finds it.
"""

import atexit
import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time

_alive = []
_directories = []
_PREFIX = "vgpu-vm-"

MARK = f"{_PREFIX}{os.getpid()}-{os.urandom(3).hex()}"


class Process:
    """One child.  `name` is for messages; output goes to the file `log`."""

    def __init__(self, name, argv, log=None, namespace=None, environment=None, preload=None,
                 stdin=subprocess.DEVNULL, pass_fds=(), tie=True):
        self.name = name
        self.log = pathlib.Path(log) if log else None
        full = ["setpriv", "--pdeathsig", "KILL"] if tie else []
        if namespace is not None:
            full += ["nsenter", f"--net=/proc/{namespace}/ns/net"]
        if preload is not None:
            # For this one program: a preload that is exported reaches
            # setpriv and nsenter too, which do not have QEMU's symbols.
            full += ["env", f"LD_PRELOAD={preload}"]
        full += [str(word) for word in argv]
        output = open(self.log, "ab") if self.log else subprocess.DEVNULL
        try:
            self.popen = subprocess.Popen(
                full, stdin=stdin, stdout=output, stderr=subprocess.STDOUT, pass_fds=pass_fds,
                env={**os.environ, "VGPU_TEST_RUN": MARK, **(environment or {})},
                start_new_session=True)
        finally:
            if self.log:
                output.close()
        self.argv = full
        _alive.append(self)

    @property
    def pid(self):
        return self.popen.pid

    def running(self):
        return self.popen.poll() is None

    def wait(self, timeout):
        return self.popen.wait(timeout)

    def send_signal(self, number):
        if self.running():
            self.popen.send_signal(number)

    def stop(self, patience=10, first=signal.SIGTERM):
        """Asks, then insists.  Returns the exit status."""
        if self.running():
            self.popen.send_signal(first)
            try:
                self.popen.wait(patience)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        status = self.popen.wait()
        if self in _alive:
            _alive.remove(self)
        return status

    def kill(self):
        return self.stop(first=signal.SIGKILL)

    def output(self, last=60):
        """The last lines of its log, for messages."""
        if self.log is None or not self.log.exists():
            return ""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-last:])


def share_precedence(pid, proc=pathlib.Path("/proc")):
    """Linux weighs each session of processes by itself: that process' gets this one's weight.

    The file is absent or empty where processes are not weighed that way.
    """
    with contextlib.suppress(OSError):
        own = re.search(r"nice (-?\d+)", (proc / "self/autogroup").read_text())
        if own:
            (proc / str(pid) / "autogroup").write_text(own[1])


def run(argv, namespace=None, timeout=180):
    """Runs a short program to its end; raises with what it printed."""
    if namespace is not None:
        argv = ["nsenter", f"--net=/proc/{namespace}/ns/net", *argv]
    done = subprocess.run([str(word) for word in argv], stdin=subprocess.DEVNULL, timeout=timeout,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(done.args)}: status {done.returncode}: {done.stdout}")
    return done.stdout


def run_directory(purpose):
    """A new directory that is removed when Python ends; see remove_directory()."""
    _sweep()
    path = pathlib.Path(tempfile.mkdtemp(prefix=f"{MARK}-{purpose}-"))
    _directories.append(path)
    return path


def remove_directory(path):
    shutil.rmtree(path, ignore_errors=True)
    if path in _directories:
        _directories.remove(path)


def end_marked(marks, patience=5):
    """Ends processes that carry one of `marks` in command line or environment.

    Waits up to `patience` seconds for them to end by themselves first.
    Returns the ids of those that had to be killed.
    """
    deadline = time.monotonic() + patience
    while (found := _marked(marks)) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return found


def _marked(marks):
    marks = [os.fsencode(str(mark)) for mark in marks]
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            text = (entry / "cmdline").read_bytes() + b"\0" + (entry / "environ").read_bytes()
            state = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z" and any(mark in text for mark in marks):
            found.append(int(entry.name))
    return found


def _sweep():
    """Removes directories of runs whose process is gone (killed with -9)."""
    for path in pathlib.Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        owner = path.name[len(_PREFIX):].split("-")[0]
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            shutil.rmtree(path, ignore_errors=True)


def _clean_up():
    for process in reversed(list(_alive)):
        process.kill()
    for path in list(_directories):
        remove_directory(path)


def _on_terminate(number, frame):
    raise SystemExit(128 + number)


def install_cleanup():
    """SIGTERM and SIGHUP unwind like Ctrl-C does; call it from the main thread."""
    signal.signal(signal.SIGTERM, _on_terminate)
    signal.signal(signal.SIGHUP, _on_terminate)


atexit.register(_clean_up)
