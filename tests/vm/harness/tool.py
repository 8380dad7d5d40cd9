# SPDX-License-Identifier: Apache-2.0
"""What the makers of images and modules share: programs, packages, locks."""

import contextlib
import fcntl
import subprocess

from . import paths


@contextlib.contextmanager
def locked(name):
    """One process at a time, also of those that run tests side by side."""
    paths.CACHE.mkdir(parents=True, exist_ok=True)
    with open(paths.CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def run(argv, stderr=subprocess.PIPE, **options):
    """Returns what a program wrote to its stdout; raises when it failed."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=stderr, text=True, **options)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, argv))}: status {done.returncode}: "
                           f"{done.stdout}{done.stderr or ''}")
    return done.stdout


def apt_download(packages, directory):
    """Puts the .deb files there; nothing is installed."""
    download = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", *packages]
    try:
        run(download, cwd=directory)
    except RuntimeError:
        run(["apt-get", "-q", "update"])
        run(download, cwd=directory)
