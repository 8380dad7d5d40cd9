# SPDX-License-Identifier: Apache-2.0
"""vgpu-admin scan-vms, start-vm and stop-vm, on a host with a fake xl."""

import json
import os

import pytest

from admin_support import EXISTS, FAILED, NOT_FOUND, NOT_RUNNING, OK, USAGE, Host
from toolstack_support import Fake

ONE = "59e1cf6c-6ab9-4879-90e7-adc8d1c63bf5"
TWO = "50bc8f75-81d0-4d53-b2e6-95cb44e2682e"
THREE = "11111111-2222-4333-8444-555555555555"
OWNERS = 2100000000

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chown")


class XenHost(Host):
    """Domains by their files in etc/, the fake xl in bin/."""

    def __init__(self, place):
        super().__init__(place, toolstack="xl")
        self.configs = place / "etc-xen"
        self.configs.mkdir()
        self.share.mkdir()
        self.xl = Fake(place / "bin", "xl")
        self.environment.update(VGPU_TOOLSTACK_PATH=str(place / "bin"),
                                VGPU_XL_DIRECTORY=str(self.configs))
        self.good("init")

    def domain(self, name, uuid=None, device=None, file=None):
        quote = '"' if "'" in name else "'"
        text = f"name = {quote}{name}{quote}\n"
        text += f"uuid = '{uuid}'\n" if uuid else ""
        text += f"device_model_args_hvm = [ '-device', 'vgpu-stub,{device}' ]\n" if device else ""
        (self.configs / f"{file or name}.cfg").write_text(text)

    def scan(self):
        return {vm["name"]: vm for vm in self.json("scan-vms")["vms"]}

    def text(self, name):
        return (self.configs / f"{name}.cfg").read_text()


@pytest.fixture
def host(place):
    made = XenHost(place)
    yield made
    assert made.xl.unexpected() == ""


def test_scan_of_an_empty_host_says_so(host):
    assert host.good("scan-vms") == "This host has no VM, and none is registered.\n"
    assert host.json("scan-vms") == {"toolstack": "xl", "vms": []}


def test_scan_groups_by_pool_with_unregistered_last(host):
    for name, uuid in [("a", ONE), ("b", TWO), ("c", THREE), ("d", None)]:
        host.domain(name, uuid)
    host.good("register-vm", "a", "--pool", "B")
    host.good("register-vm", "b", "--pool", "A")
    lines = host.good("scan-vms").splitlines()
    assert lines[0].split() == ["POOL", "VM", "NAME", "PRIORITY", "HOST", "UUID", "NOTE"]
    assert [line.split()[:3] for line in lines[1:5]] == [
        ["A", "2", "b"], ["B", "1", "a"], ["-", "-", "c"], ["-", "-", "d"]]
    assert lines[5:] == ["", "To register:", f"  vgpu-admin register-vm --uuid {THREE} c",
                         "  vgpu-admin register-vm d"]


def test_the_command_that_scan_gives_registers_the_vm(host):
    host.domain("web one's", ONE, file="web")
    command = host.scan()["web one's"]["command"]
    assert command == f"vgpu-admin register-vm --uuid {ONE} 'web one'\\''s'"
    import shlex
    host.good(*shlex.split(command)[1:])
    found = host.scan()["web one's"]
    assert (found["registered"], found["command"]) == (True, None)
    assert (found["vm"]["uuid"], found["vm"]["name"]) == (ONE, "web one's")


def test_the_device_is_taken_out_of_a_definition_again(host):
    host.domain("a", ONE)
    host.good("register-vm", "a")
    host.good("publish", "a")
    assert host.scan()["a"]["device"]["vm_id"] == 1
    host.good("remove-vm", "a")
    assert "no vgpu-stub any more" in host.good("publish", "--remove", "a")
    assert host.scan()["a"]["device"] is None
    assert "had no vgpu-stub" in host.good("publish", "--remove", ONE)
    assert "name it" in host.bad(USAGE, "publish", "--remove")
    host.bad(NOT_FOUND, "publish", "--remove", "nobody")


