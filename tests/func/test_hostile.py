# SPDX-License-Identifier: Apache-2.0
"""A guest that means harm: what it puts into its directory gets an answer that
says why, harms nobody else, and does not keep its next request from working.

Only files, links and directories: test_window_hostile.py and test_link_hostile.py have
hostile owners of windows.
"""

import os
import re
import socket
import stat
import threading

import pytest
from support import READY, wait_until

SECRET = "secret of somebody else\n"


@pytest.fixture
def two(mediator):
    """A mediator with VM 1, who is hostile, and VM 2, who must not notice."""
    return mediator(vms={1: ("A", 1), 2: ("A", 1)})


class Neighbour:
    """VM 2 works all the time; every answer must be right."""

    def __init__(self, vm):
        self.vm = vm
        self.count = 0
        self.failure = None
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._work)

    def _work(self):
        try:
            while not self.ending.is_set() or self.count < 3:
                answer = self.vm.ask(f"PING {self.count}")
                assert answer == f"1:PONG {self.count}", answer
                self.count += 1
        except Exception as failure:
            self.failure = failure

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.ending.set()
        self.thread.join()
        assert self.failure is None, self.failure


# --- malformed text ----------------------------------------------------------------


@pytest.mark.parametrize("data, reason", [
    (b"C:1:1:PING\n", r"pool 'C' does not exist: use A or B"),
    (b"a:1:1:PING\n", r"pool 'a' does not exist: use A or B"),
    (b"AB:1:1:PING\n", r"pool 'AB' does not exist.*"),
    (b":1:1:PING\n", r"pool '' does not exist.*"),
    (b"A:3:1:PING\n", r"priority '3' is not 0 \(low\), 1 \(medium\) or 2 \(high\)"),
    (b"A:x:1:PING\n", r"priority 'x' is not .*"),
    (b"A:-1:1:PING\n", r"priority '-1' is not .*"),
    (b"A::1:PING\n", r"priority '' is not .*"),
    (b"A:1:2:PING\n", r"vm_id 2 is not this directory's vm_id 1"),
    (b"A:1:4294967297:PING\n", r"vm_id '4294967297' is not a number .*"),
    (b"A:1: 1:PING\n", r"vm_id ' 1' is not a number .*"),
    (b"A:1::PING\n", r"vm_id '' is not a number .*"),
    (b"A:1:1:\n", r"command is empty: use .*"),
    (b"A:1:1\n", r"request 'A:1:1' has 3 of 4 fields: .*"),
    (b"hello\n", r"request 'hello' has 1 of 4 fields: .*e\.g\. A:1:1:VECTOR_ADD"),
    (b"A:1:1:" + b"x" * 256 + b"\n", r"command has 256 bytes: at most 255 are allowed"),
    (b"x" * 900, r"request has 900 bytes and no newline: at most 270 are allowed"),
    (b"A:1:1:PI\x07NG\n", r"control character \\x07 at byte 9"),
    (b"A:1:1:PI\tNG\n", r"control character \\x09 at byte 9"),
    (b"A:1:1:\x1b[2J\n", r"control character \\x1b at byte 7"),
    (b"A:1:1:PI\0NG\n", r"NUL byte at byte 9: write text only"),
    (b"\0" * 100 + b"\n", r"NUL byte at byte 1: .*"),
    (b"A:1:1:P\xc3\xa4\n", r"byte \\xc3 at byte 8 is not ASCII"),
    (b"A:1:1:PING\nA:1:1:PING\n", r"request has 2 lines: send one, wait for its answer"),
    (b"A:1:1:PING\nA:1:1:PI", r"request has 2 lines: .*"),
])
def test_malformed_request_is_refused_with_its_reason(mediator_of_module, data, reason):
    m = mediator_of_module
    after = m.mark()
    assert re.fullmatch("2:" + reason, m.vm(1).ask_raw(data))
    m.wait_event("refused", after=after, vm=1)
    assert not m.events("queue", after=after)
    assert m.vm(1).ask("PING next") == "1:PONG next"


@pytest.mark.parametrize("data, reason", [
    (b"PI\x01NG\n", r"control character .*"),
    (b"1\n2\n", r"request has 2 lines: .*"),
    (b"x" * 256 + b"\n", r"command has 256 bytes: .*"),
])
def test_malformed_command_file_is_refused_with_its_reason(mediator_of_module, data, reason):
    vm = mediator_of_module.vm(1)
    assert re.fullmatch("2:" + reason, vm.ask_raw(data, "command.txt"))
    assert vm.ask("PING next") == "1:PONG next"


