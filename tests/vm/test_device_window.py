# SPDX-License-Identifier: GPL-2.0-or-later
"""vgpu-stub with a window: BAR1, BAR2, sessions and the link, register by register.

The processor of most of these machines never runs: accesses come over qtest, and the
test plays the mediator (harness/link.py), so it decides what is said, and when.  At the
end a real guest does what only a processor and a kernel can show.
"""

import errno
import os
import struct

import pytest

from harness import Guest
from harness.device import (BUILDS, CAPS, DOORBELL, DOORBELLS, ERROR_OFFSET, ERROR_READ_ONLY,
                            ERROR_SESSION, IRQ_COMPLETION, IRQ_CONFIG, IRQ_MASK, IRQ_STATUS,
                            POOL_ID, PRIORITY, SCRATCH, SESSION_CLOSE, SESSION_OPEN, SESSION_STATE,
                            SLOT_DOORBELL, SLOTS, STATUS, STATUS_HOST, STATUS_READY,
                            STATUS_RESETTING, WINDOW_HI, WINDOW_LO, WISH, Machine, Qemu, Registers)
from harness.link import (CLOSE, CLOSED, FAULTED, HELLO_RESETTING, LOST, OPEN, OPENING, READY,
                          RESET, RESETTING, SESSION_REFUSED, LinkServer, message)
from harness.process import remove_directory, run_directory

DEVICE = "vgpu-stub,pool_id=C,priority=medium,vm_id=300"
WINDOW_BYTES = 4 << 20
REFUSED_HOSTDOWN = SESSION_REFUSED | errno.EHOSTDOWN << 8


@pytest.fixture(scope="module", params=[WISH] if WISH else BUILDS)
def qemu(request):
    return Qemu(request.param)


@pytest.fixture
def path():
    directory = run_directory("link")
    yield directory / "vm300.sock"
    remove_directory(directory)


@pytest.fixture
def server(path):
    with LinkServer(path) as made:
        yield made


@pytest.fixture
def machine(qemu, path, server):
    made = Machine(qemu, DEVICE, socket_path=path)
    made.link = server.welcomed(pool="C")
    made.wait(STATUS, STATUS_READY | STATUS_HOST)
    made.write(IRQ_STATUS, 3)
    yield made
    made.close()


def open_slot(machine, slot):
    machine.write(SESSION_OPEN, slot)
    machine.link.expect(OPEN, slot=slot)
    machine.link.state(slot, READY)
    machine.wait_session(slot, READY)


# --- what is there -------------------------------------------------------------------


def test_caps_and_sizes_tell_of_window_and_interrupts(machine):
    assert machine.read(CAPS) == 3
    assert (machine.read(WINDOW_LO), machine.read(WINDOW_HI)) == (WINDOW_BYTES, 0)
    assert machine.bar_bytes(2)[0] == WINDOW_BYTES
    assert machine.bar_bytes(2)[1] & 0xC == 0xC, "64 bits, prefetchable"
    assert machine.bar_bytes(1)[0] >= 4096


def test_slots_is_the_number_of_sessions(machine):
    assert machine.read(SLOTS) == 8
    machine.write(SLOTS, 1)
    assert machine.take_error() == ERROR_READ_ONLY


def test_hello_says_what_the_device_has(machine):
    hello = machine.link.hello
    assert (hello.owner, hello.vm_id, hello.window_bytes, hello.slot_count, hello.open_slots,
            hello.flags) == (1, 300, WINDOW_BYTES, 8, 0, 0)
    assert len(machine.link.doorbells) == 8


def test_the_window_is_shared_both_ways(machine):
    machine.window_write(0x5000, 0x12345678)
    assert struct.unpack_from("<I", machine.link.window, 0x5000)[0] == 0x12345678
    struct.pack_into("<I", machine.link.window, 0x6000, 0xCAFE)
    assert machine.window_read(0x6000) == 0xCAFE
    assert machine.link.window[:4] == b"VWIN"


# --- doorbells and interrupts --------------------------------------------------------


