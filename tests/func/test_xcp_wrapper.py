# SPDX-License-Identifier: Apache-2.0
"""XCP-ng's qemu-wrapper with a vgpu-stub added, from the VM's platform keys.

The launcher and its module run as xenopsd would start them; the platform's wrapper is a
program that writes down its arguments, and XenStore's binding is a module of ours with
the functions and answers of Xen's.
"""

import json
import os
import shutil
import subprocess
import sys

import pytest

from support import REPOSITORY

LAUNCHER = REPOSITORY / "packaging/xcp-ng/qemu-wrapper-vgpu"
KEYS = {"vgpu-id": "7", "vgpu-pool": "B", "vgpu-priority": "high"}
DEVICE = "vgpu-stub,vm_id=7,pool_id=B,priority=high,addr=0x1c"
ARGUMENTS = ["5", "-xen-domid", "5", "-m", "size=1024", "-boot", "order=cdn"]
MARK = b"virtual GPU of vgpu-mediator"

BINDING = '''
import json, os

class xs(object):
    def __init__(self):
        with open(os.environ["FAKE_XENSTORE"]) as file:
            self.nodes = json.load(file)

    def ls(self, transaction, path):
        names = [name[len(path) + 1:] for name in self.nodes if name.startswith(path + "/")]
        return sorted(names) or None

    def read(self, transaction, path):
        value = self.nodes[path]["value"]
        return value.encode("utf-8") if os.environ.get("FAKE_BYTES") else str(value)

    def get_permissions(self, transaction, path):
        return self.nodes[path]["permissions"]

    def close(self):
        pass
'''

OWNED_BY_DOM0 = [{"dom": 0, "read": False, "write": False},
                 {"dom": 5, "read": True, "write": False}]


