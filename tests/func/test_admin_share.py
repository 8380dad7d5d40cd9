# SPDX-License-Identifier: Apache-2.0
"""vgpu-admin makes, moves and retires VMs' directories and exports, or all stays as it was."""

import concurrent.futures
import os
import pathlib
import re

import pytest

from admin_support import ADMIN, EXISTS, FAILED, USAGE, Host, script

OWNER = 123456
ADDRESS = "10.77.0.11"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chown")
pytestmark = needs_root


@pytest.fixture
def host(place):
    host = Host(place)
    host.good("init")
    return host


class Nfs:
    """Exports of one kind, and a program in the place of the server's reload."""

    def __init__(self, host, kind):
        self.host, self.kind = host, kind
        self.directory = host.directory / "exports"
        self.log = host.directory / "reloads"
        self.broken = host.directory / "broken"
        self.reload = script(host.directory / "reload", f"""\
            echo "$@" >>{self.log}
            test ! -e {self.broken} || {{ echo "no such service" >&2; exit 3; }}
            """)
        host.configure(exports_kind=kind, exports_dir=self.directory,
                       exports_reload=f"{self.reload} now please")

    def text(self, vm_id):
        name = f"vm{vm_id}.conf" if self.kind == "ganesha" else f"vgpu-vm{vm_id}.exports"
        path = self.directory / name
        return path.read_text() if path.exists() else None

    def names(self):
        return sorted(path.name for path in self.directory.iterdir())

    def reloads(self):
        return self.log.read_text().count("now please\n") if self.log.exists() else 0


@pytest.fixture
def ganesha(host):
    return Nfs(host, "ganesha")


@pytest.fixture
def kernel(host):
    return Nfs(host, "kernel")


def ownership(path):
    info = path.stat()
    return info.st_uid, info.st_gid, info.st_mode & 0o7777


# --- directories -------------------------------------------------------------------------


def test_registering_makes_the_directory_with_owner_and_mode(host):
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", f"{OWNER}:{OWNER + 1}", "--mode",
              "0750")
    assert ownership(host.share / "vm7") == (OWNER, OWNER + 1, 0o750)
    assert host.share.stat().st_mode & 0o777 == 0o711


def test_an_empty_directory_of_the_mediator_is_taken_over(host):
    directory = host.share / "vm7"
    directory.mkdir(parents=True, mode=0o755)
    (directory / "request.txt").write_text("")
    (directory / "response.txt").write_text("0:Ready\n")
    made = directory.stat().st_ino
    answer = host.json("register-vm", "web1", "--vm-id", "7", "--owner", OWNER)
    assert answer["retired"] is None and directory.stat().st_ino == made
    assert ownership(directory) == (OWNER, OWNER, 0o700)
    assert ownership(directory / "request.txt") == (OWNER, OWNER, 0o600)


def test_a_new_vm_does_not_get_what_an_earlier_one_left(host):
    directory = host.share / "vm7"
    directory.mkdir(parents=True)
    (directory / "request.txt").write_text("A:1:7:PING\n")
    answer = host.json("register-vm", "web1", "--vm-id", "7", "--owner", OWNER)
    assert list(directory.iterdir()) == [] and ownership(directory) == (OWNER, OWNER, 0o700)
    retired = pathlib.Path(answer["retired"])
    assert retired.parent == host.share / ".retired"
    assert (retired / "request.txt").read_text() == "A:1:7:PING\n"


def test_a_new_vm_is_not_exported_to_an_earlier_ones_address(host, ganesha):
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", OWNER, "--address", ADDRESS)
    left = ganesha.text(7)
    host.good("remove-vm", "7")
    (ganesha.directory / "vm7.conf").write_text(left)
    host.good("register-vm", "db1", "--vm-id", "7", "--owner", OWNER)
    assert ADDRESS not in ganesha.text(7)


