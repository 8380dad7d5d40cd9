# SPDX-License-Identifier: Apache-2.0
"""vgpu-admin and the registry: each command's success, its JSON, and each failure."""

import concurrent.futures
import json

import pytest

import support
from admin_support import (DATABASE, EXISTS, FAILED, NOT_FOUND, OK, OTHER_UUID, USAGE, UUID, Host)

VM_KEYS = ["vm_id", "name", "uuid", "pool", "priority", "limits", "state", "reason",
           "quarantine_until", "channels", "owner", "mode", "created", "changed"]
LIMITS = dict.fromkeys(["sessions_max", "device_memory_mib", "operation_limit_ms", "weight",
                        "request_rate", "request_burst", "device_share_percent", "queue_depth_max",
                        "inflight_ops_max", "inflight_kib_max"])
POOL_KEYS = ["id", "name", "description", "enabled", "sharing", "device", "placement",
             "session_devices", "vms_max", "device_memory_max_mib", "policy", "aging_ms", "demand",
             "vm_count"]


@pytest.fixture
def host(place):
    host = Host(place)
    host.good("init")
    return host


@pytest.fixture
def web(host):
    """A host that has VM 7, web1."""
    host.good("register-vm", "web1", "--vm-id", "7", "--uuid", UUID)
    return host


@pytest.fixture(scope="module")
def settled():
    """As web, for what is refused, which changes nothing."""
    with support.directory() as path:
        host = Host(path)
        host.good("init")
        host.good("register-vm", "web1", "--vm-id", "7", "--uuid", UUID)
        yield host


# --- init ---------------------------------------------------------------------------------


def test_init_makes_a_database_with_two_pools(place):
    host = Host(place)
    made = host.json("init")
    assert made["database"] == str(host.database) and made["schema"] >= 1
    pools = host.json("list-pools")["pools"]
    assert [(pool["id"], pool["device"], pool["enabled"]) for pool in pools] == [
        ("A", "cpu", True), ("B", "cpu", True)]


def test_init_leaves_a_database_that_is_there(web):
    assert "there is a database already" in web.bad(EXISTS, "init")
    assert web.vm("7")["name"] == "web1"


def test_init_makes_the_directory_of_the_database(place):
    host = Host(place)
    host.good("init", "--database", host.directory / "deep/below/vgpu.db")
    assert (host.directory / "deep/below/vgpu.db").exists()


def test_init_where_nothing_can_be_made_says_why(place):
    message = Host(place).bad(DATABASE, "init", "--database", "/proc/nowhere/vgpu.db")
    assert "/proc/nowhere" in message


def test_without_a_database_each_command_says_how_to_make_one(place):
    host = Host(place)
    for command, *words in [["list-vms"], ["list-pools"], ["events"], ["show-vm", "7"],
                            ["set-pool", "7", "B"], ["register-vm", "web1"], ["backup", "x"]]:
        assert "vgpu-admin init" in host.bad(DATABASE, command, *words)


def test_a_file_that_is_no_database_is_refused(host):
    host.database.write_text("this is no database, whatever its name is" * 100)
    assert host.run("list-vms").returncode == DATABASE
    assert json.loads(host.run("list-vms", "--json").stderr)["error"]["code"] == "database"


# --- register-vm -----------------------------------------------------------------------------


def test_a_vm_is_registered_with_the_defaults(host):
    answer = host.json("register-vm", "web1")
    assert list(answer) == ["vm", "directory", "retired", "mediator"]
    assert answer["directory"] == f"{host.share}/vm1" and answer["mediator"] == "down"
    vm = answer["vm"]
    assert list(vm) == VM_KEYS
    assert (vm["vm_id"], vm["name"], vm["uuid"], vm["pool"], vm["priority"]) == (
        1, "web1", None, "A", "medium")
    assert vm["limits"] == LIMITS
    assert (vm["state"], vm["channels"], vm["owner"], vm["mode"]) == (
        "active", ["file", "window"], None, "0700")
    assert host.vm("web1") == vm


