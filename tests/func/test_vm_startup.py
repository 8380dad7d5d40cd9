# SPDX-License-Identifier: Apache-2.0
"""The start-up hook: a VM whose device is not as registered does not start."""

import json
import os
import subprocess
import sys

import pytest

from admin_support import ADMIN, BUILD, REPOSITORY, Host
from toolstack_support import Fake

ONE = "59e1cf6c-6ab9-4879-90e7-adc8d1c63bf5"
HOOK = BUILD / "packaging/vgpu-vm-startup"
RIGHT = "vgpu-stub,vm_id=7,pool_id=B,priority=high"
STALE = {
    "another-pool": RIGHT.replace("pool_id=B", "pool_id=A"),
    "another-priority": RIGHT.replace("high", "low"),
    "another-number": RIGHT.replace("vm_id=7", "vm_id=8"),
}
UNREAD = {
    "two-devices": (f"{RIGHT}'/><qemu:arg value='-device'/><qemu:arg value='{RIGHT}",
                    "it has 2 vgpu-stub devices, not one"),
    "driver-key": (RIGHT.replace("vgpu-stub,vm_id=7", "driver=vgpu-stub,vm_id=8"),
                   "its vgpu-stub is written with driver=, which is not read here"),
    "driver-behind": ("vm_id=8,pool_id=B,priority=high,driver=vgpu-stub",
                      "its vgpu-stub is written with driver=, which is not read here"),
    "unreadable": (RIGHT.replace("vm_id=7", "vm_id=x"),
                   "its vgpu-stub has vm_id 'x', which cannot be"),
}


def beside(option, value, device=RIGHT):
    return f"{device},id=gpu'/><qemu:arg value='{option}'/><qemu:arg value='{value}"


CHANGED = "a -set beside its vgpu-stub changes it"
OVERRIDDEN = {
    "set-number": (beside("-set", "device.gpu.vm_id=8"), CHANGED),
    "set-driver-away": (beside("-set", "device.gpu.driver=edu"), CHANGED),
    "set-socket": (beside("-set", "chardev.vgpu.path=/run/vm8.sock"), CHANGED),
    "set-beside-a-stale-one": (beside("-set", "device.gpu.vm_id=7", STALE["another-pool"]),
                               CHANGED),
    "set-driver": (beside("-set", "device.gpu.driver=vgpu-stub", "edu"),
                   "a -set makes a vgpu-stub of another device"),
    "global": (beside("-global", "vgpu-stub.vm_id=8"),
               "a -global beside its vgpu-stub changes it"),
    "global-by-keys": (beside("--global", "driver=vgpu-stub,property=vm_id,value=8"),
                       "a -global beside its vgpu-stub changes it"),
    "readconfig": (beside("-readconfig", "/etc/qemu/gpu.conf"),
                   "its -readconfig names a file that may make or change a vgpu-stub"),
    "readconfig-alone": (beside("-readconfig", "/etc/qemu/gpu.conf", "edu"),
                         "its -readconfig names a file that may make or change a vgpu-stub"),
}


def domain(device=None, uuid=ONE, name="web"):
    arguments = f"<qemu:arg value='-device'/><qemu:arg value='{device}'/>" if device else ""
    return (f"<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
            f"<name>{name}</name><uuid>{uuid}</uuid><devices/>"
            f"<qemu:commandline>{arguments}</qemu:commandline></domain>")


class HookHost(Host):
    def __init__(self, place):
        super().__init__(place)
        self.share.mkdir()
        # What an administrator has in /usr/sbin, with this host's configuration.
        self.admin = place / "vgpu-admin"
        self.admin.write_text(f"#!/bin/sh\nexec {ADMIN} --config {self.config} \"$@\"\n")
        self.admin.chmod(0o755)
        self.environment["VGPU_ADMIN"] = str(self.admin)

    def hook(self, *arguments, text=""):
        done = subprocess.run(["sh", HOOK, *arguments], input=text, capture_output=True, text=True,
                              timeout=180, env=self.environment, check=False)
        assert done.stdout == ""
        return done.returncode, done.stderr

    def libvirt(self, text, operation="prepare", stage="begin", name="web"):
        return self.hook(name, operation, stage, "-", text=text)


@pytest.fixture
def host(place):
    made = HookHost(place)
    made.good("init")
    made.good("register-vm", "web", "--uuid", ONE, "--vm-id", "7", "--pool", "B", "--priority",
              "high")
    return made


# --- libvirt --------------------------------------------------------------------------


def test_a_vm_with_its_registered_values_starts(host):
    assert host.libvirt(domain(RIGHT)) == (0, "")