@pytest.mark.parametrize("name", ["$(reboot)", "a;b", "`id`", "x & y", "--help", "1234", "ä"])
def test_a_name_that_a_tenant_chose_is_harmless_in_the_command(host, name):
    host.domain(name, ONE, file="f")
    command = next(iter(host.scan().values()))["command"]
    if name in ["--help", "1234", "ä"]:  # no names for the registry
        assert command == f"vgpu-admin register-vm --uuid {ONE} vm-{ONE[:8]}"
    else:
        assert command == f"vgpu-admin register-vm --uuid {ONE} '{name}'"
    assert not any(ord(character) > 126 or ord(character) < 32
                   for line in host.good("scan-vms").splitlines() for character in line)


def test_clones_with_one_number_are_pointed_out_on_both_sides(host):
    host.domain("first", ONE, "vm_id=1,pool_id=A,priority=medium")
    host.domain("second", TWO, "vm_id=1,pool_id=A,priority=medium")
    host.good("register-vm", "first")
    found = host.scan()
    assert found["first"]["note"] == "its device has vm_id 1, which 'second' has too (a clone?)"
    assert found["first"]["command"] is None  # it is right
    assert "which 'first' has too (a clone?)" in found["second"]["note"]
    assert found["second"]["command"].startswith("vgpu-admin register-vm")
    host.good("register-vm", "second")  # which publishes its own number
    assert [vm["note"] for vm in host.scan().values()] == [None, None]


def test_a_definition_that_says_something_else_is_pointed_out(host):
    host.domain("a", ONE, "vm_id=1,pool_id=B,priority=low")
    host.good("register-vm", "a", "--pool", "A", "--priority", "high")
    host.domain("a", ONE, "vm_id=1,pool_id=B,priority=low")
    output = host.good("scan-vms")
    assert "its device says VM 1, pool B, low" in output
    assert output.endswith("To bring registered VMs up to date:\n  vgpu-admin publish 1\n")


def test_a_device_that_cannot_be_read_is_pointed_out(host):
    host.domain("a", ONE, "vm_id=0")
    assert host.scan()["a"]["note"] == "its vgpu-stub has vm_id '0', which cannot be"


def test_a_registered_vm_that_the_host_does_not_have_is_pointed_out(host):
    host.good("register-vm", "gone", "--uuid", ONE)
    found = host.scan()["gone"]
    assert (found["state"], found["note"]) == ("missing",
                                               "registered, but this host has no such VM")


def test_a_vm_without_uuid_is_known_by_its_name(host):
    host.domain("a")
    host.good("register-vm", "a", "--uuid", ONE)  # xl gives it a new one at each start
    assert host.scan()["a"]["registered"] is True


# --- owners ----------------------------------------------------------------------------


@pytest.mark.parametrize("toolstack", ["xl", "xapi"])
def test_a_vm_that_is_registered_without_an_owner_has_a_number_of_its_own(host, place, toolstack):
    Fake(place / "xapi", "xe")
    host.environment["VGPU_TOOLSTACK_PATH"] += f":{place}/xapi"
    host.configure(toolstack=toolstack)
    host.good("register-vm", "a", "--vm-id", "7")
    host.good("register-vm", "b")
    for vm_id, name in [(7, "a"), (1, "b")]:
        assert host.vm(name)["owner"] == {"uid": OWNERS + vm_id, "gid": OWNERS + vm_id}
        info = (host.share / f"vm{vm_id}").stat()
        assert (info.st_uid, info.st_gid) == (OWNERS + vm_id, OWNERS + vm_id)
    assert f"\nOwner            {OWNERS + 7}:{OWNERS + 7}\n" in host.good("show-vm", "a")


def test_an_owner_that_is_named_is_taken(host):
    host.good("register-vm", "a", "--owner", "100007:100008")
    assert host.vm("a")["owner"] == {"uid": 100007, "gid": 100008}


