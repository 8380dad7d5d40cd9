# SPDX-License-Identifier: Apache-2.0
"""Plain Xen by `xl` and its configuration files, against a fake xl."""

import os
import stat

import pytest

from toolstack_support import Fake

WIN = "59e1cf6c-6ab9-4879-90e7-adc8d1c63bf5"
LINUX = "50bc8f75-81d0-4d53-b2e6-95cb44e2682e"
OURS = '"-device", "vgpu-stub,vm_id=7,pool_id=B,priority=high"'


@pytest.fixture
def configs(place):
    directory = place / "etc-xen"
    directory.mkdir()
    (directory / "win.cfg").write_text(f'name = "win"\nuuid = "{WIN}"\nmemory = 1019\n')
    (directory / "linux.cfg").write_text(
        f'# the database\nname = "linux"\ndevice_model_args_hvm = [ {OURS} ]\n')
    (directory / "xl.conf").write_text("autoballoon=1\n")
    return directory


@pytest.fixture
def xl(place):
    fake = Fake(place / "bin", "xl")
    fake.change(vms=[{"uuid": LINUX, "name": "linux", "domain": 3, "letters": "-b----"}])
    return fake


@pytest.fixture
def ask(xl, configs):
    return lambda *arguments: xl.probe("xl", *arguments, VGPU_XL_DIRECTORY=str(configs))


@pytest.fixture
def good(ask):
    def call(*arguments):
        status, answer = ask(*arguments)
        assert status == 0, answer
        return answer
    return call


@pytest.fixture
def bad(ask):
    def call(code, *arguments):
        status, answer = ask(*arguments)
        assert (status, answer["code"]) == (1, code), answer
        return answer["error"]
    return call


def test_what_runs_and_what_could_are_one_list(good, xl):
    linux, win = good("list")
    assert (linux["name"], linux["state"], linux["uuid"]) == ("linux", "running", "")
    assert (linux["device"]["vm_id"], linux["device"]["pool"], linux["device"]["priority"]) == \
        (7, "B", 2)
    assert (win["name"], win["state"], win["uuid"]) == ("win", "off", WIN)
    assert "device" not in win
    assert xl.calls() == [["vm-list"], ["list"]]


def test_a_domain_without_a_file_is_listed_with_its_uuid(good, xl):
    xl.change(vms=[{"uuid": LINUX, "name": "made by hand", "domain": 3, "letters": "-b----"}])
    found = good("find", "made by hand")
    assert (found["uuid"], found["state"]) == (LINUX, "running")


def test_a_domain_that_has_another_name_by_now_is_known_by_its_files_uuid(good, xl):
    xl.change(vms=[{"uuid": WIN, "name": "win-old", "domain": 4, "letters": "-b----"}])
    linux, win = good("list")
    assert (linux["name"], linux["state"]) == ("linux", "off")
    assert (win["name"], win["uuid"], win["state"]) == ("win-old", WIN, "running")


def test_a_domain_with_the_name_of_a_file_but_another_uuid_is_another_vm(good, bad, xl):
    xl.change(vms=[{"uuid": LINUX, "name": "win", "domain": 4, "letters": "-b----"}])
    assert good("find", WIN)["state"] == "off"
    assert good("find", LINUX)["state"] == "running"
    assert "two VMs have the name 'win'" in bad("EINVAL", "stop", "win", 500)


def test_two_domains_of_one_uuid_are_both_listed(good, xl):
    """Xen lets them be, where the first has been renamed."""
    xl.change(vms=[{"uuid": WIN, "name": "win-old", "domain": 4, "letters": "-b----"},
                   {"uuid": WIN, "name": "win", "domain": 5, "letters": "-b----"}])
    assert [(vm["name"], vm["uuid"], vm["state"]) for vm in good("list")[1:]] == [
        ("win", WIN, "running"), ("win-old", WIN, "running")]


@pytest.mark.parametrize("letters,state", [("r-----", "running"), ("--p---", "paused"),
                                           ("---s--", "other"), ("----c-", "other"),
                                           ("-----d", "other")])
def test_states_of_xl_are_understood(good, xl, letters, state):
    xl.change(vms=[{"uuid": LINUX, "name": "linux", "domain": 3, "letters": letters}])
    assert good("find", "linux")["state"] == state