def test_a_failed_registration_leaves_the_earlier_directory(host, ganesha):
    directory = host.share / "vm7"
    directory.mkdir(parents=True)
    (directory / "notes").write_text("mine")
    ganesha.broken.touch()
    host.bad(FAILED, "register-vm", "web1", "--vm-id", "7", "--owner", OWNER)
    assert (directory / "notes").read_text() == "mine" and ownership(directory)[0] == 0


def test_what_a_guest_put_in_the_place_of_its_files_is_not_touched(host, place):
    secret = place / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    directory = host.share / "vm7"
    directory.mkdir(parents=True)
    (directory / "request.txt").symlink_to(secret)
    os.link(secret, directory / "response.txt")
    os.mkfifo(directory / "command.txt")
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", OWNER)
    assert ownership(secret) == (0, 0, 0o600)


def test_a_link_in_the_place_of_the_directory_is_refused(host, place):
    (place / "elsewhere").mkdir()
    host.share.mkdir()
    (host.share / "vm7").symlink_to(place / "elsewhere")
    message = host.bad(FAILED, "register-vm", "web1", "--vm-id", "7", "--owner", OWNER)
    assert "cannot open directory 'vm7' in the share" in message
    assert ownership(place / "elsewhere")[0] == 0


def test_without_the_file_channel_there_is_no_directory(host):
    assert host.json("register-vm", "web1", "--channels", "window")["directory"] is None
    assert not host.share.exists()


def test_where_the_mediator_has_no_file_channel_there_is_no_directory(host):
    host.configure(channels="window")
    assert host.json("register-vm", "web1")["directory"] is None
    assert not host.share.exists()


def test_a_directory_follows_owner_and_mode(host):
    host.good("register-vm", "web1", "--vm-id", "7")
    (host.share / "vm7/response.txt").write_text("0:Ready\n")
    host.good("update-vm", "7", "--owner", OWNER, "--mode", "0770")
    assert ownership(host.share / "vm7") == (OWNER, OWNER, 0o770)
    assert ownership(host.share / "vm7/response.txt") == (OWNER, OWNER, 0o660)


def test_the_directory_comes_and_goes_with_the_file_channel(host):
    host.good("register-vm", "web1", "--vm-id", "7", "--channels", "window")
    host.good("update-vm", "7", "--channels", "file,window")
    assert (host.share / "vm7").is_dir()
    (host.share / "vm7/left").write_text("by the guest")
    host.good("update-vm", "7", "--channels", "window")
    assert not (host.share / "vm7").exists()
    [name] = host.retired()
    assert (host.share / ".retired" / name / "left").read_text() == "by the guest"


def test_a_removed_vms_directory_is_moved_aside_with_its_files(host):
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", OWNER)
    (host.share / "vm7/left").write_text("by the guest")
    answer = host.json("remove-vm", "7")
    assert re.fullmatch(rf"{host.share}/\.retired/vm7-\d{{8}}T\d{{6}}Z", answer["retired"])
    [name] = host.retired()
    assert (host.share / ".retired" / name / "left").read_text() == "by the guest"
    assert ownership(host.share / ".retired") == (0, 0, 0o700)


def test_two_of_one_second_are_both_kept(host):
    for _ in range(3):
        host.good("register-vm", "web1", "--vm-id", "7")
        host.good("remove-vm", "7")
    assert len(host.retired()) == 3


def test_a_vm_without_directory_is_removed_all_the_same(host):
    host.good("register-vm", "web1", "--vm-id", "7")
    (host.share / "vm7").rmdir()
    assert host.json("remove-vm", "7")["retired"] is None


def test_what_cannot_be_made_leaves_nothing_behind(host):
    host.share.write_text("a file in the place of the share")
    message = host.bad_rows(FAILED, "register-vm", "web1")
    assert f"cannot open the share '{host.share}'" in message
    assert host.json("list-vms") == {"vms": []}


