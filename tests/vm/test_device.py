# SPDX-License-Identifier: GPL-2.0-or-later
"""vgpu-stub as a guest sees it: docs/device.md, sentence by sentence.

Two ways to the registers:

    guest     a real guest boots once a module; its program `regs` (guest/regs.c)
              makes one access a call.  What can be shown there is shown there.
    machine   a QEMU whose processor never runs; accesses come over its test
              socket (qtest).  For what a processor or a kernel would hide:
              accesses that are not aligned, the reset of a whole machine.

All of it runs for both builds of the device: `preload`, the shared object in
the distribution's QEMU, and `intree`, the QEMU that `make qemu` builds.
VGPU_QEMU=preload|intree asks for one of them.
"""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

from harness import Guest, device, paths
from harness.device import (ALL, BUILDS, CAPS, DOORBELL, DOORBELLS, END, ERROR, ERROR_ACCESS,
                            ERROR_OFFSET, ERROR_READ_ONLY, ERROR_SESSION, IRQ_MASK, IRQ_STATUS,
                            MAGIC, POOL_ID, PRIORITY, SCRATCH, SESSION_CLOSE, SESSION_OPEN,
                            SESSION_STATE, SLOT_DOORBELL, SLOTS, STATUS, VERSION, VM_ID, WINDOW_HI,
                            WINDOW_LO, WISH, Machine, Qemu, Registers)
from harness.process import remove_directory, run_directory

READ_ONLY = [STATUS, POOL_ID, PRIORITY, VM_ID, MAGIC, VERSION, CAPS, WINDOW_LO, WINDOW_HI,
             DOORBELLS, SLOTS]
NO_REGISTERS = [0x48, 0x7C, SESSION_STATE, SLOT_DOORBELL, END, 0x800, 0xFFC]

FIRST_ADDRESS = "0000:00:10.0"
BRIDGE_ADDRESS = "0000:00:11.0"


@pytest.fixture(scope="module", params=[WISH] if WISH else BUILDS)
def qemu(request):
    return Qemu(request.param)


@pytest.fixture(scope="module")
def guest(qemu):
    """Two devices: one on the root bus, one behind a bridge, which can reset it."""
    directory = run_directory("device")
    guest = Guest("device", directory, qemu=qemu.program, preload=qemu.preload, lspci=True,
                  options=["-device", "vgpu-stub,pool_id=B,priority=high,vm_id=4294967295,addr=0x10",
                           "-device", "pci-bridge,id=bridge,chassis_nr=1,shpc=off,addr=0x11",
                           "-device", "vgpu-stub,bus=bridge,addr=1,vm_id=1,priority=low,pool_id=Z"])
    try:
        yield guest.boot()
    finally:
        guest.stop()
        remove_directory(directory)


@pytest.fixture(scope="module")
def addresses(guest):
    return sorted(guest.check("regs list").split())


@pytest.fixture(scope="module")
def booted(guest, addresses):
    """The device on the root bus; .fresh is what it held before any test."""
    assert FIRST_ADDRESS in addresses
    return Registers(guest, FIRST_ADDRESS)


@pytest.fixture
def registers(booted):
    booted.take_error()
    return booted


@pytest.fixture(scope="module")
def second(guest, addresses):
    """The device behind the bridge."""
    behind = [address for address in addresses if address != FIRST_ADDRESS]
    assert len(behind) == 1
    return Registers(guest, behind[0])


@pytest.fixture
def machine(qemu):
    machine = Machine(qemu, "vgpu-stub,pool_id=C,priority=medium,vm_id=300")
    yield machine
    machine.close()


# --- every register, read in a real guest --------------------------------------


def test_doorbell_reads_as_zero_and_takes_any_value(registers):
    assert registers.fresh[DOORBELL] == 0
    registers.write(DOORBELL, 0xDEADBEEF)
    assert registers.read(DOORBELL) == 0
    assert registers.take_error() == 0


def test_status_is_ready_without_a_host(registers):
    assert registers.fresh[STATUS] == 0x1


