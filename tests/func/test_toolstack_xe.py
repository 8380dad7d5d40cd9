# SPDX-License-Identifier: Apache-2.0
"""XAPI by `xe`, against a fake one that answers as public texts say."""

import pytest

import fake_toolstack
from toolstack_support import Fake

WEB = "8ac95696-94f3-83c1-bc89-8bb2603f832b"
DATABASE = "ea322627-0ac6-b3f1-c20f-dd1fa3da5662"
NOBODY = "00000000-0000-4000-8000-000000000000"
VGPU = {"vgpu-id": "7", "vgpu-pool": "B", "vgpu-priority": "high"}


def vm(uuid=WEB, name="web", state="halted", **platform):
    return {"uuid": uuid, "name": name, "state": state,
            "platform": {"acpi": "true", "nx": "false", **platform}}


@pytest.fixture
def xe(place):
    fake = Fake(place / "bin", "xe")
    fake.change(vms=[vm(), vm(DATABASE, "database", "running", **VGPU)])
    return fake


def platform(xe, uuid=WEB):
    return next(one["platform"] for one in xe.load()["vms"] if one["uuid"] == uuid)


def good(xe, *arguments):
    status, answer = xe.probe("xapi", *arguments)
    assert status == 0, answer
    return answer


def bad(xe, code, *arguments):
    status, answer = xe.probe("xapi", *arguments)
    assert (status, answer["code"]) == (1, code), answer
    return answer["error"]


def test_every_answer_of_the_fake_names_its_public_source():
    for name in ["xe", "xl"]:
        entries = fake_toolstack.transcript(name)
        assert len(entries) >= 5
        for entry in entries.values():
            assert entry.command.startswith(f"{name} "), entry.name
            assert entry.sources and all(url.startswith("https://") for url in entry.sources)


def test_vms_are_listed_by_name_with_state_and_device(xe):
    database, web = good(xe, "list")
    assert (web["name"], web["uuid"], web["state"]) == ("web", WEB, "off")
    assert "device" not in web
    assert (database["name"], database["state"], database["problem"]) == ("database", "running", "")
    device = database["device"]
    assert (device["vm_id"], device["pool"], device["priority"]) == (7, "B", 2)
    assert device["window"] is False
    assert len(xe.calls()) == 1  # however many VMs


def test_no_vm_is_an_empty_list(xe):
    xe.change(vms=[])
    assert good(xe, "list") == []


@pytest.mark.parametrize("state,said", [("paused", "paused"), ("suspended", "other"),
                                        ("halted", "off"), ("running", "running")])
def test_states_of_xapi_are_understood(xe, state, said):
    xe.change(vms=[vm(state=state)])
    assert good(xe, "find", "web")["state"] == said


@pytest.mark.parametrize("keys,problem", [
    ({"vgpu-id": "x"}, "platform:vgpu-id is not a VM's number"),
    ({"vgpu-id": "0"}, "platform:vgpu-id is not a VM's number"),
    ({"vgpu-pool": "AB"}, "platform:vgpu-pool is not one letter from A to Z"),
    ({"vgpu-priority": "urgent"}, "platform:vgpu-priority is not low, medium or high"),
])
def test_keys_that_make_no_device_are_told(xe, keys, problem):
    xe.change(vms=[vm(**{**VGPU, **keys})])
    assert good(xe, "find", "web")["problem"] == problem


@pytest.mark.parametrize("missing", VGPU)
def test_a_key_that_is_missing_is_told(xe, missing):
    xe.change(vms=[vm(**{key: value for key, value in VGPU.items() if key != missing})])
    assert f"platform:{missing} is not" in good(xe, "find", "web")["problem"]