def test_slot_doorbell_rings_its_own_eventfd_only(machine):
    machine.write(SLOT_DOORBELL + 4 * 3, 99)
    assert machine.link.rung(3) == 1
    assert [machine.link.rung(slot, 0) for slot in range(8)] == [0] * 8
    assert machine.read(SLOT_DOORBELL + 4 * 3) == 0
    assert machine.take_error() == 0


def test_doorbell_rings_all_slots_and_is_counted(machine):
    before = machine.read(DOORBELLS)
    machine.write(DOORBELL, 1)
    assert [machine.link.rung(slot) for slot in range(8)] == [1] * 8
    assert machine.read(DOORBELLS) == before + 1


def test_a_doorbell_beyond_the_sessions_is_noted(machine):
    machine.write(SLOT_DOORBELL + 4 * 8, 1)
    assert machine.take_error() == ERROR_OFFSET
    assert machine.read(SESSION_STATE + 4 * 8) == 0
    assert machine.take_error() == ERROR_OFFSET


def test_a_completion_interrupts_by_vector_0(machine):
    machine.enable_msix()
    machine.write(IRQ_MASK, IRQ_COMPLETION)
    machine.link.signal()
    machine.wait_interrupts(0)
    assert machine.read(IRQ_STATUS) == IRQ_COMPLETION
    machine.write(IRQ_STATUS, IRQ_COMPLETION)
    assert machine.read(IRQ_STATUS) == 0


def test_a_masked_cause_is_pending_and_interrupts_when_it_is_unmasked(machine):
    machine.enable_msix()
    machine.write(IRQ_MASK, 0)
    machine.link.signal()
    machine.wait(IRQ_STATUS, IRQ_COMPLETION)
    assert machine.interrupts() == []
    machine.write(IRQ_MASK, IRQ_COMPLETION)
    machine.wait_interrupts(0)


@pytest.fixture
def with_irqfd(path, server):
    """Under KVM, with a processor that never runs."""
    try:
        made = Machine(Qemu("preload"), DEVICE + ",irqfd=on", socket_path=path, accel="kvm")
    except (AssertionError, OSError) as error:
        if "kvm" not in str(error).lower():
            raise
        pytest.skip("QEMU finds no KVM on this machine")
    made.link = server.welcomed(pool="C")
    made.wait(STATUS, STATUS_READY | STATUS_HOST)
    made.write(IRQ_STATUS, 3)
    yield made
    made.close()


def taken_by_the_kernel(machine):
    """One completion, which QEMU does not see."""
    machine.link.signal()
    machine.link.wait_heard()
    machine.monitor("query-status")  # a turn of QEMU's main loop
    return machine.read(IRQ_STATUS) == 0


@pytest.mark.skipif(WISH == "intree", reason="the QEMU that has the device built in has no KVM")
def test_irqfd_leaves_completions_to_the_kernel_while_vector_0_is_open(with_irqfd):
    machine = with_irqfd
    machine.write(IRQ_MASK, IRQ_COMPLETION)
    assert not taken_by_the_kernel(machine), "MSI-X is off"
    machine.write(IRQ_STATUS, IRQ_COMPLETION)
    machine.enable_msix()
    assert taken_by_the_kernel(machine)
    machine.write(IRQ_MASK, 0)
    assert not taken_by_the_kernel(machine), "masked: it is pending"
    machine.write(IRQ_MASK, IRQ_COMPLETION)
    machine.write(IRQ_STATUS, IRQ_COMPLETION)
    assert taken_by_the_kernel(machine)
    machine.reset()
    assert not taken_by_the_kernel(machine), "a reset masks all"
    machine.write(IRQ_STATUS, IRQ_COMPLETION)
    machine.write(IRQ_MASK, IRQ_COMPLETION)
    machine.enable_msix()
    taken_by_the_kernel(machine)  # or not: see vgpu_irqfd.c
    machine.write(IRQ_STATUS, IRQ_COMPLETION)
    assert taken_by_the_kernel(machine)


def test_a_changed_configuration_is_seen_live_and_interrupts_by_vector_1(machine):
    machine.enable_msix()
    machine.write(IRQ_MASK, IRQ_CONFIG)
    machine.link.config("Q", 2)
    machine.wait(POOL_ID, ord("Q"))
    assert machine.read(PRIORITY) == 2
    machine.wait_interrupts(1)


