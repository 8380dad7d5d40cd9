# SPDX-License-Identifier: Apache-2.0
"""The ground that the other tests stand on: guests, NFS, and their isolation."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from harness import Guest
from harness.guest import GuestError
from harness.network import SERVER
from harness.process import remove_directory, run_directory

VMS = {1: ("A", "low"), 2: ("A", "high")}
MOUNT_OPTIONS = f"addr={SERVER},clientaddr=10.0.2.15,vers=4.1"


@pytest.fixture(scope="module")
def guests(lab):
    return dict(zip(VMS, lab.boot()))


def test_a_guest_boots_and_runs_commands(guests):
    assert guests[1].run("echo out; echo err >&2; exit 3") == (3, "out\nerr\n")
    assert guests[1].check("hostname") == "vm1\n"


def test_a_guest_too_small_for_its_image_is_no_guest():
    """Its programs would be missing, or cut, and the tests say odd things."""
    directory = run_directory("small")
    guest = Guest("small", directory, preload=None, lspci=True, memory_mib=128)
    try:
        with pytest.raises(GuestError, match="128 MiB are too few for its image"):
            guest.boot()
    finally:
        guest.stop()
        remove_directory(directory)


def test_several_commands_run_in_one_guest_at_once(guests):
    slow = guests[1].spawn("echo begun; sleep 60")
    slow.wait_output("begun")
    assert guests[1].check("echo meanwhile") == "meanwhile\n"
    assert not slow.done()
    slow.kill()
    assert slow.wait() == (128 + signal.SIGTERM, "begun\n")


def test_large_output_arrives_whole(guests):
    text = guests[1].check("seq 1 50000")
    assert text == "".join(f"{number}\n" for number in range(1, 50001))


def test_kernel_messages_go_to_the_console_only(guests):
    output = guests[1].check("echo before; echo '<0>loud kernel message' >/dev/kmsg; echo after")
    assert output == "before\nafter\n"
    assert "loud kernel message" in guests[1].console_text()


def test_the_guest_sees_its_device(guests):
    assert guests[1].check("cat /sys/bus/pci/devices/*/class | grep -c 0x120000") == "1\n"


def test_what_the_guest_writes_is_on_the_host_and_belongs_to_its_own_user(lab, guests):
    guests[1].check("echo from the guest >/mnt/vgpu/vm1/a.txt")
    file = lab.vm_directory(1) / "a.txt"
    assert file.read_text() == "from the guest\n"
    assert file.stat().st_uid == lab.vm_directory(1).stat().st_uid == 100001


def test_what_the_host_writes_is_in_the_guest_at_once(lab, guests):
    file = lab.vm_directory(1) / "b.txt"
    for number in range(20):
        file.write_text(f"{number}\n")
        assert guests[1].check("cat /mnt/vgpu/vm1/b.txt") == f"{number}\n"


@pytest.mark.parametrize("how", ["place", "rename"])
def test_messages_go_both_ways_over_the_share(lab, guests, how):
    directory = lab.vm_directory(1)
    ended = threading.Event()

    def answer():
        last = None
        while not ended.wait(0.0005):
            try:
                text = (directory / "ask.txt").read_text()
            except FileNotFoundError:
                continue
            if text != last and text.endswith("\n"):
                last = text
                (directory / "answer.new").write_text(text)
                os.rename(directory / "answer.new", directory / "answer.txt")

    answering = threading.Thread(target=answer)
    answering.start()
    try:
        output = guests[1].check(f"share-latency /mnt/vgpu/vm1 100 {how}", 60)
    finally:
        ended.set()
        answering.join()
    assert output.startswith("write_us=")
    print(output)


def test_a_guest_sees_only_its_own_export(guests):
    listing = guests[1].check(
        f"mkdir -p /mnt/all && mount -t nfs4 -o {MOUNT_OPTIONS} {SERVER}:/ /mnt/all && ls /mnt/all")
    assert listing == "vm1\n"
    status, output = guests[1].run("cat /mnt/all/vm2/secret; status=$?; umount /mnt/all; exit $status")
    assert status != 0 and "No such file" in output


@pytest.mark.parametrize("path", ["/vm2", "/vm1/../vm2", "/../vm2", "//vm2", "/vm1/link"])
def test_a_guest_cannot_mount_anothers_directory(lab, guests, path):
    (lab.vm_directory(2) / "secret").write_text("of VM 2\n")
    link = lab.vm_directory(1) / "link"
    if not link.is_symlink():
        link.symlink_to("../vm2")
    mount = f"mkdir -p /mnt/foreign && mount -t nfs4 -o {MOUNT_OPTIONS} {SERVER}:{path} /mnt/foreign"
    guests[1].run(mount)
    try:
        status, output = guests[1].run("cat /mnt/foreign/secret || echo x >/mnt/foreign/written")
        assert "of VM 2" not in output
        assert not (lab.vm_directory(2) / "written").exists()
    finally:
        guests[1].run("rm -f /mnt/foreign/written; umount /mnt/foreign")


def test_a_link_out_of_the_directory_leads_nowhere(lab, guests):
    (lab.vm_directory(2) / "secret").write_text("of VM 2\n")
    for target in ["../vm2/secret", "../../share/vm2/secret", str(lab.vm_directory(2) / "secret")]:
        status, output = guests[1].run(
            f"cd /mnt/vgpu/vm1 && ln -sf {target} way && cat way; echo broken >way")
        assert "of VM 2" not in output
    assert (lab.vm_directory(2) / "secret").read_text() == "of VM 2\n"


def test_another_address_in_the_guest_does_not_help(guests):
    """QEMU's user-mode network speaks for the namespace, whatever the guest calls itself."""
    # Another minor version, so that the kernel makes a connection of its own.
    options = MOUNT_OPTIONS.replace("vers=4.1", "vers=4.2")
    route = f"{SERVER}/32 via 10.0.2.2 src 10.77.0.12"
    status, output = guests[1].run(
        f"ip addr add 10.77.0.12/32 dev eth0 && ip route add {route} || exit 0; mkdir -p /mnt/other;"
        f" timeout -s KILL 10 mount -t nfs4 -o {options} {SERVER}:/vm2 /mnt/other; status=$?;"
        f" ip route del {route}; ip addr del 10.77.0.12/32 dev eth0; exit $status")
    assert status != 0 and "No such file" in output  # an answer, not silence
    assert "/mnt/other" not in guests[1].check("cat /proc/mounts")