def test_where_there_is_no_xen_nobody_is_given_an_owner(host):
    host.good("register-vm", "a", "--toolstack", "none")
    assert host.vm("a")["owner"] is None
    host.good("update-vm", "a", "--owner", "100007", "--toolstack", "none")
    host.good("update-vm", "a", "--owner", "default", "--toolstack", "none")
    assert host.vm("a")["owner"] is None


def test_no_two_vms_are_given_one_owner(host):
    """Also where a number is another VM's by now: a VM's owner stays."""
    host.good("register-vm", "a", "--vm-id", "7")
    host.good("set-vm-id", "a", "9", "--yes")
    host.good("register-vm", "b", "--vm-id", "8", "--owner", f"100008:{OWNERS + 8}")
    host.good("register-vm", "c", "--vm-id", "7")
    assert [host.vm(name)["owner"]["uid"] - OWNERS for name in ["a", "c"]] == [7, 9]
    host.good("register-vm", "d", "--vm-id", "5")
    host.good("update-vm", "d", "--owner", "default")
    assert host.vm("d")["owner"]["uid"] == OWNERS + 5


def test_an_owner_that_is_another_vms_is_refused_without_directories_too(host):
    """Its sessions' brokers could reach the other's socket."""
    host.good("register-vm", "a", "--vm-id", "7", "--channels", "window")
    owner = str(OWNERS + 7)
    message = host.bad(EXISTS, "register-vm", "b", "--vm-id", "8", "--channels", "window",
                       "--owner", owner)
    assert message == (f"owner {owner} is that of VM 7 (a) already, and each could reach the "
                       "other's files and sessions: choose a number that nobody has, as --owner "
                       f"{OWNERS + 8}, or say --force")
    host.good("register-vm", "b", "--vm-id", "8", "--channels", "window", "--owner", owner,
              "--force")
    host.good("update-vm", "b", "--name", "c")


def test_where_owners_begin_is_a_setting(host):
    host.configure(toolstack="xl", xen_owner_base=500000000)
    host.good("register-vm", "a", "--vm-id", "7")
    assert host.vm("a")["owner"]["uid"] == 500000007


@pytest.mark.parametrize("value", ["65535", "2147352576", "-1", "high", "1e9", ""])
def test_a_beginning_that_may_be_somebody_elses_is_refused(host, value):
    host.configure(toolstack="xl", xen_owner_base=value)
    message = host.bad(USAGE, "register-vm", "a")
    assert f"[admin] xen_owner_base = {value}: expected a whole number from 65536 to 2147352575" \
        in message


def test_a_vm_whose_number_is_too_high_for_an_owner_is_told_to_name_one(host):
    message = host.bad(FAILED, "register-vm", "a", "--vm-id", "47352576")
    assert "VM 47352576 under Xen has no default owner: 2147352576 " in message
    assert "name one with --owner" in message
    host.good("register-vm", "a", "--vm-id", "47352576", "--owner", "100007")
    host.good("register-vm", "b", "--vm-id", "47352575")


def test_a_vm_that_has_no_owner_from_before_is_pointed_out_with_what_mends_it(host):
    host.domain("a", ONE)
    host.good("register-vm", "a", "--toolstack", "none", "--uuid", ONE, "--vm-id", "7")
    found = host.scan()["a"]
    assert found["note"] == "it has no owner, and its sessions are refused"
    assert found["command"] == "vgpu-admin update-vm 7 --owner default"
    assert host.good(*found["command"].split()[1:]) == \
        f"VM 7 (a): owner default -> {OWNERS + 7}:{OWNERS + 7}\n"
    assert (host.scan()["a"]["note"], (host.share / "vm7").stat().st_uid) == (None, OWNERS + 7)


def test_a_vm_that_has_no_sessions_needs_no_owner(host):
    host.domain("a", ONE)
    host.good("register-vm", "a", "--toolstack", "none", "--uuid", ONE, "--channels", "file")
    assert host.scan()["a"]["note"] is None


# --- start and stop ----------------------------------------------------------------------


