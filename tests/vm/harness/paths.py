# SPDX-License-Identifier: Apache-2.0
"""Where things lie, and what must be there."""

import os
import pathlib

REPOSITORY = pathlib.Path(__file__).resolve().parents[3]
CACHE = pathlib.Path(os.environ.get("VGPU_CACHE_DIR", REPOSITORY / ".cache"))
BUILD = pathlib.Path(os.environ.get("VGPU_BUILD_DIR", REPOSITORY / "build")).resolve()


def _required(path, remedy):
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; {remedy}")
    return path


def mediator():
    return _required(BUILD / "src/mediator/vgpu-mediator", "run: make build")


def worker():
    return _required(BUILD / "src/exec/vgpu-worker", "run: make build")


def client():
    return _required(BUILD / "src/client/vgpu-client", "run: make build")


def examples():
    """The programs of examples/, one file each; none before they are built."""
    return sorted(path for path in (BUILD / "examples").glob("vgpu-example-*") if path.is_file())


def gpu_load():
    """tests/gpu/load.c's program, in a list; an empty one before it is built."""
    return [path for path in [BUILD / "tests/gpu/vgpu-load"] if path.is_file()]


def admin_host():
    """vgpu-admin with the host's commands alone, which runs in a guest."""
    return _required(BUILD / "src/admin/vgpu-admin-host", "run: make build")


def device():
    """The QEMU device as a shared object for the installed QEMU."""
    path = os.environ.get("VGPU_DEVICE_SO")
    path = pathlib.Path(path) if path else REPOSITORY / "build/device/vgpu-stub.so"
    return _required(path, "run: make device")