@pytest.mark.parametrize("device", STALE.values(), ids=STALE)
def test_a_vm_with_other_values_does_not_start_and_the_remedy_is_told(host, device):
    status, said = host.libvirt(domain(device))
    assert status == 1
    assert said.startswith("vgpu-vm-startup: 'web' does not start: its device says VM ")
    assert "and the registry VM 7, pool B, high: vgpu-admin publish 7, then start it again" in said


@pytest.mark.parametrize("device,problem", UNREAD.values(), ids=UNREAD)
def test_a_device_that_is_not_read_here_is_told_and_published_anew(host, device, problem):
    assert host.libvirt(domain(device)) == (1, (
        f"vgpu-vm-startup: 'web' does not start: {problem}, and the registry says VM 7, pool B, "
        "high: vgpu-admin publish 7, then start it again (vgpu-admin start-vm does both)\n"))


@pytest.mark.parametrize("device,problem", OVERRIDDEN.values(), ids=OVERRIDDEN)
def test_what_overrides_a_device_is_for_a_person_to_take_out(host, device, problem):
    assert host.libvirt(domain(device)) == (1, (
        f"vgpu-vm-startup: 'web' does not start: {problem}, so its device cannot be compared with "
        "the registry: take that out of the definition of web yourself (virsh edit, or its file "
        "under xl), then start it again\n"))


@pytest.mark.parametrize("device", [
    beside("-set", "device.net0.mac=52:54:00:00:00:01"), beside("-global", "ICH9-LPC.disable_s3=1"),
    beside("-global", "vgpu-stub.vm_id=8", "edu"), beside("-set", "device.gpu.vm_id=8", "edu")],
    ids=["set-of-another", "global-of-another", "global-of-none", "set-of-none"])
def test_arguments_that_change_no_vgpu_stub_are_nobodys_business(host, device):
    assert host.libvirt(domain(device)) == (0, "")


def test_a_vm_that_would_take_another_ones_socket_does_not_start(host):
    def text(path):
        return domain(f"{RIGHT},memdev=vgpuwin,chardev=vgpu").replace(
            "<qemu:commandline>", "<qemu:commandline><qemu:arg value='-chardev'/><qemu:arg value="
            f"'socket,id=vgpu,path={path},reconnect=1'/><qemu:arg value='-object'/><qemu:arg "
            "value='memory-backend-memfd,id=vgpuwin,size=64M,share=on'/>")
    host.config.write_text(host.config.read_text().replace("[admin]", "run_dir = /run/x\n[admin]"))
    assert host.libvirt(text("/run/x/vm7.sock")) == (0, "")
    assert host.libvirt(text("/run/x/vm8.sock"))[0] == 1


def test_a_vm_without_the_device_is_nobodys_business(host):
    assert host.libvirt(domain()) == (0, "")
    assert host.libvirt("no XML at all") == (0, "")
    host.database.unlink()
    assert host.libvirt(domain()) == (0, "")


def test_a_device_of_a_vm_that_is_not_registered_does_not_start(host):
    other = ONE.replace("59e1", "59e2")
    status, said = host.libvirt(domain(RIGHT, uuid=other, name="other"), name="other")
    assert status == 1
    assert f"is not registered: vgpu-admin register-vm --uuid {other}, or take" in said


@pytest.mark.parametrize("name", ["web", "7", ONE])
def test_a_name_gives_nobody_the_place_of_a_vm_that_has_a_uuid(host, name):
    other = ONE.replace("59e1", "59e2")
    status, said = host.libvirt(domain(RIGHT, uuid=other, name=name), name=name)
    assert status == 1
    assert "is not registered" in said


def test_a_vm_that_is_registered_without_uuid_is_known_by_its_name(host):
    host.good("register-vm", "plain", "--vm-id", "9")
    right = "vgpu-stub,vm_id=9,pool_id=A,priority=medium"
    assert host.libvirt(domain(right, uuid=ONE.replace("59", "60"), name="plain"),
                        name="plain") == (0, "")


def test_without_the_database_a_device_does_not_start(host):
    host.database.unlink()
    status, said = host.libvirt(domain(RIGHT))
    assert status != 0
    assert "its device cannot be compared with the registry" in said


def test_a_definition_that_cannot_be_read_does_not_start(host):
    status, said = host.libvirt("<domain>vgpu-stub")
    assert status == 1 and "a domain's XML was expected" in said


@pytest.mark.parametrize("operation,stage", [
    ("start", "begin"), ("started", "begin"), ("stopped", "end"), ("release", "end"),
    ("reconnect", "begin"), ("prepare", "end")])
def test_other_moments_of_a_vms_life_pass(host, operation, stage):
    assert host.libvirt(domain(STALE["another-pool"]), operation, stage) == (0, "")


