# SPDX-License-Identifier: Apache-2.0
"""vgpu-client on a share that is missing, forbidden, unsteady or hangs."""

import errno
import os
import signal
import subprocess

import pytest

import client_support as guests
import support

RESPONDING = ("--timeout", 20)
SILENT = ("--timeout", 0.5)
EJUKEBOX = 528
ALWAYS = 1000000


@pytest.fixture
def guest(place):
    one = guests.Guest(place)
    yield one
    one.close()


@pytest.fixture(scope="module")
def shim():
    with support.directory() as path:
        yield guests.build_shim(path)


# --- missing, forbidden, not what it should be -----------------------------------------


def test_a_share_that_is_not_there(guest):
    done = guest.run("--json", "--share", guest.place / "none").json
    assert done["exit_code"] == 4 and done["error"]["code"] == "share-missing"
    assert str(guest.place / "none") in done["error"]["text"]
    assert "mount" in done["error"]["remedy"]
    assert "mount" in guest.run("--share", guest.place / "none").err


def test_an_empty_share_is_probably_not_mounted(guest):
    guest.directory.rmdir()
    error = guest.run("--json").json["error"]
    assert error["code"] == "share-missing"
    assert "empty" in error["text"] and "mount" in error["remedy"]


def test_a_share_without_our_directory_says_what_is_there(guest):
    guest.directory.rename(guest.share / "vm7")
    error = guest.run("--json").json["error"]
    assert error["code"] == "share-missing"
    assert "no 'vm100', only vm7" in error["text"] and "register" in error["remedy"]


def test_a_file_in_place_of_the_directory(guest):
    guest.directory.rmdir()
    guest.directory.write_text("")
    assert guest.run("--json").json["error"]["code"] == "share-missing"


@pytest.mark.skipif(not guests.IS_ROOT, reason="needs root, to become another user")
def test_a_directory_that_we_may_not_write(guest):
    guest.directory.chmod(0o555)
    done = guest.run_as_nobody("--json").json
    assert done["exit_code"] == 4 and done["error"]["code"] == "share-denied"
    assert f"uid {guests.NOBODY}" in done["error"]["remedy"]


@pytest.mark.skipif(not guests.IS_ROOT, reason="needs root, to become another user")
def test_a_directory_that_we_may_not_enter(guest):
    guest.directory.chmod(0o700)
    assert guest.run_as_nobody("--json").json["error"]["code"] == "share-denied"


@pytest.mark.parametrize("name", ["request.txt", "response.txt", ".request.txt.new"])
@pytest.mark.parametrize("kind", ["fifo", "link", "directory", "dangling link"])
def test_only_regular_files_are_touched(guest, name, kind):
    path = guest.directory / name
    other = guest.place / "other"
    other.write_text("untouched")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(other if kind == "link" else guest.place / "none")
    done = guest.run("--json", "--timeout", 20).json
    assert done["exit_code"] == 4 and str(path) in done["error"]["text"]
    assert other.read_text() == "untouched" and not (guest.place / "none").exists()


def test_a_response_that_turns_into_something_else_ends_the_wait(guest):
    def answer(line):
        guest.response.unlink()
        os.mkfifo(guest.response)

    with guests.FakeMediator(guest.directory, answer):
        assert guest.run("--json", *RESPONDING).json["error"]["code"] == "share-broken"


def test_a_full_share_is_told_so(guest, shim):
    for number in (errno.ENOSPC, errno.EDQUOT):
        rule = f"write,.request.txt.new,{number},1"
        error = guest.run("--json", shim=shim, rules=[rule]).json["error"]
        assert error["code"] == "share-denied" and "room" in error["remedy"]


def test_a_read_only_share_is_told_so(guest, shim):
    rule = f"create,.request.txt.new,{errno.EROFS},1"
    error = guest.run("--json", shim=shim, rules=[rule]).json["error"]
    assert error["code"] == "share-denied" and "remount,rw" in error["remedy"]


# --- what passes by itself ----------------------------------------------------------------


def exchange(guest, shim, rules, *words):
    """One request through the faults; returns the result and what the mediator saw."""
    with guests.FakeMediator(guest.directory, "1:fine") as mediator:
        done = guest.run("--json", *RESPONDING, *words, shim=shim, rules=rules).json
    return done, mediator.lines


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EAGAIN, errno.ETIMEDOUT,
                                    errno.EREMOTEIO, errno.ECONNRESET, EJUKEBOX])