def test_pool_id_is_the_letter_of_the_property(registers):
    assert registers.fresh[POOL_ID] == ord("B")


def test_priority_is_that_of_the_property(registers):
    assert registers.fresh[PRIORITY] == 2


def test_vm_id_is_that_of_the_property_up_to_its_greatest(registers):
    assert registers.fresh[VM_ID] == 4294967295


def test_magic_spells_vgpu_in_memory(registers):
    assert registers.fresh[MAGIC].to_bytes(4, "little") == b"VGPU"


def test_version_is_1_1(registers):
    assert registers.fresh[VERSION] == 0x00010001


def test_slots_is_zero_without_a_window(registers):
    assert registers.fresh[SLOTS] == 0


@pytest.mark.parametrize("offset", [SESSION_OPEN, SESSION_CLOSE])
def test_no_session_without_a_window(registers, offset):
    for slot in [0, 15, 0xFFFFFFFF]:
        registers.write(offset, slot)
        assert registers.take_error() == ERROR_SESSION
    assert registers.read(offset) == 0
    assert registers.take_error() == 0


def test_caps_is_zero_without_window_and_interrupts(registers):
    assert registers.fresh[CAPS] == 0


def test_window_lo_is_zero_without_a_window(registers):
    assert registers.fresh[WINDOW_LO] == 0


def test_window_hi_is_zero_without_a_window(registers):
    assert registers.fresh[WINDOW_HI] == 0


def test_error_keeps_each_kind_until_one_is_written_to_its_bit(registers):
    assert registers.fresh[ERROR] == 0
    registers.write(MAGIC, 0)
    registers.read(STATUS, width=1)
    registers.read(END)
    assert registers.read(ERROR) == ERROR_ACCESS | ERROR_READ_ONLY | ERROR_OFFSET
    registers.write(ERROR, ERROR_READ_ONLY)
    assert registers.read(ERROR) == ERROR_ACCESS | ERROR_OFFSET
    registers.write(ERROR, 0)
    assert registers.read(ERROR) == ERROR_ACCESS | ERROR_OFFSET
    registers.write(ERROR, 0xFFFFFFFF)
    assert registers.read(ERROR) == 0


def test_irq_mask_keeps_the_defined_bits_only(registers):
    assert registers.fresh[IRQ_MASK] == 0
    registers.write(IRQ_MASK, 0xFFFFFFFF)
    assert registers.read(IRQ_MASK) == 0x3
    registers.write(IRQ_MASK, 0x2)
    assert registers.read(IRQ_MASK) == 0x2
    registers.write(IRQ_MASK, 0)
    assert registers.take_error() == 0


def test_irq_status_cannot_be_set_by_the_guest(registers):
    assert registers.fresh[IRQ_STATUS] == 0
    registers.write(IRQ_STATUS, 0xFFFFFFFF)
    assert registers.read(IRQ_STATUS) == 0
    assert registers.take_error() == 0


def test_doorbells_counts_each_doorbell_write(registers):
    assert registers.fresh[DOORBELLS] == 0
    before = registers.read(DOORBELLS)
    for value in [0, 1, 0xFFFFFFFF]:
        registers.write(DOORBELL, value)
    assert registers.read(DOORBELLS) == before + 3


def test_scratch_keeps_what_the_guest_wrote(registers):
    assert registers.fresh[SCRATCH] == 0
    for value in [0xFFFFFFFF, 0x12345678, 0]:
        registers.write(SCRATCH, value)
        assert registers.read(SCRATCH) == value
    assert registers.take_error() == 0


# --- access rules ---------------------------------------------------------------


@pytest.mark.parametrize("offset", READ_ONLY)
def test_a_write_to_a_read_only_register_is_ignored_and_noted(registers, offset):
    before = registers.read(offset)
    registers.write(offset, before ^ 0xFFFFFFFF)
    assert registers.read(offset) == before
    assert registers.take_error() == ERROR_READ_ONLY