def test_nothing_that_a_guest_writes_reaches_log_or_answer_unescaped(two):
    m = two
    m.vm(1).ask_raw(b"\x1b]0;title\x07:1:1:PING\r\x1b[31m\n")
    m.vm(1).ask_raw(b"A\"\\:1:1:PING\n")
    m.wait_event("response", count=2)
    for byte in m.log.read_bytes() + m.vm(1).response.read_bytes():
        assert byte == 10 or 32 <= byte < 127


# --- something else in the place of request.txt -------------------------------------------


def put_directory(vm, path, m):
    path.mkdir()


def put_link_to_secret(vm, path, m):
    path.symlink_to(m.secret)


def put_dangling_link(vm, path, m):
    path.symlink_to(m.directory / "nowhere")


def put_link_to_zero(vm, path, m):
    path.symlink_to("/dev/zero")


def put_link_to_itself(vm, path, m):
    path.symlink_to(path.name)


def put_link_into_another_vm(vm, path, m):
    path.symlink_to(m.vm(2).request)


def put_fifo(vm, path, m):
    os.mkfifo(path)


def put_socket(vm, path, m):
    where = os.open(vm.directory, os.O_RDONLY)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{where}/{path.name}")
    os.close(where)


def put_huge_file(vm, path, m):
    with open(vm.directory / "huge", "wb") as file:
        file.truncate(100_000_000)
    os.rename(vm.directory / "huge", path)


def put_long_file(vm, path, m):
    vm.put_raw(b"A:1:1:PING\n" + b"\n" * 5000, path.name)


HOSTILE = [
    (put_directory, r"is a directory: put a plain file there"),
    (put_link_to_secret, r"is a symbolic link: put a plain file there"),
    (put_dangling_link, r"is a symbolic link: .*"),
    (put_link_to_zero, r"is a symbolic link: .*"),
    (put_link_to_itself, r"is a symbolic link: .*"),
    (put_link_into_another_vm, r"is a symbolic link: .*"),
    (put_fifo, r"is a named pipe: .*"),
    (put_socket, r"is a socket: .*"),
    (put_huge_file, r"has 100000000 bytes: a request has at most 270 and a newline"),
    (put_long_file, r"has 5011 bytes: .*"),
]


@pytest.mark.parametrize("name", ["request.txt", "command.txt"])
@pytest.mark.parametrize("put, reason", HOSTILE)
def test_something_else_in_place_of_a_request_is_refused_and_removed(two, name, put, reason):
    m = two
    m.secret = m.directory / "secret"
    m.secret.write_text(SECRET)
    vm = m.vm(1)
    path = vm.directory / name
    with Neighbour(m.vm(2)):
        vm.ready()
        path.unlink(missing_ok=True)
        put(vm, path, m)
        assert re.fullmatch(f"2:{name} {reason}", vm.wait_answer())
        m.wait_event("refused", vm=1)
        m.wait_looks()
        assert len(m.events("refused", vm=1)) == 1
        assert not os.path.lexists(path)
        assert vm.ask("PING next") == "1:PONG next"
    assert m.secret.read_text() == SECRET