def test_a_directory_that_cannot_be_moved_aside_keeps_its_vm(host):
    host.good("register-vm", "web1", "--vm-id", "7")
    (host.share / ".retired").write_text("no directory")
    message = host.bad(FAILED, "remove-vm", "7")
    assert "cannot move directory 'vm7' of the share to '.retired/'" in message
    assert host.vm("7")["name"] == "web1"


# --- exports ----------------------------------------------------------------------------------


def test_an_export_for_ganesha_is_the_one_that_the_documents_show(host, ganesha):
    host.good("register-vm", "web1", "--vm-id", "100", "--owner", "100100", "--address", ADDRESS)
    settings = re.findall(r"\b([A-Z][A-Za-z_]+) = ([^;]+);", ganesha.text(100))
    assert settings == [
        ("Export_Id", "100"), ("Path", f"{host.share}/vm100"), ("Pseudo", "/vm100"),
        ("Protocols", "4"), ("Access_Type", "None"), ("Squash", "All"),
        ("Anonymous_Uid", "100100"), ("Anonymous_Gid", "100100"), ("Name", "VFS"),
        ("Clients", ADDRESS), ("Access_Type", "RW")]
    index = (ganesha.directory / "vgpu.conf").read_text()
    assert index.splitlines()[1:] == [f'%include "{ganesha.directory}/vm100.conf"']
    assert ganesha.reloads() == 1


def test_an_export_for_the_kernel_is_the_one_that_the_documents_show(host, kernel):
    host.good("register-vm", "web1", "--vm-id", "100", "--owner", "100100", "--address", ADDRESS)
    assert kernel.text(100).splitlines()[1] == (
        f"{host.share}/vm100  {ADDRESS}(rw,sync,all_squash,anonuid=100100,anongid=100100,"
        "no_subtree_check,sec=sys)")
    assert kernel.names() == ["vgpu-vm100.exports"]
    assert kernel.reloads() == 1


@pytest.mark.parametrize("kind", ["ganesha", "kernel"])
def test_without_an_address_the_directory_is_exported_to_nobody(host, kind):
    nfs = Nfs(host, kind)
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", OWNER)
    assert "Clients" not in nfs.text(7) and "(rw" not in nfs.text(7)
    assert "Exported to      nobody yet\n" in host.good("show-vm", "7")
    host.good("update-vm", "7", "--address", "fe80::7")
    assert "fe80::7" in nfs.text(7).splitlines()[-2 if kind == "ganesha" else -1]
    assert "Exported to      fe80::7\n" in host.good("show-vm", "7")


def test_the_address_stays_when_something_else_changes(host, ganesha):
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", OWNER, "--address", ADDRESS)
    host.good("update-vm", "7", "--owner", OWNER + 1)
    assert f"Clients = {ADDRESS};" in ganesha.text(7)
    assert f"Anonymous_Uid = {OWNER + 1};" in ganesha.text(7)
    host.good("set-vm-id", "7", "9", "--yes")
    assert ganesha.text(7) is None and f"Clients = {ADDRESS};" in ganesha.text(9)
    assert f"Path = {host.share}/vm9;" in ganesha.text(9)
    assert "vm7.conf" not in (ganesha.directory / "vgpu.conf").read_text()
    assert ganesha.reloads() == 3


def test_a_change_of_address_is_an_event(host, ganesha):
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", OWNER)
    host.good("update-vm", "7", "--address", ADDRESS)
    host.good("update-vm", "7", "--address", ADDRESS)
    last = host.json("events", "--action", "update-vm")["events"][-1]
    assert (last["vm_id"], last["before"], last["after"]) == (
        7, {"address": ""}, {"address": ADDRESS})
    assert len(host.json("events", "--action", "update-vm")["events"]) == 1