def test_start_publishes_the_registered_values_first(host):
    host.domain("a", ONE, "vm_id=99,pool_id=Z,priority=low")
    host.good("register-vm", "a", "--pool", "B", "--priority", "high", "--vm-id", "7")
    host.domain("a", ONE, "vm_id=99,pool_id=Z,priority=low")  # somebody put old ones back
    assert host.good("start-vm", "7") == "VM 7 (a) is started: pool B, priority high\n"
    assert "vm_id=7,pool_id=B,priority=high" in host.xl.load()["created_with"]


def test_start_gives_a_vm_its_device(host):
    host.domain("a", ONE)
    host.good("register-vm", "a", "--vm-id", "7")
    answer = host.json("start-vm", "a")
    assert (answer["toolstack"], answer["vm"]["vm_id"]) == ("xl", 7)
    assert "vm_id=7,pool_id=A,priority=medium" in host.text("a")


@pytest.mark.parametrize("name", ["a" * 64, "-web", "web ", "17", THREE, "web\u00e9"],
                         ids=["long", "option", "blank", "number", "uuid", "accent"])
def test_a_machines_name_that_the_registry_refuses_is_replaced_and_that_is_told(host, name):
    host.domain(name, ONE, file="strange")
    done = host.run("register-vm", ONE)
    assert done.returncode == OK, done.stderr
    assert "note: the toolstack's name cannot be registered (name '" in done.stderr
    assert "it is registered as 'vm-59e1cf6c', which update-vm --name changes" in done.stderr
    assert host.vm(ONE)["name"] == "vm-59e1cf6c"


def test_a_removed_vms_device_and_the_command_that_takes_it_out_are_told(host):
    host.domain("it's", ONE)
    for words in [["--json"], []]:
        host.good("register-vm", "a", "--uuid", ONE)
        answer = host.run("remove-vm", "a", *words).stdout
        if words:
            assert json.loads(answer)["definition"] is None
    assert answer == f"VM 1 (a) is removed; its directory is now {host.share}/.retired/" + \
        host.retired()[-1] + "\n"
    for words in [["--json"], []]:
        host.good("register-vm", "a", "--uuid", ONE)
        host.good("publish", "a")
        answer = host.run("remove-vm", "a", *words).stdout
        if words:
            assert json.loads(answer)["definition"] == "it's"
    assert answer.endswith("; its definition still has a vgpu-stub: vgpu-admin publish --remove "
                           "'it'\\''s' takes it out\n")
    host.good("publish", "--remove", "it's")


def test_a_restore_tells_which_definitions_differ_and_the_commands_that_mend_it(host, place):
    for name, uuid in [("a", ONE), ("b", TWO), ("it's", THREE)]:
        host.domain(name, uuid)
    host.good("register-vm", "a", "--vm-id", "1", "--pool", "B")
    host.good("register-vm", "b", "--vm-id", "2")
    host.good("publish")
    host.good("backup", place / "b.db")
    host.good("set-pool", "a", "A")
    host.good("register-vm", "other", "--uuid", THREE, "--vm-id", "3")
    host.good("publish", "3")
    done = host.run("restore", place / "b.db", "--yes")
    notes = [line for line in done.stderr.splitlines() if "mediator" not in line]
    assert (done.returncode, notes) == (OK, [
        "vgpu-admin: note: definitions that do not say what is registered: VM 1; vgpu-admin "
        "publish writes the registered values into all",
        "vgpu-admin: note: a machine has a vgpu-stub and is not registered: vgpu-admin publish "
        "--remove 'it'\\''s' takes it out"])
    answer = json.loads(host.run("restore", place / "b.db", "--yes", "--json", "-q").stdout)
    assert (answer["stale"], answer["unregistered"]) == ([1], ["it's"])
    host.good("publish")
    host.good("publish", "--remove", "it's")
    assert host.json("restore", place / "b.db", "--yes")["stale"] == []