def test_a_hook_that_was_left_behind_stops_nobody(host):
    host.admin.unlink()
    assert host.libvirt(domain(STALE["another-pool"])) == (0, "")


# --- XAPI ------------------------------------------------------------------------------


@pytest.fixture
def xe(host, place):
    fake = Fake(place / "bin", "xe")
    host.environment["VGPU_TOOLSTACK_PATH"] = str(place / "bin")
    yield fake
    assert fake.unexpected() == ""


def keys(fake, **platform):
    fake.change(vms=[{"uuid": ONE, "name": "web", "state": "halted", "platform": platform}])


def xapi(host, uuid=ONE):
    return host.hook("-vmuuid", uuid, "-reason", "clean-shutdown")


VGPU = {"vgpu-id": "7", "vgpu-pool": "B", "vgpu-priority": "high"}


def test_xapi_starts_a_vm_with_its_registered_values_or_without_any(host, xe):
    keys(xe, **VGPU)
    assert xapi(host) == (0, "")
    keys(xe, nx="true")
    assert xapi(host) == (0, "")


def test_xapi_does_not_start_stale_values_but_next_time_they_are_right(host, xe):
    keys(xe, **{**VGPU, "vgpu-pool": "A"})
    status, said = xapi(host)
    assert status == 2
    assert "its platform keys were stale and are right now (VM 7, pool B, high): start it again" \
        in said
    assert xe.load()["vms"][0]["platform"] == VGPU
    assert xapi(host) == (0, "")


def test_xapi_ends_the_start_when_it_cannot_be_looked_at(host, xe):
    keys(xe, **{**VGPU, "vgpu-pool": "A"})
    before = xe.load()
    for step in [1, 2, 3, 4]:  # list, get, set, get
        (xe.directory / "calls.json").unlink(missing_ok=True)
        xe.save({**before, "fail_at": [step]})
        status, said = xapi(host)
        assert status == 2 and f"was told to fail at call {step}" in said
        assert xe.load()["vms"] == before["vms"]


# --- XAPI's plug-in ------------------------------------------------------------------------

PLUGIN_STUB = """
import json, sys
def dispatch(table):
    function, args = json.loads(sys.argv[1])
    try:
        print(table[function](None, args))
    except Exception as error:
        print("%s: %s" % (type(error).__name__, error))
        sys.exit(1)
"""


@pytest.fixture
def plugin(host, place):
    """Calls the plug-in as XAPI's own library would: (status, what it gave)."""
    (place / "XenAPIPlugin.py").write_text(PLUGIN_STUB)

    def call(function, **args):
        done = subprocess.run(
            [sys.executable, "-B", REPOSITORY / "packaging/xapi-plugin-vgpu",
             json.dumps([function, args])], stdin=subprocess.DEVNULL, capture_output=True,
            text=True, timeout=180, check=False,
            env={**os.environ, **host.environment, "PYTHONPATH": str(place)})
        assert done.stderr == ""
        return done.returncode, done.stdout.strip()
    return call


def test_the_plugin_answers_with_what_vgpu_admin_says(host, plugin):
    status, output = plugin("list")
    assert status == 0 and json.loads(output) == host.json("list-vms")
    status, output = plugin("set-pool", vm=ONE, value="A")
    assert status == 0, output
    assert host.vm("7")["pool"] == "A"
    assert plugin("set-priority", vm="7", value="low")[0] == 0
    assert host.vm("7")["priority"] == "low"
    assert plugin("register", name="new one", uuid=ONE.replace("5", "6"), pool="B")[0] == 0
    assert host.vm("new one")["pool"] == "B"


@pytest.mark.parametrize("function,args", [
    ("set-pool", {"vm": "7", "value": "A; reboot"}), ("set-pool", {"vm": "--help", "value": "A"}),
    ("set-pool", {"vm": "7", "value": "A\n"}), ("set-pool", {"vm": "7"}),
    ("set-pool", {"vm": "7", "value": "A", "more": "x"}), ("register", {"name": "-x"}),
    ("register", {"name": "$(id)"}), ("list", {"vm": "7"})])
def test_the_plugin_refuses_what_it_does_not_know(host, plugin, function, args):
    before = host.state()
    status, output = plugin(function, **args)
    assert status == 1 and output.startswith("ValueError: args:"), output
    assert host.state() == before


def test_the_plugin_tells_what_vgpu_admin_refused(plugin):
    status, output = plugin("set-pool", vm="99", value="A")
    assert status == 1
    assert output.startswith("RuntimeError: vgpu-admin set-pool: exit status 3: ")