def test_a_file_that_makes_no_sense_is_listed_with_the_reason(good, configs):
    (configs / "broken.cfg").write_text('name = "broken"\ndisk = [ "a"\n')
    found = good("find", "broken.cfg")
    assert "the value of 'disk' has no end" in found["problem"]


def test_files_that_are_no_domains_are_passed_over(good, configs):
    (configs / "notes.cfg").write_text("memory = 5\n")
    (configs / ".hidden.cfg").write_text('name = "hidden"\n')
    os.symlink(configs / "win.cfg", configs / "link.cfg")
    os.mkfifo(configs / "pipe.cfg")
    assert [one["name"] for one in good("list")] == ["linux", "win"]


def test_publish_writes_the_device_into_the_file_and_keeps_the_rest(good, configs):
    path = configs / "win.cfg"
    path.chmod(0o640)
    before = path.read_text()
    good("publish", WIN, 7, "B", 2)
    assert path.read_text() == before + f"device_model_args_hvm = [ {OURS} ]\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    good("unpublish", "win")
    assert path.read_text() == before + "device_model_args_hvm = [  ]\n"
    assert sorted(entry.name for entry in configs.iterdir()) == ["linux.cfg", "win.cfg", "xl.conf"]


def test_publish_never_asks_for_a_window_under_xen(good, configs):
    good("publish", "win", 7, "B", 2, 64, 8, "/run/vgpu/vm7.sock")
    assert f"[ {OURS} ]" in (configs / "win.cfg").read_text()


def test_publish_of_what_is_there_writes_nothing(good, configs):
    before = (configs / "linux.cfg").stat()
    good("publish", "linux", 7, "B", 2)
    after = (configs / "linux.cfg").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_file_that_cannot_be_read_whole_is_not_written(bad, configs):
    path = configs / "linux.cfg"
    text = 'name = "linux"\ndevice_model_args_hvm = [ [ "-s" ] ]\n'
    path.write_text(text)
    message = bad("EBADMSG", "publish", "linux.cfg", 7, "B", 2)
    assert "linux.cfg" in message
    assert path.read_text() == text


def test_a_domain_without_a_file_cannot_be_published(bad, xl):
    xl.change(vms=[{"uuid": LINUX, "name": "made", "domain": 3, "letters": "-b----"}])
    assert "has no configuration file to write into" in bad("EOPNOTSUPP", "publish", "made", 1, "A",
                                                               1)


def test_start_creates_from_the_file(good, configs, xl):
    good("publish", WIN, 9, "A", 0)
    good("start", WIN)
    assert xl.calls()[-1] == ["create", str(configs / "win.cfg")]
    assert "vm_id=9,pool_id=A,priority=low" in xl.load()["created_with"]


def test_a_check_asks_xl_about_the_new_file_and_leaves_the_old_one(good, configs, xl):
    before = {path.name: path.read_text() for path in configs.iterdir()}
    good("check", "linux", 9, "A", 0)
    name, dry, file = xl.calls()[-1]
    assert (name, dry) == ("create", "-n") and file.startswith(f"{configs}/linux.cfg.vgpu-")
    assert xl.load()["asked_with"] == before["linux.cfg"].replace(
        "vm_id=7,pool_id=B,priority=high", "vm_id=9,pool_id=A,priority=low")
    good("check", "linux")
    assert xl.calls()[-1] == ["create", "-n", str(configs / "linux.cfg")]
    assert {path.name: path.read_text() for path in configs.iterdir()} == before


def test_a_check_of_a_file_that_xl_refuses_has_its_words_and_leaves_nothing(bad, configs, xl):
    xl.change(fail_at=[3])
    assert "was told to fail at call 3" in bad("EIO", "check", "linux", 9, "A", 0)
    assert sorted(path.name for path in configs.iterdir()) == ["linux.cfg", "win.cfg", "xl.conf"]


def test_a_domain_that_runs_cannot_be_started(bad):
    assert "'linux' runs already, as domain 3" in bad("EBUSY", "start", "linux")