def test_device_node_in_place_of_a_request_is_refused(two):
    vm = two.vm(1)
    vm.ready()
    vm.request.unlink()
    try:
        os.mknod(vm.request, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root may make device nodes")
    assert vm.wait_answer() == "2:request.txt is a device node: put a plain file there"
    assert vm.ask("PING next") == "1:PONG next"


def test_directory_with_files_is_refused_once_and_the_command_file_still_works(two):
    m, vm = two, two.vm(1)
    with Neighbour(m.vm(2)):
        vm.ready()
        (vm.directory / "tree").mkdir()
        (vm.directory / "tree" / "leaf").write_text("")
        vm.request.unlink()
        (vm.directory / "tree").rename(vm.request)
        assert vm.wait_answer() == "2:request.txt is a directory: put a plain file there"
        m.wait_looks()
        assert len(m.events("refused", vm=1)) == 1
        assert vm.ask_raw(b"PING by command\n", "command.txt") == "1:PONG by command"
        (vm.request / "leaf").unlink()
        vm.request.rmdir()
        assert vm.ask("PING next") == "1:PONG next"


def test_file_with_a_second_name_is_taken_and_the_other_name_keeps_its_contents(two):
    m, vm = two, two.vm(1)
    other = vm.directory / "other"
    other.write_text("A:1:1:PING linked\n")
    vm.ready()
    vm.request.unlink()
    os.link(other, vm.request)
    assert vm.wait_answer() == "1:PONG linked"
    assert other.read_text() == "A:1:1:PING linked\n"
    m.wait_looks()
    assert len(m.events("queue", vm=1)) == 1
    assert vm.ask("PING next") == "1:PONG next"


def test_same_hostile_thing_again_is_refused_again(two):
    vm = two.vm(1)
    for _ in range(5):
        vm.ready()
        vm.request.unlink(missing_ok=True)
        vm.request.symlink_to("nowhere")
        assert vm.wait_answer().startswith("2:request.txt is a symbolic link")
        wait_until(lambda: not os.path.lexists(vm.request), "the link removed")


def test_request_that_changes_all_the_time_stops_nobody(two):
    vm, ending = two.vm(1), threading.Event()

    def change():
        i = 0
        while not ending.is_set():
            i += 1
            name = vm.directory / f"n{i % 2}"
            if i % 3 == 0:
                name.symlink_to("/dev/zero")
            elif i % 3 == 1:
                name.write_bytes(b"A:1:1:PING\n" * (i % 7))
            else:
                os.mkfifo(name)
            name.rename(vm.request)
            ending.wait(0.001)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for i in range(50):
            assert two.vm(2).ask(f"PING {i}") == f"1:PONG {i}"
    finally:
        ending.set()
        thread.join()
    vm.request.unlink(missing_ok=True)
    two.wait_looks()
    assert vm.ask("PING at last") == "1:PONG at last"


# --- something else in the place of response.txt ----------------------------------------------


@pytest.mark.parametrize("put", [
    put_directory, put_link_to_secret, put_dangling_link, put_link_to_zero,
    put_link_into_another_vm, put_fifo, put_socket, put_huge_file])
def test_answer_replaces_whatever_stands_in_the_place_of_response_txt(two, put):
    m, vm = two, two.vm(1)
    m.secret = m.directory / "secret"
    m.secret.write_text(SECRET)
    with Neighbour(m.vm(2)):
        vm.response.unlink()
        put(vm, vm.response, m)
        vm.put("PING")
        assert vm.wait_answer() == "1:PONG"
        assert stat.S_ISREG(vm.response.lstat().st_mode)
        wait_until(lambda: vm.response.lstat().st_size == len("1:PONG\n"), "the answer alone")
        assert vm.ask("PING next") == "1:PONG next"
    assert m.secret.read_text() == SECRET
    assert not (m.directory / "nowhere").exists()


def test_hard_link_in_the_place_of_response_txt_is_not_written_through(two):
    m, vm = two, two.vm(1)
    secret = m.share / "secret"
    secret.write_text(SECRET)
    vm.response.unlink()
    os.link(secret, vm.response)
    vm.put("PING")
    assert vm.wait_answer() == "1:PONG"
    assert secret.read_text() == SECRET
    assert vm.response.stat().st_nlink == 1


def test_full_directory_in_the_place_of_response_txt_delays_only_its_own_answer(two):
    m, vm = two, two.vm(1)
    m.allow_error(r"vm1: cannot (open|write) 'response.txt'")
    with Neighbour(m.vm(2)):
        vm.response.unlink()
        vm.response.mkdir()
        (vm.response / "leaf").write_text("")
        vm.put("PING late")
        m.wait_event("process", vm=1)
        m.wait_looks(5)
        assert not m.events("response", vm=1)
        assert len(m.messages("trying again")) == 1  # no flood
        (vm.response / "leaf").unlink()
        assert vm.wait_answer() == "1:PONG late"
        assert vm.ask("PING next") == "1:PONG next"
    assert len(m.executions()) == len(set(m.executions()))


# --- the directory itself -----------------------------------------------------------------------


def test_link_in_the_place_of_a_vms_directory_is_not_followed(two):
    m, vm = two, two.vm(1)
    elsewhere = m.directory / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "request.txt").write_text("A:1:1:PING\n")
    with Neighbour(m.vm(2)):
        vm.directory.rename(m.directory / "moved")
        vm.directory.symlink_to(elsewhere)
        m.wait_message("vm1: ")
        m.allow_error(r"vm1: .*'vm1'")
        m.wait_listings()
        assert not m.events("queue", vm=1)
        assert sorted(os.listdir(elsewhere)) == ["request.txt"]
        assert (elsewhere / "request.txt").read_text() == "A:1:1:PING\n"
        vm.directory.unlink()
        (m.directory / "moved").rename(vm.directory)
        m.wait_listings()
        assert vm.ask("PING back") == "1:PONG back"


def test_directory_that_is_removed_is_made_and_furnished_again(two):
    m, vm = two, two.vm(1)
    m.allow_error(r"vm1: .*")
    assert vm.ask("PING before") == "1:PONG before"
    with Neighbour(m.vm(2)):
        for path in vm.directory.iterdir():
            path.unlink()
        vm.directory.rmdir()
        wait_until(lambda: vm.response.exists() and vm.response.read_text() == READY + "\n",
                   "its files again")
        assert vm.ask("PING after") == "1:PONG after"


