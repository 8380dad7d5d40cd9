# SPDX-License-Identifier: Apache-2.0
"""The state directory: journals that are damaged or foreign, a disk that is full.

Only files have a journal; test_window_restart.py in tests/vm and test_window_kill.py have
what a window keeps instead.
"""

import os
import subprocess

import pytest
from support import run


def refused_start(m):
    m.allow_error(".")
    done = run("--config", m.config)
    assert done.returncode == 1, done
    return done.stderr


@pytest.mark.parametrize("damage", ["all", "foreign", "short"])
def test_damaged_journal_is_refused_with_a_reason_and_left_alone(mediator, damage):
    m = mediator(vms={1: ("A", 1), 2: ("A", 1)})
    assert m.vm(1).ask("PING") == "1:PONG"
    m.stop()
    journal = m.state / "vm1.journal"
    good = journal.read_bytes()
    bad = {"all": bytes(byte ^ 0xff for byte in good), "foreign": b"not a journal\n" * 500,
           "short": b"short"}[damage]
    journal.write_bytes(bad)
    assert "journal 'vm1.journal' holds no valid entry: move it away to go on" in refused_start(m)
    assert journal.read_bytes() == bad
    journal.unlink()  # as it says
    m.start()
    assert m.vm(1).ask("PING") == "1:PONG"


def test_half_written_newest_entry_is_as_if_it_had_not_been_written(mediator):
    m = mediator()
    assert m.vm(1).ask("PING") == "1:PONG"
    m.vm(1).ready()
    m.stop()
    journal = m.state / "vm1.journal"
    data = bytearray(journal.read_bytes())
    half = len(data) // 2
    generation = [int.from_bytes(data[at + 16:at + 24], "little") for at in (0, half)]
    newest = 0 if generation[0] > generation[1] else half
    data[newest + 100:newest + half] = bytes(half - 100)
    journal.write_bytes(data)
    m.start()
    assert m.vm(1).ask("PING next") == "1:PONG next"


def test_damaged_journal_of_an_unregistered_vm_stops_only_that_vm(mediator):
    m = mediator(vms={1: ("A", 1)}, unregistered="accept", start=False)
    m.allow_error("vm77: journal 'vm77.journal'")
    m.state.mkdir()
    (m.state / "vm77.journal").write_bytes(b"x" * 10000)
    m.start()
    vm = m.vm(77)
    m.make_directory(vm)
    vm.put("PING")
    m.wait_message("vm77: journal 'vm77.journal' holds no valid entry")
    m.wait_listings()
    assert m.vm(1).ask("PING") == "1:PONG"
    assert len(m.messages("vm77: journal")) == 1
    assert vm.answer() is None


def test_journal_of_another_vm_is_refused(mediator):
    m = mediator(vms={1: ("A", 1), 2: ("A", 1)})
    assert m.vm(1).ask("PING") == "1:PONG"
    m.stop()
    (m.state / "vm1.journal").rename(m.state / "vm2.journal")
    assert "journal 'vm2.journal' is not VM 2's" in refused_start(m)


def test_link_in_the_place_of_a_journal_is_not_followed(mediator):
    m = mediator(start=False)
    m.state.mkdir()
    (m.state / "vm1.journal").symlink_to(m.directory / "target")
    assert "vm1.journal" in refused_start(m)
    assert not (m.directory / "target").exists()


@pytest.fixture
def small_disk(place):
    """A file system of its own with room for some files only."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    path = place / "disk"
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k,mode=0700", "vgpu-test", path],
                          capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def fill(path):
    """Leaves not one page free; returns the file that has them."""
    filler = path / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def test_request_stays_while_the_disk_is_full_and_is_taken_when_it_is_not(small_disk, mediator):
    m = mediator(vms={1: ("A", 1), 2: ("A", 1)}, state_dir=small_disk)
    m.allow_error("vm1: cannot accept its request")
    assert m.vm(2).ask("PING") == "1:PONG"  # so its files have their room
    filler = fill(small_disk)
    m.vm(1).ready()
    m.vm(1).put("PING patience")
    message = m.wait_message("vm1: cannot accept its request")["message"]
    assert "No space left on device" in message
    for i in range(10):  # looks go by
        assert m.vm(2).ask(f"PING {i}") == f"1:PONG {i}"
    assert m.vm(1).request.read_text() == "A:1:1:PING patience\n"
    assert len(m.messages("vm1: cannot accept")) == 1  # no flood
    filler.unlink()
    assert m.vm(1).wait_answer() == "1:PONG patience"
    m.wait_message("vm1: its requests are accepted again")
    assert m.executions().count((1, 1)) == 1


def test_worker_without_room_for_its_record_is_an_error_answer(small_disk, mediator):
    m = mediator(state_dir=small_disk, worker_idle_ms=0)
    m.allow_error("no worker could be started")
    assert m.vm(1).ask("PING") == "1:PONG"
    m.wait_workers_reaped()  # a page of the record would be free later else
    (small_disk / "vm1.session").unlink()
    filler = fill(small_disk)
    assert m.vm(1).ask("PING").startswith("2:no worker could be started")
    filler.unlink()
    assert m.vm(1).ask("PING") == "1:PONG"