def test_the_server_is_told_only_when_its_export_changes(host, ganesha):
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", OWNER)
    host.good("set-pool", "7", "B")
    host.good("update-vm", "7", "--name", "web2")
    host.good("update-vm", "7", "--mode", "0750")
    assert ganesha.reloads() == 1


def test_a_removed_vm_is_exported_no_more(host, ganesha):
    for number in (7, 8):
        host.good("register-vm", f"web{number}", "--vm-id", number, "--owner", OWNER + number)
    host.good("remove-vm", "7")
    assert ganesha.names() == ["vgpu.conf", "vm8.conf"]
    assert (ganesha.directory / "vgpu.conf").read_text().count("%include") == 1


@pytest.mark.parametrize("kind", ["ganesha", "kernel"])
def test_a_server_that_cannot_be_told_undoes_the_registration(host, kind):
    nfs = Nfs(host, kind)
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", OWNER)
    before = {name: (nfs.directory / name).read_text() for name in nfs.names()}
    nfs.broken.touch()
    message = host.bad(FAILED, "register-vm", "web2", "--vm-id", "8", "--owner", OWNER + 1)
    assert "failed with status 3: no such service" in message
    assert "exports_reload" in message
    assert {name: (nfs.directory / name).read_text() for name in nfs.names()} == before
    assert not (host.share / "vm8").exists()


@pytest.mark.parametrize("words", [["remove-vm", "7"], ["set-vm-id", "7", "9", "--yes"],
                                   ["update-vm", "7", "--owner", OWNER + 1],
                                   ["update-vm", "7", "--channels", "window"],
                                   ["update-vm", "7", "--address", "10.77.0.12"]])
def test_a_server_that_cannot_be_told_undoes_any_change(host, ganesha, words):
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", OWNER, "--address", ADDRESS)
    before = {name: (ganesha.directory / name).read_text() for name in ganesha.names()}
    ganesha.broken.touch()
    host.bad_rows(FAILED, *words)
    assert {name: (ganesha.directory / name).read_text() for name in ganesha.names()} == before
    assert ownership(host.share / "vm7") == (OWNER, OWNER, 0o700)
    assert host.retired() == [] and not (host.share / "vm9").exists()


CHANGES = [["register-vm", "web2", "--vm-id", "8", "--owner", OWNER + 1], ["remove-vm", "7"],
           ["update-vm", "7", "--address", "10.77.0.12"], ["set-vm-id", "7", "9", "--yes"]]


@pytest.mark.parametrize("words", CHANGES, ids=lambda words: words[0])
def test_others_change_the_registry_while_the_server_is_told(host, ganesha, words):
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", OWNER)
    host.good("register-vm", "other", "--vm-id", "20", "--channels", "window")
    script(ganesha.reload, f"{ADMIN} set-priority 20 high --config {host.config} >&2\n")
    host.good(*words)
    assert host.vm("other")["priority"] == "high"


@pytest.mark.parametrize("words", CHANGES[1:], ids=lambda words: words[0])
def test_a_vm_that_somebody_changes_while_the_server_is_told_stays_as_it_was(host, ganesha, words):
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", OWNER, "--address", ADDRESS)
    before = ganesha.text(7)
    script(ganesha.reload, f"{ADMIN} set-priority 7 high --config {host.config} >&2\n")
    done = host.run(*words)
    assert done.returncode == FAILED
    assert "VM 7 was changed by somebody else meanwhile" in done.stderr
    assert host.vm("7")["priority"] == "high"
    assert ganesha.text(7) == before and ganesha.names() == ["vgpu.conf", "vm7.conf"]
    assert (host.share / "vm7").is_dir() and host.retired() == []


def test_two_changes_of_exports_take_turns(host, ganesha):
    busy, overlap = host.directory / "busy", host.directory / "overlap"
    script(ganesha.reload, f"mkdir {busy} || touch {overlap}\nsleep 0.1\nrmdir {busy}\n")
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        done = list(threads.map(lambda number: host.run(
            "register-vm", f"web{number}", "--owner", OWNER + number), range(4)))
    assert [one.returncode for one in done] == [0] * 4, done
    assert not overlap.exists()
    assert sorted(vm["vm_id"] for vm in host.json("list-vms")["vms"]) == [1, 2, 3, 4]