def test_a_vm_is_registered_with_all_that_can_be_said(host):
    vm = host.json("register-vm", "--name", "db", "--uuid", UUID.upper(), "--vm-id", "42", "--pool",
                   "B", "--priority", "high", "--channels", "window", "--owner", "100042:100043",
                   "--mode", "0750", "--sessions", "3", "--device-memory", "512",
                   "--operation-limit", "2000", "--weight", "300", "--request-rate", "50",
                   "--request-burst", "7", "--device-share", "40", "--queue-depth", "16",
                   "--inflight-ops", "8", "--inflight-kib", "1024")["vm"]
    assert (vm["vm_id"], vm["name"], vm["uuid"], vm["pool"], vm["priority"]) == (
        42, "db", UUID, "B", "high")
    assert vm["limits"] == {
        "sessions_max": 3, "device_memory_mib": 512, "operation_limit_ms": 2000, "weight": 300,
        "request_rate": 50, "request_burst": 7, "device_share_percent": 40, "queue_depth_max": 16,
        "inflight_ops_max": 8, "inflight_kib_max": 1024}
    assert vm["limits"].keys() == LIMITS.keys()
    assert (vm["channels"], vm["owner"], vm["mode"]) == (
        ["window"], {"uid": 100042, "gid": 100043}, "0750")


def test_ids_are_the_smallest_that_are_free(host):
    ids = [host.json("register-vm", f"web{n}")["vm"]["vm_id"] for n in range(3)]
    host.good("remove-vm", "2")
    assert ids + [host.json("register-vm", "again")["vm"]["vm_id"]] == [1, 2, 3, 2]


def test_a_word_that_is_a_uuid_is_the_uuid(host):
    vm = host.json("register-vm", UUID)["vm"]
    assert (vm["uuid"], vm["name"]) == (UUID, None)


def test_a_pool_may_be_named(host):
    host.good("set-pool-name", "B", "training")
    assert host.json("register-vm", "web1", "--pool", "training")["vm"]["pool"] == "B"


def test_in_words_registering_says_what_the_vm_is(host):
    assert host.good("register-vm", "web1", "--priority", "2") == (
        f"VM 1 (web1) is registered: pool A, priority high, directory {host.share}/vm1\n")


@pytest.mark.parametrize("words, exit_code, message", [
    (["web2", "--vm-id", "7"], EXISTS, "VM id 7 is taken by VM 7 ('web1')"),
    (["web1"], EXISTS, "name 'web1' is taken by VM 7"),
    (["web2", "--uuid", UUID], EXISTS, f"UUID {UUID} is taken by VM 7"),
    (["web2", "--pool", "C"], NOT_FOUND, "no pool 'C'; there are: A"),
    (["web2", "--pool", "nowhere"], NOT_FOUND, "no pool 'nowhere'"),
    (["web2", "--priority", "urgent"], USAGE, "--priority: priority 'urgent': expected low, medium"),
    (["web2", "--vm-id", "0"], USAGE, "--vm-id: VM id '0': expected a whole number from 1"),
    (["web2", "--vm-id", "-1"], USAGE, "expected a whole number from 1"),
    (["web2", "--uuid", "5f7c"], USAGE, "UUID '5f7c'"),
    (["web2", "--channels", "pigeon"], USAGE, "--channels: \'pigeon': expected file, window, xen"),
    (["web2", "--owner", "nobody-has-this-name"], USAGE, "--owner: \'nobody-has-this-name'"),
    (["web2", "--mode", "0777"], USAGE, "--mode: \'0777': expected a mode that does not let every"),
    (["web2", "--mode", "0300"], USAGE, "--mode: \'0300': expected an octal mode from 0700"),
    (["web2", "--sessions", "none of your"], USAGE, "--sessions: \'none of your': expected a whole"),
    (["web2", "--device-memory", "-5"], USAGE, "--device-memory: \'-5': expected a whole number"),
    (["web2", "--address", "web2.example"], USAGE, "--address: \'web2.example': expected the guest's"),
    (["web2", "--name", "web3"], USAGE, "two names came, 'web2' and 'web3'"),
    (["web\t2"], USAGE, r"name 'web\x092'"),
    (["7"], USAGE, "name '7'"),
    (["web2", "web3"], USAGE, "'web3' is one word too many"),
    (["web2", "--frobnicate"], USAGE, "option '--frobnicate' is unknown"),
    (["web2", "--pool"], USAGE, "option '--pool' needs a value"),
])
def test_what_cannot_be_registered_is_refused(settled, words, exit_code, message):
    told = settled.bad(exit_code, "register-vm", *words)
    assert message in told, told


# --- show-vm, list-vms --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["7", "web1", UUID, UUID.upper()])
def test_a_vm_is_named_by_id_uuid_or_name(settled, name):
    assert settled.vm(name)["vm_id"] == 7


def test_show_vm_in_words_has_a_line_for_each_property(web):
    web.good("set-limit", "web1", "--sessions", "2", "--device-memory", "256")
    lines = dict(line.split(maxsplit=1) for line in web.good("show-vm", "web1").splitlines()
                 if len(line.split()[0]) + 1 <= 16 and not line.startswith(("Device", "Operation")))
    assert (lines["VM"], lines["Name"], lines["UUID"], lines["Pool"]) == (
        "7", "web1", UUID, "A (Pool A)")
    assert (lines["Sessions"], lines["Channels"], lines["Mode"]) == ("2", "file window", "0700")
    assert "Device memory    256 MiB\n" in web.good("show-vm", "web1")