def pythons():
    """This one, and Python 2.7 (XCP-ng 8.2) where the machine has it."""
    found = [sys.executable]
    second = shutil.which("python2.7")
    if second and subprocess.run([second, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0:
        found.append(second)
    return found


class Dom0:
    """A place with a platform's wrapper, a QEMU and a XenStore."""

    def __init__(self, place, python):
        self.wrapper, self.qemu = place / "qemu-wrapper", place / "qemu-system-i386"
        self.seen, self.store = place / "seen.json", place / "xenstore.json"
        self.wrapper.write_text(f"#!{python}\nimport json, sys\n"
                                f"json.dump(sys.argv[1:], open('{self.seen}', 'w'))\n")
        self.wrapper.chmod(0o755)
        self.qemu.write_bytes(b"\x7fELF\0" + b"x" * 5000 + MARK + b"\0")
        binding = place / "python/xen/lowlevel"
        binding.mkdir(parents=True)
        (binding / "xs.py").write_text(BINDING)
        for package in [binding, binding.parent]:
            (package / "__init__.py").write_text("")
        self.environment = {**os.environ, "PYTHONPATH": str(place / "python"),
                            "PYTHONDONTWRITEBYTECODE": "1",
                            "FAKE_XENSTORE": str(self.store), "VGPU_QEMU": str(self.qemu),
                            "VGPU_QEMU_WRAPPER": str(self.wrapper)}
        self.platform()

    def platform(self, permissions=None, **values):
        keys = {"acpi": "true", "nx": "true", **values}
        self.store.write_text(json.dumps({
            f"/local/domain/5/platform/{key}": {"value": value,
                                                "permissions": permissions or OWNED_BY_DOM0}
            for key, value in keys.items()}))

    def start(self, *arguments):
        """(exit status, what the platform's wrapper was given or None, what was said)"""
        self.seen.unlink(missing_ok=True)
        done = subprocess.run([LAUNCHER, *(arguments or ARGUMENTS)], env=self.environment,
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True)
        assert done.stdout == ""
        seen = json.loads(self.seen.read_text()) if self.seen.exists() else None
        return done.returncode, seen, done.stderr

    def refused(self, *arguments):
        status, seen, said = self.start(*arguments)
        assert (status, seen) == (1, None), said
        return said


@pytest.fixture(params=pythons(), ids=os.path.basename)
def dom0(tmp_path, request):
    return Dom0(tmp_path, request.param)


def test_a_vm_with_keys_gets_its_device_behind_the_platforms_arguments(dom0):
    dom0.platform(**KEYS)
    assert dom0.start() == (0, ARGUMENTS + ["-device", DEVICE],
                            f"qemu-wrapper-vgpu: adds -device {DEVICE}\n")


def test_a_vm_without_keys_starts_as_ever(dom0):
    assert dom0.start() == (0, ARGUMENTS, "")
    dom0.qemu.unlink()  # and no QEMU is looked at for it
    assert dom0.start() == (0, ARGUMENTS, "")


def test_the_device_has_a_place_of_its_own_on_the_bus(dom0):
    """The platform puts the display into slot 2, but behind our device."""
    dom0.platform(**KEYS)
    assert dom0.start()[1][-1].endswith(",addr=0x1c")


@pytest.mark.parametrize("priority", ["low", "medium", "high", "0", "1", "2"])
def test_every_priority_that_the_toolstack_reads_is_taken(dom0, priority):
    dom0.platform(**{**KEYS, "vgpu-priority": priority})
    assert f"priority={priority}," in dom0.start()[1][-1]


def test_values_that_come_as_bytes_are_the_same(dom0):
    dom0.environment["FAKE_BYTES"] = "1"
    dom0.platform(**KEYS)
    assert dom0.start()[1][-1] == DEVICE


HOSTILE = {
    "another-property": ("vgpu-pool", "B,memdev=ram"),
    "another-device": ("vgpu-id", "7,addr=2 -device edu"),
    "an-option": ("vgpu-id", "7 -monitor tcp::1"),
    "a-line-more": ("vgpu-priority", "high\n"),
    "a-comma-doubled": ("vgpu-pool", "B,,"),
    "lower-case": ("vgpu-pool", "b"),
    "two-letters": ("vgpu-pool", "AB"),
    "nothing": ("vgpu-pool", ""),
    "zero": ("vgpu-id", "0"),
    "a-sign": ("vgpu-id", "-7"),
    "hexadecimal": ("vgpu-id", "0x7"),
    "too-large": ("vgpu-id", "2147483648"),
    "much-too-large": ("vgpu-id", "9" * 5000),
    "no-priority": ("vgpu-priority", "urgent"),
    "priority-3": ("vgpu-priority", "3"),
    "other-digits": ("vgpu-id", "\u0667"),
}


@pytest.mark.parametrize("key,value", HOSTILE.values(), ids=HOSTILE)
def test_no_value_becomes_anything_but_itself(dom0, key, value):
    dom0.environment["FAKE_BYTES"] = "1"
    dom0.platform(**{**KEYS, key: value})
    said = dom0.refused()
    assert f"platform:{key} is " in said and "vgpu-admin publish" in said
    assert len(said) < 500


@pytest.mark.parametrize("key", KEYS)
def test_a_key_that_is_missing_is_told(dom0, key):
    dom0.platform(**{name: value for name, value in KEYS.items() if name != key})
    assert f"platform:{key} is missing beside the other vgpu keys" in dom0.refused()


@pytest.mark.parametrize("permissions", [
    [{"dom": 5, "read": False, "write": False}],
    [{"dom": 0, "read": False, "write": True}],
    [{"dom": 0, "read": True, "write": False}, {"dom": 5, "read": True, "write": True}],
    [],
], ids=["the-guests", "all-may-write", "the-guest-may-write", "none"])
def test_keys_that_a_guest_could_write_are_not_taken(dom0, permissions):
    dom0.platform(permissions=permissions or [{"dom": 9, "read": False, "write": False}], **KEYS)
    assert "is not Dom0's alone to write" in dom0.refused()


def test_a_qemu_without_the_device_is_told_before_it_fails(dom0):
    dom0.platform(**KEYS)
    dom0.qemu.write_bytes(b"\x7fELF" + b"x" * 5000)
    said = dom0.refused()
    assert "has no vgpu-stub, perhaps since an update of the platform" in said
    assert "preflight --only xen-device-model" in said
    dom0.qemu.write_bytes(b"")
    assert "cannot be looked at" in dom0.refused()


def test_the_mark_is_the_devices_own():
    assert MARK.decode() in (REPOSITORY / "device/vgpu_stub.c").read_text()
    for name in ["packaging/xcp-ng/vgpu_qemu_wrapper.py", "src/host/check_xen.c"]:
        assert MARK.decode() in (REPOSITORY / name).read_text()


@pytest.mark.parametrize("restoring", ["-loadvm", "-incoming"])
def test_a_vm_that_is_resumed_goes_on_without_a_device(dom0, restoring):
    """It was saved without one, as one with it cannot be saved."""
    dom0.platform(**KEYS)
    arguments = ARGUMENTS + [restoring, "/var/xen/state"]
    assert dom0.start(*arguments) == (0, arguments, "")


def test_free_text_of_an_older_set_up_is_not_passed_on(dom0):
    """With the device's keys beside it, and without."""
    old = {"device-model-args": "-device vgpu-stub,pool_id=A,vm_id=1"}
    for keys in [{**KEYS, **old}, old]:
        dom0.platform(**keys)
        assert "param-key=device-model-args" in dom0.refused()
    dom0.platform(**KEYS)
    assert "have a vgpu-stub already" in dom0.refused(*ARGUMENTS, "-device", "vgpu-stub,vm_id=1")


@pytest.mark.parametrize("arguments", [["5"], ["5", "-xen-domid"], ["5", "-xen-domid", "0"],
                                       ["5", "-xen-domid", "5/../9"]])
def test_arguments_without_a_domain_are_told(dom0, arguments):
    assert "there is no '-xen-domid N'" in dom0.refused(*arguments)


def test_a_platform_without_its_wrapper_is_told(dom0):
    dom0.wrapper.unlink()
    assert "this XCP-ng is arranged differently" in dom0.refused()
    dom0.wrapper.write_text("\x7fELF")
    assert "or is no Python program" in dom0.refused()