@pytest.mark.parametrize("command", ["start-vm", "publish"])
def test_a_device_that_other_arguments_change_is_not_published_as_if_that_counted(host, command):
    host.domain("a", ONE, "vm_id=1,pool_id=A,priority=medium,id=gpu', '-set', 'device.gpu.vm_id=2")
    host.good("register-vm", "a")
    before = host.text("a")
    assert host.bad(FAILED, command, "a") == (
        "a -set beside its vgpu-stub changes it, so its device cannot be compared with the "
        "registry: take that out of the definition of a yourself (virsh edit, or its file under "
        "xl), then start it again")
    assert host.text("a") == before


def test_a_vm_that_runs_is_not_started_and_not_published(host):
    host.domain("a", ONE)
    host.good("register-vm", "a")
    host.good("start-vm", "a")
    before = host.text("a")
    assert "VM 1 is not off" in host.bad(FAILED, "start-vm", "a")
    assert host.text("a") == before


def test_stop_waits_for_the_guest_and_a_second_one_finds_it_off(host):
    host.domain("a", ONE)
    host.good("register-vm", "a")
    host.good("start-vm", "a")
    assert host.good("stop-vm", "a") == "VM 1 (a) is off\n"
    assert ["shutdown", "-w", "-F", "9"] in host.xl.calls()
    assert host.good("stop-vm", ONE) == "VM 1 (a) was off\n"
    assert host.json("stop-vm", "1")["stopped"] is False


def test_stop_with_force_powers_off_a_guest_that_does_not_answer(host):
    host.domain("a", ONE)
    host.good("register-vm", "a")
    host.good("start-vm", "a")
    state = host.xl.load()
    state["vms"][0]["hangs"] = 600
    host.xl.save(state)
    assert "did not end within 1000 ms" in host.bad(FAILED, "stop-vm", "a", "--timeout", "1")
    assert host.good("stop-vm", "a", "--timeout", "1", "--force") == "VM 1 (a) is off\n"
    assert host.xl.calls()[-1] == ["destroy", "9"]


@pytest.mark.parametrize("command", ["start-vm", "stop-vm"])
def test_a_vm_that_is_not_registered_or_not_here_is_not_found(host, command):
    host.bad(NOT_FOUND, command, "nobody")
    host.good("register-vm", "gone", "--uuid", ONE)
    assert "the host has no VM" in host.bad(NOT_FOUND, command, "gone")


@pytest.mark.parametrize("command", ["scan-vms", "start-vm", "stop-vm"])
def test_without_a_toolstack_that_is_said(host, command):
    host.good("register-vm", "a", "--uuid", ONE)
    words = [] if command == "scan-vms" else ["a"]
    message = host.bad(NOT_RUNNING, command, "--toolstack", "none", *words)
    assert "a toolstack is needed" in message


@pytest.mark.parametrize("words", [["--timeout", "0"], ["--timeout", "x"], ["--timeout", "86401"]])
def test_a_timeout_that_cannot_be_is_refused(host, words):
    assert "--timeout" in host.bad(USAGE, "stop-vm", "a", *words)


# Of stop-vm those before the guest is told; what comes after is in test_toolstack_xl.py.
@pytest.mark.parametrize("command,words,steps", [("scan-vms", [], 2), ("start-vm", ["a"], 7),
                                                 ("stop-vm", ["a"], 5)])
def test_a_toolstack_that_fails_at_any_step_is_told_and_nothing_starts(host, command, words, steps):
    host.domain("a", ONE)
    host.good("register-vm", "a")
    host.good("publish", "a")
    if command == "stop-vm":
        host.good("start-vm", "a")
    before = host.xl.load()
    calls = host.xl.directory / "calls.json"
    calls.unlink()
    assert host.run(command, *words).returncode == OK
    assert len(host.xl.calls()) >= steps
    for step in range(1, steps + 1):
        calls.unlink()
        host.xl.save({**before, "fail_at": [step]})
        done = host.run(command, "--json", *words)
        assert (done.returncode, done.stdout) == (FAILED, "")
        assert f"fail at call {step}" in json.loads(done.stderr)["error"]["message"]
        assert host.xl.load()["vms"] == before["vms"]