# --- sessions ------------------------------------------------------------------------


def test_session_open_asks_the_mediator_and_session_state_tells(machine):
    machine.enable_msix()
    machine.write(IRQ_MASK, IRQ_CONFIG)
    machine.write(SESSION_OPEN, 2)
    assert machine.session(2) == OPENING
    machine.link.expect(OPEN, slot=2)
    machine.link.state(2, READY)
    machine.wait_session(2, READY)
    machine.wait_interrupts(1)
    assert machine.read(SESSION_OPEN) == 0
    for state in (LOST, FAULTED):
        machine.link.state(2, state)
        machine.wait_session(2, state)


def test_a_refusal_has_its_code(machine):
    machine.write(SESSION_OPEN, 1)
    machine.link.expect(OPEN, slot=1)
    machine.link.state(1, SESSION_REFUSED, errno.EBUSY, "all taken")
    machine.wait_session(1, SESSION_REFUSED | errno.EBUSY << 8)
    machine.write(SESSION_OPEN, 1)  # may be tried again
    machine.link.expect(OPEN, slot=1)


def test_session_close_waits_for_the_mediators_word(machine):
    open_slot(machine, 0)
    machine.write(SESSION_CLOSE, 0)
    machine.link.expect(CLOSE, slot=0)
    assert machine.session(0) == RESETTING
    machine.write(SESSION_OPEN, 0)
    assert machine.take_error() == ERROR_SESSION
    machine.link.state(0, CLOSED)
    machine.wait_session(0, CLOSED)
    assert machine.read(SESSION_CLOSE) == 0


@pytest.mark.parametrize("register, slot", [(SESSION_OPEN, 8), (SESSION_OPEN, 0xFFFFFFFF),
                                            (SESSION_CLOSE, 0), (SESSION_CLOSE, 8)])
def test_what_a_slot_cannot_do_now_is_noted(machine, register, slot):
    machine.write(register, slot)
    assert machine.take_error() == ERROR_SESSION
    assert machine.link.silent()


def test_a_second_open_of_a_slot_is_noted_and_not_told(machine):
    open_slot(machine, 4)
    machine.write(SESSION_OPEN, 4)
    assert machine.take_error() == ERROR_SESSION
    assert machine.link.silent()


# --- mediators that come and go --------------------------------------------------------


def test_without_a_mediator_all_works_but_sessions(qemu, path):
    machine = Machine(qemu, DEVICE, socket_path=path)
    try:
        assert machine.read(STATUS) == STATUS_READY
        machine.write(SESSION_OPEN, 0)
        assert machine.session(0) == REFUSED_HOSTDOWN
        machine.write(SCRATCH, 7)
        assert machine.read(SCRATCH) == 7
        with LinkServer(path) as late:
            late.welcomed(pool="C")
            machine.wait(STATUS, STATUS_READY | STATUS_HOST)
    finally:
        machine.close()


def test_sessions_survive_a_mediators_restart_and_hello_names_them(machine, server):
    open_slot(machine, 1)
    open_slot(machine, 6)
    machine.write(SESSION_OPEN, 3)
    machine.link.expect(OPEN, slot=3)
    inode = os.fstat(machine.link.hello.fds[0]).st_ino
    machine.link.connection.close()
    machine.wait(STATUS, STATUS_READY)
    assert machine.session(3) == REFUSED_HOSTDOWN
    assert machine.session(1) == READY
    again = server.welcomed(pool="C")
    assert again.hello.open_slots == 1 << 1 | 1 << 6
    assert os.fstat(again.hello.fds[0]).st_ino == inode


def test_a_close_that_was_not_answered_is_told_to_the_next_mediator(machine, server):
    open_slot(machine, 5)
    machine.write(SESSION_CLOSE, 5)
    machine.link.connection.close()
    machine.wait(STATUS, STATUS_READY)
    again = server.welcomed(pool="C")
    assert again.hello.open_slots == 0
    again.expect(CLOSE, slot=5)
    again.state(5, CLOSED)
    machine.wait_session(5, CLOSED)