def test_root_in_the_guest_is_nobody_on_the_host(lab, guests):
    (lab.vm_directory(1) / "of-host-root").write_text("x\n")
    (lab.vm_directory(1) / "of-host-root").chmod(0o600)
    status, output = guests[1].run("id -u; cat /mnt/vgpu/vm1/of-host-root")
    assert status != 0 and "Permission denied" in output
    guests[1].run("cd /mnt/vgpu/vm1 && touch mine && chown 0:0 mine; chmod 4755 mine")
    assert (lab.vm_directory(1) / "mine").stat().st_uid == 100001


def test_a_hard_mount_goes_on_after_the_server_was_away(lab, guests):
    waiting = guests[1].spawn(
        "cd /mnt/vgpu/vm1; n=0; while [ ! -e stop ]; do n=$((n+1)); echo $n >counter || exit 1;"
        " echo $n; done")
    waiting.wait_output("\n")
    lab.nfs.stop()
    at_stop = len(waiting.output)
    time.sleep(1)
    lab.nfs.start()
    (lab.vm_directory(1) / "stop").touch()
    status, output = waiting.wait(240)
    assert status == 0
    assert len(output) >= at_stop
    assert (lab.vm_directory(1) / "counter").read_text() == output.splitlines()[-1] + "\n"


SCRIPT = """
import sys, time
sys.path.insert(0, {harness!r})
from harness import Lab, process
process.install_cleanup()
with Lab({{1: ("A", "low")}}) as lab:
    guest = lab.boot()[0]
    print(lab.directory, guest.process.pid, lab.nfs.process.pid, lab.network.server, flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind_when_a_run_is_ended(number):
    script = SCRIPT.format(harness=str(pathlib.Path(__file__).resolve().parent))
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True,
                             stderr=subprocess.DEVNULL)
    directory, *pids = child.stdout.readline().split()
    assert len(pids) == 3
    child.send_signal(number)
    child.wait(120)
    child.stdout.close()
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if _alive(pid)]
    if number == signal.SIGKILL:
        # Only the directory waits for the next run.
        from harness.process import remove_directory, run_directory
        remove_directory(run_directory("sweep"))
    assert not os.path.exists(directory)


def _alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