@pytest.mark.parametrize("offset", NO_REGISTERS)
def test_where_no_register_is_reads_are_zero_and_noted(registers, offset):
    assert registers.read(offset) == 0
    assert registers.take_error() == ERROR_OFFSET


@pytest.mark.parametrize("offset", NO_REGISTERS)
def test_where_no_register_is_writes_are_ignored_and_noted(registers, offset):
    registers.write(offset, 0xFFFFFFFF)
    assert registers.take_error() == ERROR_OFFSET
    assert registers.read(offset) == 0


@pytest.mark.parametrize("width", [1, 2, 8])
@pytest.mark.parametrize("offset", [MAGIC - 4, SCRATCH, 0xFF8])
def test_a_read_of_another_width_is_all_ones_and_noted(registers, offset, width):
    assert registers.read(offset, width) == (1 << 8 * width) - 1
    assert registers.take_error() == ERROR_ACCESS


@pytest.mark.parametrize("width", [1, 2, 8])
def test_a_write_of_another_width_is_ignored_and_noted(registers, width):
    registers.write(SCRATCH, 0x5A5A5A5A)
    registers.write(SCRATCH, 0, width)
    assert registers.read(SCRATCH) == 0x5A5A5A5A
    assert registers.take_error() == ERROR_ACCESS


@pytest.mark.parametrize("width", [1, 2, 8])
def test_a_doorbell_of_another_width_rings_nothing(registers, width):
    before = registers.read(DOORBELLS)
    registers.write(DOORBELL, 1, width)
    assert registers.read(DOORBELLS) == before
    assert registers.take_error() == ERROR_ACCESS


@pytest.mark.parametrize("offset,width", [(SCRATCH + 1, 4), (SCRATCH + 2, 4), (SCRATCH - 1, 4),
                                          (SCRATCH + 1, 2), (SCRATCH + 1, 8), (SCRATCH + 3, 1)])
def test_an_access_that_is_not_aligned_is_refused(machine, offset, width):
    """Some processors, emulated ones too, split such an access before the device sees it."""
    machine.write(SCRATCH, 0x5A5A5A5A)
    assert machine.read(offset, width) == (1 << 8 * width) - 1
    assert machine.read(ERROR) == ERROR_ACCESS
    machine.write(ERROR, ERROR_ACCESS)
    machine.write(offset, 0, width)
    assert machine.read(ERROR) == ERROR_ACCESS
    assert machine.read(SCRATCH) == 0x5A5A5A5A
    assert machine.read(IRQ_STATUS) == 0


# --- reset ----------------------------------------------------------------------


def change_all(registers):
    registers.write(DOORBELL, 1)
    registers.write(IRQ_MASK, 0x3)
    registers.write(SCRATCH, 0x12345678)
    registers.write(MAGIC, 0)


def test_a_reset_by_the_guest_restores_all_but_the_identity(second):
    change_all(second)
    assert dict(zip(ALL, second.read_all())) != second.fresh
    second.guest.check(f"regs reset {second.address}")
    assert dict(zip(ALL, second.read_all())) == second.fresh
    assert second.fresh[POOL_ID] == ord("Z")


def test_a_reset_of_one_device_leaves_the_other_alone(second, registers):
    registers.write(SCRATCH, 0x12345678)
    second.guest.check(f"regs reset {second.address}")
    assert registers.read(SCRATCH) == 0x12345678