def test_the_lifeline_hangs_up_with_qemu(machine):
    machine.process.kill()
    assert os.read(machine.link.lifeline, 1) == b""


# --- resets --------------------------------------------------------------------------


def test_a_reset_fences_until_the_mediator_is_through(machine):
    open_slot(machine, 0)
    machine.reset()
    machine.link.expect(RESET)
    assert machine.read(STATUS) == STATUS_READY | STATUS_HOST | STATUS_RESETTING
    assert machine.session(0) == RESETTING
    machine.write(SESSION_OPEN, 0)
    assert machine.take_error() == ERROR_SESSION
    machine.link.reset_done()
    machine.wait(STATUS, STATUS_READY | STATUS_HOST)
    machine.wait_session(0, CLOSED)
    assert machine.read(IRQ_MASK) == 0


def test_a_reset_without_a_mediator_is_told_in_the_next_hello(machine, server):
    open_slot(machine, 0)
    machine.link.connection.close()
    machine.wait(STATUS, STATUS_READY)
    machine.reset()
    assert machine.read(STATUS) & STATUS_RESETTING
    again = server.welcomed(pool="C")
    assert again.hello.flags == HELLO_RESETTING
    assert again.hello.open_slots == 0
    again.reset_done()
    machine.wait(STATUS, STATUS_READY | STATUS_HOST)


def test_a_reset_with_nothing_open_is_over_at_once(machine):
    machine.reset()
    assert machine.read(STATUS) == STATUS_READY | STATUS_HOST
    assert machine.link.silent()


# --- mediators that lie --------------------------------------------------------------


@pytest.mark.parametrize("data", [b"\xff" * 256, message(99), message(16, b"\0" * 16),
                                  message(18, struct.pack("<IIII", 8, READY, 0, 0)),
                                  message(18, struct.pack("<IIII", 0, 77, 0, 0)),
                                  message(20, version=9)],
                         ids=["noise", "unknown", "welcome-twice", "no-slot", "no-state",
                              "version"])
def test_nonsense_ends_the_link_and_the_device_connects_anew(machine, server, data):
    machine.link.raw(data)
    machine.link.expect_end()
    server.welcomed(pool="C")
    machine.wait(STATUS, STATUS_READY | STATUS_HOST)
    assert machine.read(POOL_ID) == ord("C")


def test_a_message_in_pieces_is_one_message(machine):
    data = message(19, struct.pack("<IIII", 300, ord("D"), 0, 8))
    for at in range(0, 256, 50):
        machine.link.raw(data[at:at + 50])
    machine.wait(POOL_ID, ord("D"))


def test_descriptors_that_nobody_asked_for_do_no_harm(machine):
    reader, writer = os.pipe()
    machine.link.raw(message(19, struct.pack("<IIII", 300, ord("E"), 0, 8)), [reader, writer])
    os.close(reader)
    os.close(writer)
    machine.wait(POOL_ID, ord("E"))


def test_half_a_message_is_forgotten_with_its_link(machine, server):
    machine.link.raw(b"\xff" * 100)
    machine.link.connection.close()
    machine.wait(STATUS, STATUS_READY)
    again = server.welcomed(pool="G")
    machine.wait(POOL_ID, ord("G"))
    again.config("H", 0)
    machine.wait(POOL_ID, ord("H"))


def test_a_state_of_a_slot_that_nobody_opened_changes_nothing(machine):
    for state in [READY, LOST, FAULTED, SESSION_REFUSED, CLOSED]:
        machine.link.state(3, state)
    machine.link.config("F", 1)
    machine.wait(POOL_ID, ord("F"))
    assert machine.session(3) == CLOSED


def test_a_ready_that_comes_after_the_close_changes_nothing(machine):
    machine.write(SESSION_OPEN, 3)
    machine.write(SESSION_CLOSE, 3)
    machine.link.expect(OPEN, slot=3)
    machine.link.state(3, READY)
    machine.link.config("F", 1)
    machine.wait(POOL_ID, ord("F"))
    assert machine.session(3) == RESETTING
    machine.link.expect(CLOSE, slot=3)
    machine.link.state(3, CLOSED)
    machine.wait_session(3, CLOSED)