@pytest.mark.parametrize("command", ["show-vm", "remove-vm", "release", "quarantine"])
@pytest.mark.parametrize("name", ["8", "web2", OTHER_UUID])
def test_a_vm_that_is_not_registered_is_not_found(settled, command, name):
    assert f"'{name}' is registered" in settled.bad(NOT_FOUND, command, name)


def test_vms_are_listed_by_number(web):
    web.good("register-vm", "early", "--vm-id", "3")
    vms = web.json("list-vms")["vms"]
    assert [vm["vm_id"] for vm in vms] == [3, 7]
    assert all(list(vm) == VM_KEYS for vm in vms)


@pytest.mark.parametrize("filters, expected", [
    (["--pool", "A"], [1, 2]), (["--pool", "B"], [3]), (["--pool", "Pool B"], [3]),
    (["--priority", "high"], [2, 3]), (["--priority", "1"], [1]),
    (["--state", "quarantined"], [2]), (["--state", "active"], [1, 3]),
    (["--pool", "A", "--priority", "high"], [2]),
    (["--pool", "B", "--state", "quarantined"], [])])
def test_filters_leave_what_matches_all_of_them(host, filters, expected):
    host.good("register-vm", "one")
    host.good("register-vm", "two", "--priority", "high")
    host.good("register-vm", "three", "--priority", "high", "--pool", "B")
    host.good("quarantine", "two")
    assert [vm["vm_id"] for vm in host.json("list-vms", *filters)["vms"]] == expected


@pytest.mark.parametrize("words, exit_code, message", [
    (["--pool", "Q"], NOT_FOUND, "no pool 'Q'"),
    (["--priority", "3"], USAGE, "--priority"),
    (["--state", "asleep"], USAGE, "--state: \'asleep': expected active or quarantined"),
    (["all"], USAGE, "'all' is one word too many")])
def test_filters_are_checked(settled, words, exit_code, message):
    assert message in settled.bad(exit_code, "list-vms", *words)


def test_an_empty_list_says_so_and_is_an_empty_array(host):
    assert host.good("list-vms") == (
        "No VM is registered: see vgpu-admin register-vm --help\n")
    assert host.json("list-vms") == {"vms": []}
    host.good("register-vm", "one")
    assert host.good("list-vms", "--pool", "B") == "No VM is like that.\n"


# --- changes ---------------------------------------------------------------------------------------


def test_a_change_says_what_was_and_what_is(web):
    answer = web.json("set-pool", "web1", "B")
    assert list(answer) == ["changed", "vm", "before", "mediator"]
    assert answer["changed"] and answer["mediator"] == "down"
    assert (answer["before"]["pool"], answer["vm"]["pool"]) == ("A", "B")
    assert web.good("set-priority", "web1", "low") == "VM 7 (web1): priority medium -> low\n"
    assert web.vm("web1")["pool"] == "B" and web.vm("web1")["priority"] == "low"


def test_what_is_so_already_is_said_to_be(web):
    assert web.good("set-pool", "7", "A") == "VM 7 (web1): nothing to change\n"
    assert web.json("set-priority", "7", "medium")["changed"] is False


def test_without_a_mediator_the_database_changes_and_the_tool_says_so(web):
    done = web.run("set-pool", "7", "B")
    assert done.returncode == OK
    assert done.stderr == (f"vgpu-admin: note: the mediator is not running ({web.directory}/state/"
                           "run/control.sock): it reads the database when it starts\n")
    assert web.vm("7")["pool"] == "B"