@pytest.mark.parametrize("place_of_fault", [
    "stat,vm100", "open,request.txt", "read,response.txt", "create,response.txt",
    "write,response.txt", "truncate,response.txt", "fsync,response.txt", "close,response.txt",
    "create,.request.txt.new", "write,.request.txt.new", "fsync,.request.txt.new",
    "close,.request.txt.new", "rename,request.txt", "open,response.txt"])
def test_a_transient_fault_is_tried_again(guest, shim, place_of_fault, number):
    guest.response.write_text("1:an old answer\n")
    done, lines = exchange(guest, shim, [f"{place_of_fault},{number},3"])
    assert done["exit_code"] == 0 and done["answer"]["message"] == "fine"
    assert lines == ["A:2:100:VECTOR_ADD"]


@pytest.mark.parametrize("operation", ["create", "write", "fsync", "close"])
def test_a_transient_fault_in_place_is_tried_again(guest, shim, operation):
    done, lines = exchange(guest, shim, [f"{operation},request.txt,{errno.EIO},2"], "--in-place")
    assert done["exit_code"] == 0 and set(lines) == {"A:2:100:VECTOR_ADD"}


def test_a_request_that_is_taken_while_it_is_written_leaves_the_file_empty(guest, shim):
    """What grew again would be another request in its place, and cost it its answer."""
    process = guest.start(*RESPONDING, "--in-place", shim=shim, rules=["write,request.txt,taken,1"])
    support.wait_until(lambda: guest.request.exists() and guest.text(guest.response) == "0:Ready\n",
                       "the request")
    guest.response.write_text("1:fine\n")
    assert guest.end(process).code == 0
    assert guest.request.read_bytes() == b""


def test_a_rename_whose_answer_was_lost_is_not_repeated(guest, shim):
    done, lines = exchange(guest, shim, ["rename,request.txt,late,1"])
    assert done["exit_code"] == 0 and lines == ["A:2:100:VECTOR_ADD"]


def test_a_rename_that_the_kernel_sent_twice_was_done(guest, shim):
    """A server that was killed had done it and not said so; the next one finds no such file."""
    done, lines = exchange(guest, shim, ["rename,request.txt,repeated,1"])
    assert done["exit_code"] == 0 and lines == ["A:2:100:VECTOR_ADD"]


def test_a_directory_that_goes_before_the_rename_is_missing(guest, shim):
    error = guest.run("--json", *RESPONDING, shim=shim,
                      rules=["rename,request.txt,away,1"]).json["error"]
    assert error["code"] == "share-missing"
    assert str(guest.request) in error["text"]


def test_a_rename_whose_answer_was_lost_is_withdrawn_all_the_same(guest, shim):
    rules = ["rename,request.txt,late,1", f"rename,request.txt,{errno.EIO},{ALWAYS}"]
    error = guest.run("--json", *SILENT, shim=shim, rules=rules).json["error"]
    assert error["code"] == "timeout-share" and "withdrawn" in error["text"]
    assert guest.text(guest.request) == ""


def test_many_faults_at_once_are_survived(guest, shim):
    rules = [f"open,request.txt,{errno.ESTALE},5", f"create,.request.txt.new,{errno.EIO},4",
             f"rename,request.txt,{errno.ESTALE},3", f"open,response.txt,{errno.ETIMEDOUT},6",
             f"read,response.txt,{errno.EIO},6"]
    done, lines = exchange(guest, shim, rules)
    assert done["exit_code"] == 0 and lines == ["A:2:100:VECTOR_ADD"]


def test_verbose_tells_what_is_tried_again(guest, shim):
    with guests.FakeMediator(guest.directory):
        done = guest.run("--verbose", *RESPONDING, shim=shim,
                         rules=[f"open,request.txt,{errno.ESTALE},2"])
    assert done.code == 0 and "Stale file handle" in done.err


def test_a_fault_that_stays_is_a_timeout_that_names_it(guest, shim):
    error = guest.run("--json", *SILENT, shim=shim,
                      rules=[f"open,request.txt,{errno.ESTALE},{ALWAYS}"]).json["error"]
    assert error["code"] == "timeout-share"
    assert "Stale file handle" in error["text"] and "nothing was sent" in error["text"]


def test_a_fault_that_was_over_is_not_blamed(guest, shim):
    error = guest.run("--json", *SILENT, shim=shim,
                      rules=[f"open,request.txt,{errno.ESTALE},2"]).json["error"]
    assert error["code"] == "timeout-not-taken"


def test_a_fault_while_waiting_is_named_beside_the_missing_answer(guest, shim):
    rules = [f"open,response.txt,{errno.EIO},{ALWAYS}"]
    guest.response.write_text("0:Ready\n")
    with guests.FakeMediator(guest.directory, None):
        error = guest.run("--json", *SILENT, shim=shim, rules=rules).json["error"]
    assert error["code"] == "timeout-share" and "Input/output error" in error["text"]