def test_an_export_needs_an_owner(host, ganesha):
    message = host.bad(FAILED, "register-vm", "web1", "--vm-id", "7")
    assert "VM 7 has no owner of its own" in message and "--owner 100007" in message
    assert not ganesha.directory.exists()


def test_an_id_that_ganesha_cannot_export_is_refused(host, ganesha):
    message = host.bad(FAILED, "register-vm", "web1", "--vm-id", "65536", "--owner", OWNER)
    assert "Export_Id ends at 65535" in message
    host.good("register-vm", "web1", "--vm-id", "65536", "--owner", OWNER, "--channels", "window")


def test_an_address_without_exports_is_refused_with_what_to_set(host):
    message = host.bad(FAILED, "register-vm", "web1", "--address", ADDRESS)
    assert "exports_kind in the configuration is none" in message


def test_an_address_without_file_channel_is_refused(host, ganesha):
    message = host.bad(FAILED, "register-vm", "web1", "--address", ADDRESS, "--channels", "window")
    assert "has no file channel" in message


def test_none_leaves_telling_the_server_to_others(host, ganesha):
    host.configure(exports_kind="ganesha", exports_dir=ganesha.directory, exports_reload="none")
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", OWNER)
    assert ganesha.text(7) and ganesha.reloads() == 0


def test_a_program_that_is_not_there_is_named(host):
    host.configure(exports_kind="kernel", exports_dir=host.directory / "exports",
                   exports_reload="/nowhere/exportfs -ra")
    message = host.bad_rows(FAILED, "register-vm", "web1", "--owner", OWNER)
    assert "/nowhere/exportfs cannot be started: No such file or directory" in message


@pytest.mark.parametrize("key, value, message", [
    ("exports_kind", "smb", "[admin] exports_kind = smb: expected none, ganesha or kernel"),
    ("exports_dir", "exports", "[admin] exports_dir = exports: expected an absolute path"),
    ("exports_reload", "exportfs -ra", "expected the absolute path of a program"),
    ("exports", "x", "[admin] exports = x: expected one of the keys toolstack, exports_kind")])
def test_the_configuration_is_checked(host, key, value, message):
    host.configure(**{key: value})
    done = host.run("list-vms")
    assert done.returncode == USAGE and message in done.stderr


def test_a_configuration_that_is_named_and_missing_is_an_error(host):
    done = host.run("list-vms", "--config", host.directory / "nowhere.conf")
    assert done.returncode == FAILED
    assert f"cannot open the configuration '{host.directory}/nowhere.conf'" in done.stderr


# --- restore --------------------------------------------------------------------------------------


def test_restored_vms_have_their_directories_again(host):
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", OWNER)
    host.good("backup", host.directory / "copy.db")
    host.good("remove-vm", "7")
    host.good("restore", host.directory / "copy.db", "--yes")
    assert ownership(host.share / "vm7") == (OWNER, OWNER, 0o700)
    assert len(host.retired()) == 1


def test_vms_that_a_restore_removes_are_retired_and_exported_no_more(host, ganesha, place):
    host.good("register-vm", "stays", "--vm-id", "7", "--owner", OWNER, "--address", ADDRESS)
    host.good("register-vm", "changes", "--vm-id", "8", "--channels", "window")
    host.good("backup", place / "b.db")
    host.good("register-vm", "goes", "--vm-id", "9", "--owner", OWNER + 9)
    host.good("update-vm", "8", "--channels", "file", "--owner", OWNER + 8)
    for number in [7, 8, 9]:
        (host.share / f"vm{number}/notes").touch()
    host.good("restore", place / "b.db", "--yes")
    assert sorted(path.name for path in host.share.iterdir()) == [".retired", "vm7"]
    assert (host.share / "vm7/notes").exists() and ADDRESS in ganesha.text(7)
    assert [name.split("-")[0] for name in host.retired()] == ["vm8", "vm9"]
    assert ganesha.names() == ["vgpu.conf", "vm7.conf"]