def test_quiet_says_nothing_of_what_went_well(web):
    done = web.run("set-pool", "7", "B", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (OK, "", "")


@pytest.mark.parametrize("words, exit_code, message", [
    (["set-pool", "7", "C"], NOT_FOUND, "no pool 'C'"),
    (["set-pool", "8", "B"], NOT_FOUND, "no VM with id, UUID or name '8'"),
    (["set-pool", "7"], USAGE, "set-pool needs VM POOL: 1 word came"),
    (["set-pool"], USAGE, "set-pool needs VM POOL: 0 words came"),
    (["set-priority", "7", "urgent"], USAGE, "priority 'urgent': expected low, medium or high"),
    (["set-priority", "8", "high"], NOT_FOUND, "'8'"),
    (["set-limit", "7"], USAGE, "which limit? Expected --sessions"),
    (["set-limit", "7", "--sessions", "x"], USAGE, "--sessions: \'x'"),
    (["set-limit", "8", "--sessions", "2"], NOT_FOUND, "'8'"),
    (["set-limit", "7", "--sessions", "0"], USAGE, "expected a whole number from 1 to 64, or"),
    (["set-limit", "7", "--sessions", "99999"], USAGE, "expected a whole number from 1 to 64, or"),
    (["set-limit", "7", "--device-memory", "1048577"], USAGE, "from 1 to 1048576, or default"),
    (["set-limit", "7", "--operation-limit", "86400001"], USAGE, "from 1 to 86400000, or default"),
    (["set-limit", "7", "--device-share", "101"], USAGE, "from 1 to 100, or none"),
    (["set-limit", "7", "--request-burst", "-1"], USAGE, ", or default"),
    (["register-vm", "x", "--sessions", "65"], USAGE, "--sessions: '65': expected"),
    (["register-vm", "x", "--device-share", "101"], USAGE, "--device-share: '101': expected"),
    (["register-vm", "x", "--inflight-kib", "all"], USAGE, "--inflight-kib: 'all': expected"),
    (["update-pool", "A", "--device-memory-max", "1073741825"], USAGE,
     "from 1 to 1073741824, or none"),
    (["update-pool", "A", "--vms-max", "2147483648"], USAGE, "from 1 to 2147483647, or"),
    (["quarantine", "7", "--reason", ""], USAGE, "--reason ''"),
    (["quarantine", "7", "--reason", "a\nb"], USAGE, r"--reason 'a\x0ab'"),
    (["quarantine", "7", "--reason", "x" * 300], USAGE, "expected 1 to 255 printable"),
    (["update-vm", "7"], USAGE, "what is to change? Expected --name"),
    (["update-vm", "8", "--name", "x"], NOT_FOUND, "'8'"),
    (["update-vm", "7", "--uuid", "x"], USAGE, "--uuid: UUID 'x'"),
    (["update-vm", "7", "--name", "x" * 64], USAGE, "--name: name 'xxx"),
    (["update-vm", "7", "--mode", "777"], USAGE, "--mode: \'777'"),
])
def test_a_change_that_cannot_be_is_refused(settled, words, exit_code, message):
    told = settled.bad(exit_code, *words)
    assert message in told, told


def test_limits_are_set_one_by_one_and_given_back(web):
    assert web.good("set-limit", "7", "--sessions", "2", "--operation-limit", "500") == (
        "VM 7 (web1): sessions default -> 2, operation limit default -> 500 ms\n")
    web.good("set-limit", "7", "--device-memory", "128")
    assert web.vm("7")["limits"] == LIMITS | {"sessions_max": 2, "device_memory_mib": 128,
                                              "operation_limit_ms": 500}
    web.good("set-limit", "7", "--sessions", "default")
    assert web.vm("7")["limits"] == LIMITS | {"device_memory_mib": 128, "operation_limit_ms": 500}


def test_rates_shares_and_bounds_are_set_and_taken_back(web):
    assert web.good("set-limit", "7", "--weight", "300", "--request-rate", "50",
                    "--request-burst", "5", "--device-share", "25", "--queue-depth", "100",
                    "--inflight-ops", "8", "--inflight-kib", "4096") == (
        "VM 7 (web1): weight default -> 300, request rate no bound -> 50/s, request burst default"
        " -> 5, device share no bound -> 25 %, queue depth no bound -> 100, in flight no bound -> 8"
        " operations, in flight bytes no bound -> 4096 KiB\n")
    assert web.vm("7")["limits"] == LIMITS | {
        "weight": 300, "request_rate": 50, "request_burst": 5, "device_share_percent": 25,
        "queue_depth_max": 100, "inflight_ops_max": 8, "inflight_kib_max": 4096}
    shown = web.good("show-vm", "7")
    assert "Device share     25 %\n" in shown and "Request rate     50/s\n" in shown
    for option in ["weight", "request-rate", "request-burst", "device-share", "queue-depth",
                   "inflight-ops", "inflight-kib"]:
        web.good("set-limit", "7", f"--{option}", "none")
    assert web.vm("7")["limits"] == LIMITS
    for option, most in [("weight", 1000), ("request-rate", 10000000), ("device-share", 100)]:
        said = web.bad(USAGE, "set-limit", "7", f"--{option}", most + 1)
        assert f"--{option}: '{most + 1}': expected a whole number from 1 to {most}, or" in said


def test_a_change_of_policy_is_told_and_what_of_it_has_no_effect(host):
    def said(*words):
        return host.good("update-pool", "A", *words).partition("any device memory")[2]

    def noted(*words):
        done = host.run("update-pool", "A", *words)
        assert done.returncode == OK
        return done.stderr

    assert said("--policy", "wfq") == "; policy default -> wfq\n"
    assert said("--policy", "wfq") == "\n"
    assert said("--policy", "strict", "--aging", "500") == (
        "; policy wfq -> strict; aging none -> 500 ms\n")
    assert "demand = yes has no effect with the policy strict" in noted("--demand", "yes")
    assert "has no effect" not in noted("--description", "other")
    changed = noted("--policy", "wfq")
    assert "aging = 500 ms has no effect with the policy wfq" in changed and "demand" not in changed
    assert "has no effect" not in noted("--policy", "default")


def test_a_pool_has_a_policy_of_its_own(host):
    pool = host.json("update-pool", "A", "--policy", "wfq", "--aging", "500", "--demand", "yes")["pool"]
    assert (pool["policy"], pool["aging_ms"], pool["demand"]) == ("wfq", 500, True)
    shown = host.good("show-pool", "A")
    assert "Policy           wfq\nAging            500 ms\nDemand           yes\n" in shown
    pool = host.json("update-pool", "A", "--policy", "default", "--aging", "none",
                     "--demand", "no")["pool"]
    assert (pool["policy"], pool["aging_ms"], pool["demand"]) == ("default", None, False)
    said = host.bad(USAGE, "update-pool", "A", "--policy", "fair")
    assert "--policy: policy 'fair': expected strict, wfq, fifo, round-robin or default" in said
    host.json("create-pool", "C", "--policy", "round-robin", "--device", "cpu")
    assert [pool["policy"] for pool in host.json("list-pools")["pools"]] == [
        "default", "default", "round-robin"]


def test_a_second_quarantine_without_a_reason_keeps_the_first_ones(web):
    web.good("quarantine", "web1", "--reason", "Xid 31 twice")
    assert web.good("quarantine", "web1") == "VM 7 (web1): nothing to change\n"
    assert web.vm("7")["reason"] == "Xid 31 twice"
    web.good("quarantine", "web1", "--reason", "and again")
    assert web.vm("7")["reason"] == "and again"
    web.good("release", "web1")
    web.good("quarantine", "web1")
    assert web.vm("7")["reason"] == "by the administrator"


def test_a_vm_is_quarantined_with_a_reason_and_released(web):
    assert web.good("quarantine", "web1", "--reason", "Xid 31 twice") == (
        "VM 7 (web1): state active -> quarantined, reason none -> Xid 31 twice\n")
    assert (web.vm("7")["state"], web.vm("7")["reason"]) == ("quarantined", "Xid 31 twice")
    assert "Reason           Xid 31 twice\n" in web.good("show-vm", "7")
    assert web.good("release", "web1") == (
        "VM 7 (web1): state quarantined -> active, reason Xid 31 twice -> none\n")
    assert (web.vm("7")["state"], web.vm("7")["reason"]) == ("active", None)


def test_update_vm_changes_what_is_named_and_nothing_else(web):
    before = web.vm("7")
    after = web.json("update-vm", "7", "--name", "web9", "--uuid", OTHER_UUID)["vm"]
    different = {key for key in before if before[key] != after[key]} - {"changed"}
    assert different == {"name", "uuid"}
    assert web.vm("web9")["uuid"] == OTHER_UUID
    assert web.json("update-vm", "7", "--uuid", "none")["vm"]["uuid"] is None


def test_owner_and_mode_change_apart(web):
    web.good("update-vm", "7", "--owner", "100007")
    assert (web.vm("7")["owner"], web.vm("7")["mode"]) == ({"uid": 100007, "gid": 100007}, "0700")
    web.good("update-vm", "7", "--mode", "0750")
    assert (web.vm("7")["owner"], web.vm("7")["mode"]) == ({"uid": 100007, "gid": 100007}, "0750")
    web.good("update-vm", "7", "--owner", "default")
    assert (web.vm("7")["owner"], web.vm("7")["mode"]) == (None, "0750")


def test_the_workers_user_owns_no_vm(web):
    """Its programs could end the workers of all VMs."""
    message = web.bad(FAILED, "update-vm", "7", "--owner", "65534")
    assert "whom the workers of all VMs run as (worker_user = nobody)" in message
    assert "--owner 100007" in message
    web.good("update-vm", "7", "--owner", "65534", "--force")
    with open(web.config, "a", encoding="ascii") as config:
        config.write("[mediator]\nworker_user = 4711\n")
    web.bad(FAILED, "register-vm", "web2", "--owner", "4711")
    web.good("register-vm", "web2", "--owner", "4712")


def test_a_name_of_another_vm_is_refused(web):
    web.good("register-vm", "web2")
    assert "name 'web1' is taken by VM 7" in web.bad(EXISTS, "update-vm", "web2", "--name", "web1")


def test_a_removed_vm_is_shown_as_it_was(web):
    answer = web.json("remove-vm", "web1")
    assert answer["vm"]["vm_id"] == 7 and answer["mediator"] == "down"
    assert "no VM" in web.bad(NOT_FOUND, "show-vm", "7")


# --- pools ----------------------------------------------------------------------------------------------


def test_pools_are_listed(web):
    pools = web.json("list-pools")["pools"]
    assert [list(pool) for pool in pools] == [POOL_KEYS, POOL_KEYS]
    assert [(pool["id"], pool["vm_count"]) for pool in pools] == [("A", 1), ("B", 0)]
    lines = web.good("list-pools").splitlines()
    assert lines[0].split() == ["POOL", "NAME", "ENABLED", "SHARING", "POLICY", "DEVICE", "VMS",
                                "MOST", "MEMORY"]
    assert len(lines) == 3


def test_a_pool_is_shown_with_its_vms(web):
    web.good("set-pool-name", "A", "training")
    shown = web.json("show-pool", "training")
    assert shown["pool"]["id"] == "A" and [vm["vm_id"] for vm in shown["vms"]] == [7]
    words = web.good("show-pool", "A")
    assert "Name             training\n" in words
    assert words.endswith("VM  NAME  PRIORITY  STATE\n 7  web1  medium    active\n")
    assert web.good("show-pool", "B").endswith("VMs              0\n")


def test_a_pool_is_made_as_its_options_say(host):
    made = host.json("create-pool", "D", "--name", "big", "--description", "for long jobs",
                     "--sharing", "independent", "--device", "cpu:1", "--vms-max", "4",
                     "--device-memory-max", "4096", "--enabled", "no")
    assert made["mediator"] == "down"
    assert made["pool"] == {
        "id": "D", "name": "big", "description": "for long jobs", "enabled": False,
        "sharing": "independent", "device": "cpu:1", "placement": "spread",
        "session_devices": 1,
        "vms_max": 4, "device_memory_max_mib": 4096,
        "policy": "default", "aging_ms": None, "demand": False,
        "vm_count": 0}
    assert host.json("show-pool", "big")["pool"] == made["pool"]
    assert [(one["name"], one["pools"]) for one in host.json("list-devices")["devices"]] == [
        ("cpu", ["A", "B"]), ("cpu:1", ["D"])]


def test_a_pool_is_changed_where_options_say_so(host):
    before = host.json("show-pool", "B")["pool"]
    after = host.json("update-pool", "B", "--vms-max", "2", "--description", "small")["pool"]
    assert {key for key in before if before[key] != after[key]} == {"vms_max", "description"}
    assert host.good("update-pool", "B", "--vms-max", "none", "--enabled", "no") == (
        "Pool B (Pool B) is disabled, shared, on cpu, any number of VMs, any device memory\n")


def test_a_disabled_pool_takes_no_vm(web):
    web.good("update-pool", "B", "--enabled", "no")
    assert "pool B ('Pool B') is disabled" in web.bad(FAILED, "set-pool", "7", "B")
    assert "is disabled" in web.bad(FAILED, "register-vm", "web2", "--pool", "B")


def test_a_full_pool_takes_no_further_vm(web):
    web.good("update-pool", "A", "--vms-max", "1")
    message = web.bad(FAILED, "register-vm", "web2")
    assert "pool A ('Pool A') is full: it has 1 VMs and takes at most 1" in message


@pytest.mark.parametrize("damage", ["garbage", "gone", "pages"])
def test_a_database_that_is_none_any_more_gives_way_to_the_backup(web, place, damage):
    web.good("backup", place / "b.db")
    if damage == "garbage":
        web.database.write_text("garbage")
    elif damage == "gone":
        web.database.unlink()
    else:
        content = bytearray(web.database.read_bytes())
        content[8192:] = bytes(255) * (len(content) // 255)
        web.database.write_bytes(content[:len(content)])
    done = web.run("restore", place / "b.db", "--yes")
    assert done.returncode == OK, done.stderr
    assert [vm["name"] for vm in web.json("list-vms")["vms"]] == ["web1"]
    assert web.json("events", "--action", "restore")["events"]
    assert ("the unusable database is now" in done.stderr) == (damage != "gone")


def test_a_backup_that_cannot_be_read_moves_nothing(web, place):
    web.database.write_text("garbage")
    done = web.run("restore", place / "nowhere", "--yes")
    assert done.returncode == FAILED and "nowhere" in done.stderr
    assert web.database.read_text() == "garbage"


def test_only_an_empty_pool_is_removed_and_never_the_last(web):
    assert "pool A has 1 VMs" in web.bad(FAILED, "remove-pool", "A")
    assert web.good("remove-pool", "B") == "Pool B is removed\n"
    web.good("remove-vm", "7")
    assert "pool A is the last one" in web.bad(FAILED, "remove-pool", "A")


def test_a_pools_device_is_bound_and_taken_away(host):
    assert host.json("bind-device", "B", "cpu:3")["pool"]["device"] == "cpu:3"
    assert "cpu:3" in [one["name"] for one in host.json("list-devices")["devices"]]
    assert "cpu:3   cpu   B      in use" in host.good("list-devices")
    assert host.json("bind-device", "B", "none")["pool"]["device"] is None
    assert "cpu:3   cpu   -      free" in host.good("list-devices")
    uuid = "GPU-" + UUID
    host.good("bind-device", "Pool B", uuid)
    kinds = {one["name"]: one["kind"] for one in host.json("list-devices")["devices"]}
    assert kinds[uuid] == "gpu" and kinds["cpu"] == "cpu"
    assert f"{uuid}  gpu   B" in host.good("list-devices")


def test_a_pool_is_bound_to_several_devices(host):
    assert host.json("bind-device", "B", "cpu:3,cpu:1")["pool"]["device"] == "cpu:3 cpu:1"
    assert host.json("update-pool", "B", "--placement", "pack")["pool"]["placement"] == "pack"
    pools = {one["name"]: one["pools"] for one in host.json("list-devices")["devices"]}
    assert pools == {"cpu": ["A"], "cpu:1": ["B"], "cpu:3": ["B"]}
    assert "Placement        pack" in host.good("show-pool", "B")
    host.good("create-pool", "C", "--device", "cpu:3,cpu:4", "--placement", "pack")
    pool = host.json("show-pool", "C")["pool"]
    assert (pool["device"], pool["placement"]) == ("cpu:3 cpu:4", "pack")


def test_a_pool_gives_a_session_as_many_devices_as_it_has(host):
    host.good("create-pool", "C", "--device", "cpu:3,cpu:4,cpu:5", "--session-devices", 2)
    pool = host.json("show-pool", "C")["pool"]
    assert pool["session_devices"] == 2
    assert "Session devices  2" in host.good("show-pool", "C")
    assert "cpu:5 (2 a session)" in host.good("update-pool", "C", "--description", "pairs")
    assert host.json("update-pool", "C", "--session-devices", 3)["pool"]["session_devices"] == 3
    said = host.bad(FAILED, "update-pool", "C", "--session-devices", 4)
    assert "session_devices 4: pool C has 0 GPUs and 3 processors, expected at most" in said
    assert "session_devices 3: pool C has 0 GPUs and 2" in host.bad(FAILED, "bind-device", "C",
                                                                    "cpu:3,cpu:4")
    for number in "0", "9", "two":
        said = host.bad(USAGE, "update-pool", "C", "--session-devices", number)
        assert f"--session-devices: '{number}': expected a number of 1 to 8" in said


def test_a_session_has_one_mig_instance_at_most(host):
    mig = [f"MIG-00000000-0000-0000-0000-00000000000{i}" for i in range(2)]
    said = host.bad(FAILED, "create-pool", "C", "--device", ",".join(mig), "--session-devices", 2)
    assert "a session can have one MIG instance only" in said


@pytest.mark.parametrize("devices, reason", [
    ("cpu:1,cpu:1", "device 'cpu:1' is named twice"),
    ("cpu:1,gpu", "device 'gpu': expected cpu, cpu:0 to cpu:63"),
    ("cpu:1,", "device '': expected"),
    (",".join(f"cpu:{i}" for i in range(9)), "expected at most 8 devices with commas between"),
])
def test_devices_that_cannot_be_a_pools_are_refused(host, devices, reason):
    done = host.run("bind-device", "B", devices)
    assert done.returncode != OK and reason in done.stderr
    assert host.json("show-pool", "B")["pool"]["device"] == "cpu"


def test_a_backup_knows_a_pools_devices_and_what_is_withdrawn(host, place):
    host.good("bind-device", "B", "cpu:1,cpu:2")
    host.good("withdraw-device", "cpu:2")
    host.good("backup", place / "backup.db")
    host.good("return-device", "cpu:2")
    host.good("bind-device", "B", "cpu")
    host.good("restore", place / "backup.db", "--yes")
    assert host.json("show-pool", "B")["pool"]["device"] == "cpu:1 cpu:2"
    assert {one["name"]: one["withdrawn"] for one in host.json("list-devices")["devices"]} == {
        "cpu": False, "cpu:1": False, "cpu:2": True}


def test_a_device_is_withdrawn_and_returned(host):
    def states():
        return {one["name"]: one["withdrawn"] for one in host.json("list-devices")["devices"]}

    host.good("bind-device", "B", "cpu:1")
    assert host.good("withdraw-device", "cpu:1") == "Device cpu:1 is withdrawn: no pool uses it\n"
    assert states() == {"cpu": False, "cpu:1": True}
    assert host.json("withdraw-device", "cpu:1")["device"]["withdrawn"] is True
    host.good("return-device", "cpu:1")
    assert states() == {"cpu": False, "cpu:1": False}
    events = [(one["action"], one["after"]) for one in host.json("events")["events"]
              if "-device" in one["action"]]
    assert events[1:] == [
        ("bind-device", {"device": "cpu:1"}),
        ("withdraw-device", {"device": "cpu:1", "state": "withdrawn"}),
        ("return-device", {"device": "cpu:1", "state": "in use"})]
    assert "no device 'cpu:9'; there are: cpu, cpu:1" in host.bad(NOT_FOUND, "withdraw-device",
                                                                "cpu:9")



@pytest.mark.parametrize("words, exit_code, message", [
    (["show-pool", "C"], NOT_FOUND, "no pool 'C'"),
    (["create-pool", "A"], EXISTS, "pool A is there already"),
    (["create-pool", "AA"], USAGE, "pool id 'AA': expected one letter"),
    (["create-pool", "c"], USAGE, "pool id 'c': expected one letter"),
    (["create-pool", "C", "--name", "Pool A"], EXISTS, "name 'Pool A' is taken by pool A"),
    (["create-pool", "C", "--sharing", "none"], USAGE, "--sharing: \'none': expected shared or"),
    (["create-pool", "C", "--enabled", "maybe"], USAGE, "--enabled: \'maybe': expected yes or no"),
    (["create-pool", "C", "--device", "abacus"], USAGE, "--device"),
    (["create-pool", "C", "--vms-max", "-1"], USAGE, "--vms-max: \'-1'"),
    (["create-pool", "C", "--description", "x" * 300], USAGE, "--description"),
    (["update-pool", "A"], USAGE, "what is to change? Expected --name"),
    (["update-pool", "C", "--enabled", "no"], NOT_FOUND, "no pool 'C'"),
    (["set-pool-name", "C", "x"], NOT_FOUND, "no pool 'C'"),
    (["set-pool-name", "A", "Pool B"], EXISTS, "is taken by pool B"),
    (["set-pool-name", "A"], USAGE, "set-pool-name needs POOL NAME: 1 word came"),
    (["remove-pool", "C"], NOT_FOUND, "no pool 'C'"),
    (["bind-device", "C", "cpu"], NOT_FOUND, "no pool 'C'"),
    (["bind-device", "A", "abacus"], USAGE, "abacus"),
    (["list-pools", "A"], USAGE, "'A' is one word too many"),
    (["list-devices", "cpu"], USAGE, "'cpu' is one word too many"),
])
def test_what_cannot_be_done_to_a_pool_is_refused(settled, words, exit_code, message):
    told = settled.bad(exit_code, *words)
    assert message in told, told


# --- several administrators --------------------------------------------------------------------------------


def test_two_administrators_at_once_lose_no_update(web):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        names = [f"vm-{number}" for number in range(24)]
        done = list(pool.map(lambda name: web.run("register-vm", name), names))
        assert [one.returncode for one in done] == [OK] * 24, [one.stderr for one in done]
        changes = ([("set-pool", "web1", "B")] + [("set-priority", "web1", "high")]
                   + [("set-limit", "web1", "--sessions", "3")])
        done = list(pool.map(lambda words: web.run(*words), changes))
        assert [one.returncode for one in done] == [OK] * 3, [one.stderr for one in done]
    vms = web.json("list-vms")["vms"]
    assert sorted(vm["name"] for vm in vms) == sorted(names + ["web1"])
    assert len({vm["vm_id"] for vm in vms}) == 25
    web1 = web.vm("web1")
    assert (web1["pool"], web1["priority"], web1["limits"]["sessions_max"]) == ("B", "high", 3)