def test_stop_names_the_domain_by_number_and_waits(good, xl):
    xl.change(vms=[{"uuid": LINUX, "name": "linux", "domain": 3, "letters": "-b----"},
                   {"uuid": WIN, "name": "3", "domain": 4, "letters": "r-----"}])
    good("stop", "3", 20000)
    assert ["shutdown", "-w", "-F", "4"] in xl.calls()
    assert [vm["name"] for vm in xl.load()["vms"]] == ["linux"]
    calls = len(xl.calls())
    good("stop", "win", 20000)  # off already
    assert xl.calls()[calls:] == [["vm-list"], ["list"]]


def test_a_guest_that_does_not_shut_down_is_a_timeout_or_destroyed_with_force(good, bad, xl):
    xl.change(vms=[{"uuid": LINUX, "name": "linux", "domain": 3, "letters": "-b----",
                    "hangs": 600}])
    assert "did not end within 500 ms and was killed" in bad("ETIMEDOUT", "stop", "linux", 500)
    assert good("find", "linux")["state"] == "running"
    good("stop", "linux", 500, "force")
    assert xl.calls()[-1] == ["destroy", "3"]
    assert good("find", "linux")["state"] == "off"


def test_stop_waits_until_xen_has_let_the_domain_go(good, xl):
    """`xl shutdown -w` ends with the guest; its domain is there until xl has removed it."""
    xl.change(vms=[{"uuid": LINUX, "name": "linux", "domain": 3, "letters": "-b----",
                    "lingers": 4}])
    good("stop", "linux", 20000)
    assert xl.load()["vms"] == []
    assert good("find", "linux")["state"] == "off"


def test_a_domain_that_stays_after_its_end_is_a_timeout_or_destroyed_with_force(good, bad, xl):
    xl.change(vms=[{"uuid": LINUX, "name": "linux", "domain": 3, "letters": "-b----",
                    "lingers": 1000}])
    message = bad("ETIMEDOUT", "stop", "linux", 1000)
    assert "has shut down, but Xen still has domain 3" in message and "on_poweroff" in message
    good("stop", "linux", 1000, "force")
    assert xl.calls()[-1] == ["destroy", "3"]
    assert xl.load()["vms"] == []


def test_a_domain_that_ends_by_itself_just_then_is_stopped_all_the_same(good, xl):
    xl.change(vms=[{"uuid": LINUX, "name": "linux", "domain": 3, "letters": "-b----",
                    "ends_itself": True}])
    good("stop", "linux", 20000)
    assert xl.load()["vms"] == []


def test_a_look_that_fails_after_the_shutdown_is_told(bad, xl):
    xl.change(fail_at=[4])
    message = bad("ETIMEDOUT", "stop", "linux", 20000)
    assert "domain 3 was told to shut down" in message and "fail at call 4" in message


# Of stop those before the guest is told.
@pytest.mark.parametrize("arguments, steps", [(("list",), 2), (("start", "win"), 3),
                                              (("stop", "linux", 5000), 2),
                                              (("publish", "win", 7, "B", 2), 2)],
                         ids=["list", "start", "stop", "publish"])
def test_a_failure_at_any_step_is_told_and_changes_nothing(xl, ask, bad, configs, arguments,
                                                           steps):
    before, file = xl.load(), (configs / "win.cfg").read_text()
    assert ask(*arguments)[0] == 0
    assert len(xl.calls()) >= steps
    for step in range(1, steps + 1):
        xl.save({**before, "fail_at": [step]})
        (configs / "win.cfg").write_text(file)
        (xl.directory / "calls.json").unlink()
        assert f"was told to fail at call {step}" in bad("EIO", *arguments)
        assert xl.load()["vms"] == before["vms"]
        assert (configs / "win.cfg").read_text() == file


def test_an_answer_that_makes_no_sense_is_told(bad, xl):
    xl.change(vms=[{"uuid": "x", "name": "linux", "domain": 3, "letters": "-b----"}])
    assert "xl vm-list said 'x', which is no UUID, number and name" in bad("EIO", "list")


def test_a_directory_that_is_not_there_is_told(xl):
    status, answer = xl.probe("xl", "list", VGPU_XL_DIRECTORY="/nonexistent")
    assert (status, answer["code"]) == (1, "ENOENT")