def test_a_vm_that_a_restore_renumbers_takes_its_directory_along(host, ganesha, place):
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", OWNER, "--address", ADDRESS)
    host.good("backup", place / "b.db")
    host.good("set-vm-id", "web1", "9", "--yes")
    (host.share / "vm9/notes").touch()
    host.good("restore", place / "b.db", "--yes")
    assert (host.share / "vm7/notes").exists() and not (host.share / "vm9").exists()
    assert ganesha.names() == ["vgpu.conf", "vm7.conf"] and ADDRESS in ganesha.text(7)
    assert host.retired() == []


def test_what_a_restore_cannot_put_right_in_the_share_is_a_note_and_a_failure(host, place):
    host.good("register-vm", "web1", "--vm-id", "7")
    host.good("backup", place / "b.db")
    host.good("remove-vm", "7")
    (host.share / "vm7").symlink_to(place)
    done = host.run("restore", place / "b.db", "--yes")
    assert done.returncode == FAILED
    assert "vgpu-admin: note: VM 7: cannot open directory 'vm7' in the share" in done.stderr


def test_a_moved_directory_does_not_replace_another(host):
    host.good("register-vm", "web1", "--vm-id", "7")
    (host.share / "vm9").mkdir()
    message = host.bad(FAILED, "set-vm-id", "7", "9", "--yes")
    assert "directory 'vm9' is in the share already" in message
    assert "All is as it was" in message


@pytest.mark.parametrize("address", ["0.0.0.0", "255.255.255.255", "127.0.0.1", "224.0.0.1", "::",
                                     "::1", "ff02::1", "::ffff:10.0.0.1"])
def test_an_address_that_is_no_guests_is_refused(host, ganesha, address):
    message = host.bad(USAGE, "register-vm", "web1", "--vm-id", "7", "--owner", OWNER, "--address",
                       address)
    assert "the guest's IP address, as 10.77.0.11" in message


@pytest.mark.parametrize("address", ["10.77.0.0/24", "10.77.0.255/24", "10.77.3.255/22",
                                     "2001:db8::/64"])
def test_an_address_that_is_its_subnets_is_refused(host, ganesha, address):
    message = host.bad(USAGE, "register-vm", "web1", "--vm-id", "7", "--owner", OWNER, "--address",
                       address)
    assert (f"--address: '{address}': expected the guest's own IP address, and this is its "
            "subnet's") in message


@pytest.mark.parametrize("address", ["10.77.0.11/33", "10.77.0.11/", "10.77.0.11/x", "/24",
                                     "fe80::7/129", "10.77.0.11/0"])
def test_a_prefix_that_cannot_be_is_refused(host, ganesha, address):
    assert "as 10.77.0.11 or 10.77.0.11/24" in host.bad(USAGE, "register-vm", "web1", "--owner",
                                                        OWNER, "--address", address)


@pytest.mark.parametrize("given,written", [
    ("10.77.0.11/24", "10.77.0.11"), ("10.77.0.255/22", "10.77.0.255"), ("10.77.0.0", "10.77.0.0"),
    ("10.77.0.0/31", "10.77.0.0"), ("10.77.0.255/32", "10.77.0.255"), ("FE80::0:7", "fe80::7")])
def test_an_export_has_the_address_alone_in_the_usual_notation(host, ganesha, given, written):
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", OWNER, "--address", given)
    assert f"Clients = {written};" in ganesha.text(7)