def test_a_reset_of_the_machine_restores_all_but_the_identity(machine):
    fresh = [machine.read(offset) for offset in ALL]
    change_all(machine)
    assert [machine.read(offset) for offset in ALL] != fresh
    machine.reset()
    assert [machine.read(offset) for offset in ALL] == fresh
    assert fresh[VM_ID // 4] == 300


# --- what the guest finds on the bus ---------------------------------------------


def test_lspci_calls_it_a_processing_accelerator(guest):
    lines = [line for line in guest.check("lspci -nn").splitlines() if "1af4:10f1" in line]
    assert len(lines) == 2
    for line in lines:
        assert "Processing accelerators [1200]" in line


def test_the_class_code_is_0x120000_and_bar0_has_4096_bytes(guest):
    path = f"/sys/bus/pci/devices/{FIRST_ADDRESS}"
    assert guest.check(f"cat {path}/class").strip() == "0x120000"
    start, end, flags = guest.check(f"head -n 1 {path}/resource").split()
    assert int(end, 0) - int(start, 0) + 1 == 4096
    assert int(flags, 0) & 0x200, "BAR0 is memory"


def test_without_a_window_there_is_no_other_bar(guest):
    lines = guest.check(f"cat /sys/bus/pci/devices/{FIRST_ADDRESS}/resource").splitlines()
    assert all(set(line.split()) == {"0x0000000000000000"} for line in lines[1:7])


def test_two_devices_in_one_guest_keep_their_own_registers(registers, second):
    assert [registers.fresh[offset] for offset in [POOL_ID, PRIORITY, VM_ID]] \
        == [ord("B"), 2, 4294967295]
    assert [second.fresh[offset] for offset in [POOL_ID, PRIORITY, VM_ID]] == [ord("Z"), 0, 1]
    registers.write(SCRATCH, 1)
    second.write(SCRATCH, 2)
    before = second.read(DOORBELLS)
    registers.write(DOORBELL, 1)
    assert (registers.read(SCRATCH), second.read(SCRATCH)) == (1, 2)
    assert second.read(DOORBELLS) == before


# --- properties -------------------------------------------------------------------


@pytest.mark.parametrize("text,number", [("low", 0), ("medium", 1), ("high", 2), ("0", 0), ("1", 1),
                                         ("2", 2)])
def test_priority_is_a_word_or_a_number(qemu, text, number):
    with Machine(qemu, f"vgpu-stub,vm_id=1,priority={text}") as machine:
        assert machine.read(PRIORITY) == number


def test_pool_a_and_priority_medium_are_the_defaults(qemu):
    with Machine(qemu, "vgpu-stub,vm_id=7") as machine:
        assert [machine.read(offset) for offset in [POOL_ID, PRIORITY, VM_ID]] == [ord("A"), 1, 7]


POOL_REMEDY = "is not a pool: use one letter from A to Z"
PRIORITY_REMEDY = "is not a priority: use 0, 1, 2 or low, medium, high"
VM_ID_REMEDY = "vm_id is not a VM's number: use a whole number from 1 to 4294967295"


@pytest.mark.parametrize("options,error", [
    ("vm_id=1,pool_id=a", f"vgpu-stub: pool_id 'a' {POOL_REMEDY}"),
    ("vm_id=1,pool_id=AB", f"vgpu-stub: pool_id 'AB' {POOL_REMEDY}"),
    ("vm_id=1,pool_id=", f"vgpu-stub: pool_id '' {POOL_REMEDY}"),
    ("vm_id=1,pool_id=1", f"vgpu-stub: pool_id '1' {POOL_REMEDY}"),
    ("vm_id=1,pool_id=É", f"vgpu-stub: pool_id 'É' {POOL_REMEDY}"),
    ("vm_id=1,priority=x", f"vgpu-stub: priority 'x' {PRIORITY_REMEDY}"),
    ("vm_id=1,priority=3", f"vgpu-stub: priority '3' {PRIORITY_REMEDY}"),
    ("vm_id=1,priority=-1", f"vgpu-stub: priority '-1' {PRIORITY_REMEDY}"),
    ("vm_id=1,priority=HIGH", f"vgpu-stub: priority 'HIGH' {PRIORITY_REMEDY}"),
    ("vm_id=1,priority=", f"vgpu-stub: priority '' {PRIORITY_REMEDY}"),
    ("vm_id=0", f"vgpu-stub: {VM_ID_REMEDY}"),
    ("vm_id=4294967296", f"vgpu-stub: {VM_ID_REMEDY}"),
    ("vm_id=-1", f"vgpu-stub: {VM_ID_REMEDY}"),
    ("vm_id=1.5", f"vgpu-stub: {VM_ID_REMEDY}"),
    ("vm_id=one", f"vgpu-stub: {VM_ID_REMEDY}"),
    ("pool_id=A", "vgpu-stub: vm_id is missing: "
                  "add vm_id=N, a whole number from 1 to 4294967295"),
])
def test_a_bad_property_is_refused_with_its_remedy(qemu, options, error):
    done = qemu.run("-device", f"vgpu-stub,{options}")
    assert done.returncode == 1
    assert error in done.stdout


# --- migration --------------------------------------------------------------------


MIGRATION_ERROR = ("vgpu-stub: VM 300 cannot be migrated, saved or snapshotted, because its GPU "
                   "work lives on this host: shut the VM down or unplug the device first")


def test_migration_is_refused_and_the_device_says_why(machine):
    answer = machine.monitor("migrate", uri="exec:cat >/dev/null")
    assert answer["error"]["desc"] == MIGRATION_ERROR


def test_a_snapshot_is_refused_and_the_device_says_why(machine):
    answer = machine.monitor("human-monitor-command", **{"command-line": "savevm one"})
    assert MIGRATION_ERROR in answer["return"]


def test_xens_way_of_saving_fails_too(machine):
    """It asks for no blockers; the device itself refuses to be saved."""
    answer = machine.monitor("xen-save-devices-state",
                             filename=str(machine.directory / "saved"))
    assert "error" in answer
    assert "vgpu-stub" in machine.process.output()


def test_only_migratable_refuses_the_device(qemu):
    done = qemu.run("-only-migratable", "-device", "vgpu-stub,vm_id=300")
    assert done.returncode == 1
    assert MIGRATION_ERROR in done.stdout


def test_once_unplugged_the_device_no_longer_blocks_migration(qemu):
    directory = run_directory("unplug")
    guest = Guest("unplug", directory, qemu=qemu.program, preload=qemu.preload, options=[
        "-M", "pc", "-device", "vgpu-stub,id=gpu,vm_id=300"])
    try:
        guest.boot()
        refused = guest.monitor("migrate", uri="exec:cat >/dev/null")
        assert refused["error"]["desc"] == MIGRATION_ERROR
        assert guest.monitor("device_del", id="gpu") == {"return": {}}
        guest.check("while [ -n \"$(regs list)\" ]; do usleep 20000; done")
        assert guest.monitor("migrate", uri="exec:cat >/dev/null", timeout=360) == {"return": {}}
    finally:
        guest.stop()
        remove_directory(directory)


# --- the specification and the header ------------------------------------------------


def header_registers():
    text = (paths.REPOSITORY / "include/vgpu/regs.h").read_text()
    found = re.findall(r"^#define VGPU_REG_(\w+) (0x[0-9a-f]+)", text, re.MULTILINE)
    return {name: int(offset, 16) for name, offset in found if name != "END"}


def test_the_specification_lists_every_register_with_its_offset_and_its_test():
    text = (paths.REPOSITORY / "docs/device.md").read_text()
    rows = re.findall(r"^\| 0x([0-9A-F]{3}) \| `(\w+)` .*\| `(test_\w+)` \|$", text, re.MULTILINE)
    assert {name: int(offset, 16) for offset, name, _ in rows} == header_registers()
    assert {test for _, _, test in rows} <= device_tests()


def device_tests():
    files = [pathlib.Path(__file__).with_name(name)
             for name in ["test_device.py", "test_device_window.py"]]
    return {test for file in files
            for test in re.findall(r"^def (test_\w+)\(", file.read_text(), re.MULTILINE)}


def test_every_test_that_the_specification_names_exists():
    text = (paths.REPOSITORY / "docs/device.md").read_text()
    assert set(re.findall(r"`(test_\w+)`", text)) <= device_tests()


def test_the_harness_knows_every_register_of_the_header():
    registers = header_registers()
    assert sorted(registers.values()) == [*ALL, SESSION_STATE, SLOT_DOORBELL]
    for name, offset in registers.items():
        assert getattr(device, name) == offset, name


# --- the shared object and its wrapper ------------------------------------------------


def preload_environment(**more):
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("VGPU_STUB_SO", "QEMU_SYSTEM_X86_64", "LD_PRELOAD")}
    return {**environment, **{name: str(value) for name, value in more.items()}}