def test_directories_in_the_place_of_both_files_are_refused_once_each(two):
    """They cannot be removed: each look finds both again."""
    m, vm = two, two.vm(1)
    for path in [vm.request, vm.command]:
        path.unlink(missing_ok=True)
        ready = vm.directory / "ready"
        ready.mkdir()
        (ready / "file").touch()
        ready.rename(path)
    m.wait_event("refused", vm=1, count=2)
    m.wait_looks(10)
    assert len(m.events("refused", vm=1)) == 2


def test_answer_waits_for_a_directory_that_went_away_meanwhile(two):
    m, vm = two, two.vm(1)
    m.allow_error(r"vm1: .*'vm1'")
    pid = m.occupy(2)
    m.queue(1, command="PING kept")
    for path in vm.directory.iterdir():
        path.unlink()
    vm.directory.rmdir()
    m.wait_listings()
    m.release(pid)
    m.wait_event("process", vm=1)
    assert vm.wait_answer() == "1:PONG kept"


def test_directory_of_an_unregistered_vm_that_is_a_link_is_not_followed(mediator):
    m = mediator(unregistered="accept")
    elsewhere = m.directory / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "request.txt").write_text("A:1:77:PING\n")
    (m.share / "vm77").symlink_to(elsewhere)
    m.allow_error(r"vm77: .*'vm77'")
    m.wait_listings()
    assert not m.events("queue", vm=77)
    assert os.listdir(elsewhere) == ["request.txt"]


# --- a mediator without root's rights -----------------------------------------------------------

NOBODY = 65534


@pytest.fixture
def unprivileged(mediator):
    """A mediator with VMs 1 and 2 that file modes bind."""
    m = mediator(vms={2: ("A", 1), 1: ("A", 1)}, start=False)
    if os.geteuid() == 0:
        m.user = NOBODY
        os.chmod(m.directory.parent, 0o755)
        os.chown(m.directory, NOBODY, NOBODY)
        if not m.can_run():
            pytest.skip("the build directory is not open to user 'nobody'")
    return m.start()


def test_request_that_cannot_be_read_is_told_once_and_works_when_it_can(unprivileged):
    m, vm = unprivileged, unprivileged.vm(1)
    m.allow_error(r"vm1: cannot read 'request.txt'")
    vm.ready()
    new = vm.directory / "new"
    new.write_text("A:1:1:PING\n")
    new.chmod(0)
    m.own(new)
    new.rename(vm.request)
    with Neighbour(m.vm(2)):
        m.wait_message("vm1: cannot read 'request.txt'")
        m.wait_looks(5)
        assert len(m.messages("vm1: cannot read 'request.txt'")) == 1
        vm.request.chmod(0o600)
        assert vm.wait_answer() == "1:PONG"
        m.wait_message("vm1: its directory works again")


def test_request_that_cannot_be_written_is_taken_only_once(unprivileged):
    m, vm = unprivileged, unprivileged.vm(1)
    vm.ready()
    (vm.directory / "new").write_text("A:1:1:PING\n")
    (vm.directory / "new").chmod(0o444)
    m.own(vm.directory / "new")
    (vm.directory / "new").rename(vm.request)
    assert vm.wait_answer() == "1:PONG"
    m.wait_looks(5)
    assert len(m.events("queue", vm=1)) == 1
    assert vm.ask_raw(b"A:1:1:PING next\n") == "1:PONG next"


def test_request_that_can_neither_be_written_nor_removed_is_taken_only_once(unprivileged):
    m, vm = unprivileged, unprivileged.vm(1)
    if m.user is None:
        pytest.skip("only root can make a file that is another user's")
    m.allow_error(r"vm1: cannot (read|write|empty)")
    os.chown(vm.directory, 0, 0)
    vm.directory.chmod(0o755)
    vm.request.write_text("A:1:1:PING one\n")
    os.chown(vm.request, 0, 0)
    vm.request.chmod(0o644)
    assert vm.wait_answer() == "1:PONG one"
    m.wait_looks(5)
    assert len(m.events("queue", vm=1)) == 1
    vm.put("PING two")
    wait_until(lambda: vm.answer() == "1:PONG two", "the second answer")
    m.kill()
    with open(m.config, "a") as config:
        config.write("mode = 0755\n")  # of VM 1, the last: what it has
    m.start()
    m.wait_looks(5)
    assert len(m.events("queue", vm=1)) == 2


def test_response_file_that_cannot_be_written_is_replaced(unprivileged):
    vm = unprivileged.vm(1)
    vm.response.chmod(0o444)
    vm.put("PING")
    assert vm.wait_answer() == "1:PONG"