@pytest.mark.parametrize("name", [
    "web\n        platform (MRW): vgpu-id: 1; vgpu-pool: A; vgpu-priority: high",
    "web\nx",
    "web\n     power-state ( RO): running",
])
def test_a_name_with_line_breaks_cannot_speak_for_the_vm(xe, name):
    xe.change(vms=[vm(name=name)])
    (found,) = good(xe, "list")
    assert "device" not in found
    assert found["problem"] == ("xe's answer about it cannot be read: give it a name without line "
                                "breaks")


def test_a_name_with_line_breaks_cannot_speak_for_another_vm(xe):
    other = ("x\n    power-state ( RO): halted\n       platform (MRW): acpi: true\n\n\n"
             f"uuid ( RO)           : {DATABASE}\n     name-label ( RW): database\n"
             "    power-state ( RO): running\n       platform (MRW): vgpu-id: 99; vgpu-pool: A; "
             "vgpu-priority: high\n\n\nuuid ( RO)           : " + NOBODY)
    xe.change(vms=[vm(name=other), vm(DATABASE, "database", "running", **VGPU)])
    for one in good(xe, "list"):
        assert one["uuid"] != DATABASE or "device" not in one
        assert one["uuid"] != DATABASE or "names its UUID twice" in one["problem"]


def test_a_vm_is_found_by_uuid_or_name(xe):
    assert good(xe, "find", "web")["uuid"] == WEB
    assert good(xe, "find", DATABASE.upper())["name"] == "database"
    assert "no VM with the UUID or name 'nobody'" in bad(xe, "ENOENT", "find", "nobody")


def test_publish_sets_three_keys_with_one_command_and_looks(xe):
    good(xe, "publish", WEB, 7, "B", 2)
    assert platform(xe) == {"acpi": "true", "nx": "false", **VGPU}
    assert xe.calls() == [
        ["vm-param-get", f"uuid={WEB}", "param-name=platform"],
        ["vm-param-set", f"uuid={WEB}", "platform:vgpu-id=7", "platform:vgpu-pool=B",
         "platform:vgpu-priority=high"],
        ["vm-param-get", f"uuid={WEB}", "param-name=platform"],
    ]


def test_publish_of_what_is_there_changes_nothing(xe):
    good(xe, "publish", DATABASE, 7, "B", 2)
    assert [call[0] for call in xe.calls()] == ["vm-param-get"]


def test_unpublish_removes_the_keys_and_no_other(xe):
    good(xe, "unpublish", DATABASE)
    assert platform(xe, DATABASE) == {"acpi": "true", "nx": "false"}
    xe_calls = len(xe.calls())
    good(xe, "unpublish", DATABASE)
    assert len(xe.calls()) == xe_calls + 1


def steps(xe, *arguments):
    """How many calls it takes when nothing fails; all is as before afterwards."""
    before = xe.load()
    good(xe, *arguments)
    count = len(xe.calls())
    xe.save(before)
    (xe.directory / "calls.json").unlink()
    return before, count


@pytest.mark.parametrize("arguments", [
    ("publish", DATABASE, 8, "A", 0), ("publish", WEB, 8, "A", 0), ("unpublish", DATABASE),
], ids=["change", "add", "remove"])
def test_a_failure_at_any_step_leaves_the_keys_as_they_were(xe, arguments):
    before, count = steps(xe, *arguments)
    assert count >= 3
    for step in range(1, count + 1):
        xe.save({**before, "fail_at": [step]})
        message = bad(xe, "EIO", *arguments)
        assert f"was told to fail at call {step}" in message
        assert xe.load()["vms"] == before["vms"], step
        (xe.directory / "calls.json").unlink()


def test_what_cannot_be_put_back_is_told_with_what_to_look_at(xe):
    arguments = ("unpublish", DATABASE)
    before, count = steps(xe, *arguments)
    xe.save({**before, "fail_from": 3})
    message = bad(xe, "EIO", *arguments)
    assert "the earlier keys could not be put back" in message
    assert f"xe vm-param-get uuid={DATABASE} param-name=platform" in message