@pytest.mark.parametrize("words", [{"vm_id": 301}, {"pool": "c"}, {"priority": 3}])
def test_a_welcome_that_cannot_be_ends_the_link(qemu, path, server, words):
    with Machine(qemu, DEVICE, socket_path=path) as machine:
        link = server.welcomed(**{"pool": "D", **words})
        link.expect_end()
        assert machine.read(STATUS) == STATUS_READY
        assert machine.read(POOL_ID) == ord("C")


def test_a_refusal_is_told_the_administrator_once_and_steers_no_terminal(qemu, path, server):
    with Machine(qemu, DEVICE, socket_path=path) as machine:
        for _ in range(2):
            link = server.accept().take_hello()
            link.refuse(errno.EPERM, "not \x1b[31m\nhere")
            link.expect_end()
        server.welcomed(pool="C")
        machine.wait(STATUS, STATUS_READY | STATUS_HOST)
        said = "vgpu-stub: VM 300: the mediator refused the link: not ?[31m?here"
        assert machine.process.output().count(said) == 1


def test_a_mediator_that_never_reads_holds_up_nothing_and_loses_the_link(machine, server):
    for _ in range(5000):
        machine.write(SESSION_OPEN, 0)
        try:
            machine.link.state(0, CLOSED)
        except OSError:
            break
        while machine.session(0) == OPENING:
            pass
        if machine.session(0) == REFUSED_HOSTDOWN:
            break
    else:
        pytest.fail("the device goes on talking to one who does not listen")
    machine.wait_session(0, REFUSED_HOSTDOWN)
    server.welcomed(pool="C")
    machine.wait(STATUS, STATUS_READY | STATUS_HOST)


# --- properties ----------------------------------------------------------------------


@pytest.mark.parametrize("options, error", [
    (["-device", "vgpu-stub,vm_id=1,sessions=17"], "sessions is 17: use a whole number"),
    (["-device", "vgpu-stub,vm_id=1,irqfd=on"], "irqfd=on is given without memdev"),
    (["-object", "memory-backend-memfd,id=m,size=4M,share=on", "-device",
      "vgpu-stub,vm_id=1,memdev=m"], "memdev is given without chardev"),
    (["-chardev", "socket,id=c,path=/nowhere/x.sock,reconnect=1", "-device",
      "vgpu-stub,vm_id=1,chardev=c"], "chardev is given without memdev"),
    (["-object", "memory-backend-ram,id=m,size=4M", "-chardev",
      "socket,id=c,path=/nowhere/x.sock,reconnect=1", "-device",
      "vgpu-stub,vm_id=1,memdev=m,chardev=c"], "not shared memory of fixed size"),
    (["-object", "memory-backend-memfd,id=m,size=3M,share=on", "-chardev",
      "socket,id=c,path=/nowhere/x.sock,reconnect=1", "-device",
      "vgpu-stub,vm_id=1,memdev=m,chardev=c"], "use a power of two"),
    (["-object", "memory-backend-memfd,id=m,size=2M,share=on", "-chardev",
      "socket,id=c,path=/nowhere/x.sock,reconnect=1", "-device",
      "vgpu-stub,vm_id=1,memdev=m,chardev=c,sessions=16"], "too few for 16 sessions"),
    (["-object", "memory-backend-memfd,id=m,size=4M,share=on", "-chardev", "null,id=c", "-device",
      "vgpu-stub,vm_id=1,memdev=m,chardev=c"], "cannot pass descriptors"),
    (["-object", "memory-backend-memfd,id=m,size=4M,share=on",
      "-chardev", "socket,id=c,path=/nowhere/x.sock,reconnect=1",
      "-chardev", "socket,id=d,path=/nowhere/y.sock,reconnect=1",
      "-device", "vgpu-stub,vm_id=1,memdev=m,chardev=c",
      "-device", "vgpu-stub,vm_id=2,memdev=m,chardev=d"],
     "memdev 'm' is in use: give each device a memory backend of its own"),
    (["-object", "memory-backend-memfd,id=m,size=4M,share=on,hugetlb=on,hugetlbsize=2M,reserve=off",
      "-chardev", "socket,id=c,path=/nowhere/x.sock,reconnect=1", "-device",
      "vgpu-stub,vm_id=1,memdev=m,chardev=c"], "memdev 'm' has huge pages"),
    (["-object", "memory-backend-memfd,id=m,size=4M,share=on", "-chardev",
      "socket,id=c,path=/nowhere/x.sock,reconnect=1", "-device",
      "vgpu-stub,vm_id=1,memdev=m,chardev=c,irqfd=on"], "irqfd=on needs -accel kvm"),
], ids=["sessions", "irqfd-alone", "no-chardev", "no-memdev", "private", "size", "small", "null",
        "twice", "huge", "irqfd"])