def run_wrapper(*options, **environment):
    return subprocess.run([paths.REPOSITORY / "device/qemu-with-vgpu", *options],
                          env=preload_environment(**environment), stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=180)


def object_for_another_version(directory):
    """The shared object with another version in it, as left over from before an upgrade."""
    installed = re.search(rb"vgpu-stub for QEMU=([^;]+);", paths.device().read_bytes()).group(1)
    other = b"1:0.0" + b"x" * (len(installed) - 5)
    path = directory / "vgpu-stub.so"
    path.write_bytes(paths.device().read_bytes().replace(installed, other))
    return path, other.decode(), installed.decode()


def test_the_wrapper_starts_qemu_with_the_device():
    done = run_wrapper("-device", "vgpu-stub,help", VGPU_STUB_SO=paths.device())
    assert done.returncode == 0
    assert "vm_id=<uint32>" in done.stdout


def test_the_wrapper_refuses_an_object_for_another_qemu_and_says_how_to_rebuild(tmp_path):
    path, other, installed = object_for_another_version(tmp_path)
    done = run_wrapper("--version", VGPU_STUB_SO=path)
    assert done.returncode == 1
    assert re.fullmatch(rf"qemu-with-vgpu: {re.escape(str(path))} is for QEMU {re.escape(other)}, "
                        rf"but installed is {re.escape(installed)}(\+b[0-9]+)?: "
                        rf"rebuild it with scripts/build-device {re.escape(str(path))}\n",
                        done.stdout)