# --- one VM's files and another's -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ganesha", "kernel"])
@pytest.mark.parametrize("command", ["register-vm", "update-vm"])
def test_an_address_that_another_vm_has_is_refused_unless_forced(host, kind, command):
    nfs = Nfs(host, kind)
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", OWNER, "--address", "fe80::7")
    words = ["web2", "--vm-id", "8", "--owner", OWNER + 1, "--address", "FE80::0:7/64"]
    if command == "update-vm":
        host.good("register-vm", *words[:5])
        words = ["8", *words[5:]]
    assert host.bad(EXISTS, command, *words) == (
        "fe80::7 is the address of VM 7: the guest there would see both directories; give each "
        "guest its own, take the other's export away (remove-vm, or its file in "
        f"{nfs.directory}), or say --force")
    host.good(command, *words, "--force")
    assert "fe80::7" in nfs.text(8).splitlines()[0]
    host.good("update-vm", "7", "--address", "fe80::7")  # its own, with which nothing changes


def test_an_address_that_an_unregistered_vms_file_has_is_refused(host, kernel):
    kernel.directory.mkdir()
    (kernel.directory / "vgpu-vm3.exports").write_text(f"# VM 3 for {ADDRESS}; left\n")
    (kernel.directory / "vgpu-vm4.exports.new").write_text("# VM 4 for 10.77.0.12; half\n")
    words = ["register-vm", "web1", "--vm-id", "7", "--owner", OWNER, "--address"]
    assert f"{ADDRESS} is the address of VM 3" in host.bad(EXISTS, *words, ADDRESS)
    host.good(*words, "10.77.0.12")


@pytest.mark.parametrize("command", ["register-vm", "update-vm"])
def test_an_owner_that_another_vms_directory_has_is_refused_unless_forced(host, command):
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", "100008")
    words = ["web2", "--vm-id", "8", "--owner", "100008"]
    if command == "update-vm":
        host.good("register-vm", "web2", "--vm-id", "8", "--owner", OWNER)
        words = ["8", "--owner", "100008"]
    assert host.bad(EXISTS, command, *words) == (
        "owner 100008 is that of VM 7 (web1) already, and each could reach the other's "
        "files and sessions: choose a number that nobody has, as --owner 100009, or say --force")
    host.good(command, *words, "--force")
    host.good("update-vm", "8", "--mode", "0750")  # what was forced once is not asked again


def test_one_owner_is_fine_where_there_are_no_directories_to_share(host):
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", OWNER)
    host.good("register-vm", "web2", "--vm-id", "8", "--owner", OWNER, "--channels", "window")
    assert "VM 7 (web1)" in host.bad(EXISTS, "update-vm", "8", "--channels", "file")
    host.configure(channels="window")
    host.good("register-vm", "web3", "--owner", OWNER)


@pytest.mark.parametrize("owner", ["0", "root", f"{OWNER}:0", f"{OWNER}:root", "0:0"])
def test_root_owns_no_vms_directory(host, owner):
    message = host.bad(USAGE, "register-vm", "web1", "--owner", owner)
    assert f"--owner: '{owner}': expected an owner that is not root" in message
    host.good("register-vm", "web1", "--vm-id", "7", "--owner", OWNER)
    assert "not root" in host.bad(USAGE, "update-vm", "7", "--owner", owner)


def test_a_vm_that_a_restore_brings_back_gets_nothing_of_its_numbers_next_one(host, ganesha, place):
    host.good("register-vm", "old", "--vm-id", "7", "--owner", OWNER)
    host.good("backup", place / "b.db")
    host.good("remove-vm", "7")
    host.good("register-vm", "new", "--vm-id", "7", "--owner", OWNER, "--address", ADDRESS)
    (host.share / "vm7/notes").write_text("the new one's")
    host.good("restore", place / "b.db", "--yes")
    assert host.vm("old")["vm_id"] == 7
    assert not (host.share / "vm7/notes").exists() and ADDRESS not in ganesha.text(7)