def test_a_window_that_cannot_be_is_refused_with_its_remedy(qemu, options, error):
    done = qemu.run(*options)
    assert done.returncode == 1
    assert error in done.stdout


# --- a real guest --------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(qemu):
    """A guest on a machine that can unplug, the mediator's end of its link, its registers."""
    directory = run_directory("window")
    path = directory / "vm300.sock"
    guest = Guest("window", directory, pool="B", priority="high", vm_id=300, qemu=qemu.program,
                  preload=qemu.preload, socket_path=path, sessions=16, window_mib=16)
    guest.options += ["-M", "pc"]
    guest.device += ",id=gpu"
    try:
        guest.start()
        with LinkServer(path) as server:
            guest.server = server
            guest.link = server.welcomed(pool="B", priority=2)
            guest.wait_ready()
            guest.registers = Registers(guest, guest.check("regs list").strip())
            yield guest
    finally:
        guest.stop()
        remove_directory(directory)


def interrupts_of(guest, name):
    """How often this interrupt of the module came."""
    line = guest.check(f"grep vgpu0-{name} /proc/interrupts")
    return int(line.split()[1])


def wait_interrupt_of(guest, name, before):
    guest.check(f"while [ $(awk '/vgpu0-{name}/ {{print $2}}' /proc/interrupts) -le {before} ]; "
                "do usleep 10000; done")


def test_a_real_guest_and_the_host_see_the_same_window(real):
    assert real.registers.peek(0, 4) == b"VWIN"
    real.registers.poke(0x800000, b"from the guest")
    assert real.link.window[0x800000:0x80000E] == b"from the guest"
    real.link.window[0xFFFFF0:] = b"last of the host"
    assert real.registers.peek(0xFFFFF0, 16) == b"last of the host"


def test_a_real_guest_rings_each_of_16_slots_by_itself(real):
    for slot in range(16):
        real.registers.write(SLOT_DOORBELL + 4 * slot, 1)
        assert [take for take in range(16) if real.link.rung(take, 0)] == [slot]


def test_a_real_guest_gets_each_vector_as_an_interrupt_of_its_own(real):
    real.check("modprobe vgpu_guest")
    try:
        completions, changes = (interrupts_of(real, name) for name in ["completion", "config"])
        real.link.signal()
        wait_interrupt_of(real, "completion", completions)
        assert interrupts_of(real, "config") == changes
        real.link.config("A", 0)
        wait_interrupt_of(real, "config", changes)
        assert interrupts_of(real, "completion") == completions + 1
    finally:
        real.check("rmmod vgpu_guest")


def test_unplugging_ends_the_link_and_the_window_can_be_plugged_again(real):
    """Last: the guest has another device afterwards."""
    assert real.monitor("device_del", id="gpu") == {"return": {}}
    assert os.read(real.link.lifeline, 1) == b""
    real.link.expect_end()
    real.check("while [ -n \"$(regs list)\" ]; do usleep 20000; done")
    real.link.window[:4] = b"gone"
    added = real.monitor("device_add", driver="vgpu-stub", id="gpu2", vm_id=300, memdev="vgpuwin",
                         chardev="vgpu")
    assert added == {"return": {}}
    again = real.server.welcomed()
    assert again.hello.slot_count == 8
    assert again.window[:4] == b"VWIN"
    real.check("while [ -z \"$(regs list)\" ]; do usleep 20000; done")