@pytest.mark.parametrize("name,content,error", [
    ("missing.so", None, "build it with scripts/build-device"),
    ("text.so", "text", "is not a vgpu-stub: rebuild it with scripts/build-device"),
    ("a blank.so", "text", "the loader takes no path with a blank or a colon"),
])
def test_the_wrapper_refuses_what_is_no_object(tmp_path, name, content, error):
    if content:
        (tmp_path / name).write_text(content)
    done = run_wrapper("--version", VGPU_STUB_SO=tmp_path / name)
    assert done.returncode == 1
    assert error in done.stdout


def test_the_wrapper_says_when_qemu_is_missing():
    done = run_wrapper("--version", VGPU_STUB_SO=paths.device(), QEMU_SYSTEM_X86_64="no-such-qemu")
    assert done.returncode == 1
    assert "'no-such-qemu --version' gave nothing: install qemu-system-x86" in done.stdout


def test_without_the_wrapper_the_object_itself_refuses_another_qemu(tmp_path):
    path, other, installed = object_for_another_version(tmp_path)
    done = subprocess.run(["env", f"LD_PRELOAD={path}", "qemu-system-x86_64", "-device",
                           "vgpu-stub,vm_id=1"], stdin=subprocess.DEVNULL, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=180)
    assert done.returncode == 1
    assert f"vgpu-stub: this shared object is for QEMU {other}" in done.stdout
    assert installed in done.stdout
    assert "rebuild it with scripts/build-device" in done.stdout
    assert "'vgpu-stub' is not a valid device model name" in done.stdout


def test_programs_that_qemu_starts_do_not_inherit_the_object(tmp_path):
    other = pathlib.Path(shutil.which("env")).parent  # any path will do: the loader skips it
    done = subprocess.run(
        ["env", f"LD_PRELOAD={paths.device()}:{other}/none.so", "qemu-system-x86_64", "-M", "none",
         "-accel", "tcg", "-nodefaults", "-display", "none", "-S", "-monitor", "stdio"],
        input=f"migrate \"exec:env >{tmp_path}/environment; cat >/dev/null\"\nquit\n", text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=180)
    assert done.returncode == 0, done.stdout
    lines = (tmp_path / "environment").read_text().splitlines()
    assert [line for line in lines if line.startswith("LD_PRELOAD=")] \
        == [f"LD_PRELOAD={other}/none.so"]