def test_a_directory_that_is_replaced_while_waiting_is_followed(guest):
    """As when a server exports it anew: old handles are worth nothing."""
    process = guest.start("--quiet", *RESPONDING)
    guest.wait_sent()
    guest.directory.rename(guest.share / "old")
    (guest.share / "new").mkdir()
    (guest.share / "new/request.txt").write_text("")
    (guest.share / "new/response.txt").write_text("1:from the new one\n")
    (guest.share / "new").rename(guest.directory)
    assert guest.end(process).out == "from the new one\n"


# --- what never comes back --------------------------------------------------------------------

HANGS = ["stat,vm100", "open,request.txt", "open,response.txt", "read,request.txt",
         "create,response.txt", "write,response.txt", "fsync,response.txt", "close,response.txt",
         "create,.request.txt.new", "fsync,.request.txt.new", "close,.request.txt.new",
         "rename,request.txt"]


@pytest.mark.parametrize("place_of_fault", HANGS)
def test_a_share_that_hangs_does_not_hang_the_client(guest, shim, place_of_fault):
    guest.response.write_text("1:an old answer\n")
    guest.request.write_text("")
    done = guest.run("--json", *SILENT, shim=shim, rules=[f"{place_of_fault},hang,1"]).json
    assert done["exit_code"] == 5 and done["error"]["code"] == "timeout-share"
    assert str(guest.directory) in done["error"]["text"] and "NFS" in done["error"]["remedy"]
    before = "request.txt.new" not in place_of_fault and "rename" not in place_of_fault
    assert ("nothing was sent" in done["error"]["text"]) == before
    support.wait_until(lambda: not guest.processes_left(), "the end of the child")


# Thaws whatever happens: what is frozen cannot be unmounted.
FROZEN = """
set -e
place=$1
shift
truncate -s 16M "$place/image"
mkfs.ext4 -q "$place/image"
mkdir "$place/frozen"
mount -o loop "$place/image" "$place/frozen"
trap 'fsfreeze -u "$place/frozen"; umount -l "$place/frozen"' EXIT
trap 'exit 1' HUP INT TERM
mkdir "$place/frozen/vm100"
fsfreeze -f "$place/frozen"
"$@"
"""


def test_a_child_that_not_even_a_kill_ends_does_not_hang_the_client(guest):
    """A frozen file system puts its writers into uninterruptible sleep."""
    frozen = ["unshare", "--mount", "sh", "-c", FROZEN, "sh", guest.place]
    if subprocess.run([*frozen, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("no right to mount, or no loop device")
    for path in (guest.place / "image", guest.place / "frozen"):
        path.unlink() if path.is_file() else path.rmdir()
    words = ["--json", *SILENT, "--share", guest.place / "frozen"]
    done = subprocess.run([*frozen, *guest.command(*words)], capture_output=True, text=True,
                          timeout=support.WAIT_S, check=False)
    error = guests.Result(done.returncode, done.stdout, done.stderr).json["error"]
    assert error["code"] == "timeout-share" and "nothing was sent" in error["text"]


def test_a_share_that_hangs_while_waiting_names_the_step(guest, shim):
    guest.response.write_text("0:Ready\n")
    # The first look is the one before the request.
    rules = [f"open,response.txt,{errno.ESTALE},1", "open,response.txt,hang,1"]
    error = guest.run("--json", *SILENT, shim=shim, rules=rules).json["error"]
    assert "response.txt" in error["text"] and "hung" in error["text"]


def test_a_signal_ends_a_client_whose_share_hangs(guest, shim):
    process = guest.start("--json", "--verbose", shim=shim, rules=["open,request.txt,hang,1"])
    while "read " not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    done = guest.end(process).json
    assert done["exit_code"] == 130 and done["error"]["code"] == "interrupted"


def test_a_client_that_hung_keeps_no_lock(guest, shim):
    assert guest.run(*SILENT, shim=shim, rules=["open,request.txt,hang,1"]).code == 5
    with guests.FakeMediator(guest.directory):
        assert guest.run(*RESPONDING).code == 0


def test_a_child_that_dies_is_told_so(guest):
    process = guest.start("--json")
    guest.wait_sent()
    child, = [pid for pid in guest.processes_left() if pid != process.pid]
    os.kill(child, signal.SIGKILL)
    done = guest.end(process).json
    assert done["exit_code"] == 70 and "died" in done["error"]["text"]