@pytest.mark.parametrize("key", VGPU)
def test_a_command_that_set_some_of_the_keys_is_undone(xe, key):
    before = xe.load()
    xe.change(set_stops_after=key)
    message = bad(xe, "EIO", "publish", WEB, 8, "A", 0)
    assert "the connection was lost" in message
    assert xe.load()["vms"] == before["vms"]


@pytest.mark.parametrize("device", [(0, "A", 1), (2147483648, "A", 1), (1, "a", 1), (1, "A", 3)])
def test_values_that_cannot_be_never_reach_xe(xe, device):
    bad(xe, "EINVAL", "publish", WEB, *device)
    assert xe.calls() == []


@pytest.mark.parametrize("uuid", ["web", "", f"{WEB} platform:x=y", f"{WEB}\n", "--all"])
@pytest.mark.parametrize("command", ["start", "publish", "stop"])
def test_what_is_no_uuid_never_reaches_xe(xe, uuid, command):
    more = {"start": [], "publish": [1, "A", 1], "stop": [1000]}[command]
    assert "XAPI names VMs by UUID" in bad(xe, "EINVAL", command, uuid, *more)
    assert xe.calls() == []


def test_start_and_stop_say_just_the_uuid(xe):
    good(xe, "start", WEB)
    good(xe, "stop", WEB, 20000)
    assert xe.calls() == [["vm-start", f"uuid={WEB}"],
                          ["vm-param-get", f"uuid={WEB}", "param-name=power-state"],
                          ["vm-shutdown", f"uuid={WEB}"]]
    assert good(xe, "find", "web")["state"] == "off"


def test_a_vm_that_is_off_is_stopped_already(xe):
    good(xe, "stop", WEB, 20000)
    assert [call[0] for call in xe.calls()] == ["vm-param-get"]


def test_a_vm_that_runs_cannot_be_started_and_that_is_busy(xe):
    message = bad(xe, "EBUSY", "start", DATABASE)
    assert "a VM that was not in an appropriate power state" in message


def test_a_uuid_that_nobody_has_is_not_found(xe):
    for arguments in [("start", NOBODY), ("stop", NOBODY, 1000), ("publish", NOBODY, 1, "A", 1)]:
        assert "The uuid you supplied was invalid. type: VM" in bad(xe, "ENOENT", *arguments)


def test_a_guest_that_does_not_shut_down_is_a_timeout(xe):
    xe.change(vms=[{**vm(state="running"), "hangs": 600}])
    assert "did not end within 500 ms and was killed" in bad(xe, "ETIMEDOUT", "stop", WEB, 500)
    assert good(xe, "find", "web")["state"] == "running"


def test_a_guest_that_does_not_shut_down_is_powered_off_with_force(xe):
    xe.change(vms=[{**vm(state="running"), "hangs": 600}])
    good(xe, "stop", WEB, 500, "force")
    assert xe.calls()[-1] == ["vm-shutdown", f"uuid={WEB}", "force=true"]
    assert good(xe, "find", "web")["state"] == "off"


@pytest.mark.parametrize("arguments", [("list",), ("find", "web"), ("start", WEB)])
def test_a_failure_is_told_with_the_words_of_xe(xe, arguments):
    xe.change(fail_from=1)
    message = bad(xe, "EIO", *arguments)
    assert "failed with status 1: Error: xe was told to fail at call 1" in message


@pytest.mark.parametrize("step", [1, 2])
def test_stop_fails_at_either_step(xe, step):
    xe.change(fail_at=[step])
    bad(xe, "EIO", "stop", DATABASE, 1000)
    assert len(xe.calls()) == step
    xe.change(fail_at=[])
    assert good(xe, "find", "database")["state"] == "running"


def test_a_uri_of_libvirt_is_refused(xe):
    status, answer = xe.probe("xapi", "-c", "qemu:///system", "list")
    assert (status, answer["code"]) == (1, "EINVAL")
