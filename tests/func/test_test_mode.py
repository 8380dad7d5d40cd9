# SPDX-License-Identifier: Apache-2.0
"""Test mode: requests are held until several VMs wait, then a person at the
terminal, or the options, decide who goes first."""

import os
import pty
import subprocess

import pytest
from support import both_channels, wait_until

pytestmark = pytest.mark.threads

LOW, MEDIUM, HIGH = 0, 1, 2


class Terminal:
    """A pseudo-terminal: our end of it, and what was shown there."""

    def __init__(self):
        self.ours, self.theirs = pty.openpty()
        os.set_blocking(self.ours, False)
        self.shown = ""

    def read(self):
        try:
            while data := os.read(self.ours, 4096):
                self.shown += data.decode().replace("\r\n", "\n")
        except OSError:
            pass
        return self.shown

    def wait(self, text):
        """Until it shows `text`; returns what came with it, which is then forgotten."""
        wait_until(lambda: text in self.read(), lambda: f"'{text}' on the terminal: {self.shown!r}")
        shown, self.shown = self.shown, ""
        return shown

    def type(self, text):
        os.write(self.ours, text.encode())

    def close_ours(self):
        if self.ours >= 0:
            os.close(self.ours)
        self.ours = -1

    def close_theirs(self):
        if self.theirs >= 0:
            os.close(self.theirs)
        self.theirs = -1


@pytest.fixture
def terminal():
    made = Terminal()
    yield made
    made.close_ours()
    made.close_theirs()


@pytest.fixture
def held(mediator, terminal):
    """held(vms, ...): a mediator in test mode at the terminal."""
    def make(vms, **options):
        m = mediator(vms=vms, start=False, **options)
        m.start("--test-mode", stdin=terminal.theirs, stdout=terminal.theirs)
        terminal.close_theirs()
        return m
    return make


EQUAL = {1: ("A", MEDIUM), 2: ("A", MEDIUM), 3: ("A", MEDIUM)}


@both_channels
def test_one_waiting_vm_is_held_and_nothing_is_asked(held, terminal):
    m = held(EQUAL)
    m.queue(1)
    m.wait_looks()
    assert not m.order() and not terminal.read()


@both_channels
def test_two_waiting_vms_are_shown_and_asked_about(held, terminal, channel):
    m = held({1: ("A", LOW), 2: ("B", HIGH)})
    m.queue(1, 2)
    shown = terminal.wait("[YES/NO] ")
    assert "2 VMs wait:" in shown
    first, second = {"file": ("PING 1", "PING 2"),
                     "window": ["window slot 0, 1 operation"] * 2}[channel]
    assert f"vm=1  pool A  priority low  {first}\n" in shown
    assert f"vm=2  pool B  priority high  {second}\n" in shown
    assert not m.order()


@both_channels
def test_yes_and_an_id_lets_that_vm_win_among_equals(held, terminal):
    m = held(EQUAL)
    m.queue(1, 2)
    terminal.wait("[YES/NO] ")
    m.queue(3)
    terminal.type("YES\n")
    terminal.wait("Which VM wins ties?")
    terminal.type("3\n")
    m.wait_event("response", count=3)
    assert m.order() == [3, 1, 2]


@both_channels
def test_yes_and_an_id_does_not_beat_a_higher_priority(held, terminal):
    m = held({1: ("A", HIGH), 2: ("A", MEDIUM), 3: ("A", MEDIUM)})
    m.queue(2, 3)
    terminal.wait("[YES/NO] ")
    m.queue(1)
    terminal.type("yes\n")
    terminal.wait("Which VM wins ties?")
    terminal.type("3\n")
    m.wait_event("response", count=3)
    assert m.order() == [1, 3, 2]


@both_channels
def test_yes_and_enter_is_first_come_first_served(held, terminal):
    m = held(EQUAL)
    m.queue(2, 1)
    terminal.wait("[YES/NO] ")
    terminal.type("y\n")
    terminal.wait("Which VM wins ties?")
    terminal.type("\n")
    m.wait_event("response", count=2)
    assert m.order() == [2, 1]


@both_channels
def test_no_is_first_come_first_served_and_nothing_more_is_asked(held, terminal):
    m = held(EQUAL)
    m.queue(3, 1)
    terminal.wait("[YES/NO] ")
    terminal.type("NO\n")
    m.wait_event("response", count=2)
    assert m.order() == [3, 1]
    assert "Which" not in terminal.read()


@both_channels
def test_nonsense_is_asked_again(held, terminal):
    m = held(EQUAL)
    m.queue(1, 2)
    terminal.wait("[YES/NO] ")
    for nonsense in ("perhaps\n", "\n", "x" * 200 + "\n"):
        terminal.type(nonsense)
        assert "is neither YES nor NO" in terminal.wait("[YES/NO] ")
    terminal.type("YES\n")
    terminal.wait("Which VM wins ties?")
    for nonsense in ("x\n", "0\n", "3\n", "-1\n", "99999999999\n"):  # VM 3 does not wait
        terminal.type(nonsense)
        assert "is not the id of a VM that waits" in terminal.wait("Which VM wins ties?")
    assert not m.order()
    terminal.type("2\n")
    m.wait_event("response", count=2)
    assert m.order() == [2, 1]


@both_channels
def test_answer_may_come_in_pieces_and_with_carriage_return(held, terminal):
    m = held(EQUAL)
    m.queue(1, 2)
    terminal.wait("[YES/NO] ")
    for piece in ("N", "O\r"):
        terminal.type(piece)
    m.wait_event("response", count=2)
    assert m.order() == [1, 2]


@both_channels
def test_what_is_typed_before_a_question_is_no_answer(held, terminal):
    m = held(EQUAL)
    terminal.type("NO\n")
    terminal.wait("NO")  # echoed
    m.queue(1, 2)
    terminal.wait("[YES/NO] ")
    m.wait_looks()
    assert not m.order()
    terminal.type("NO\n")
    m.wait_event("response", count=2)


@both_channels
def test_requests_are_held_again_when_all_were_answered(held, terminal):
    m = held(EQUAL)
    for _ in range(2):
        after = m.mark()
        m.queue(1)
        m.wait_looks()
        assert not m.order(after=after)
        m.queue(2)
        terminal.wait("[YES/NO] ")
        terminal.type("NO\n")
        m.wait_event("response", count=2, after=after)
        m.wait_message("holding until 2 VMs wait", after=after)


@both_channels
def test_terminal_that_closes_lets_requests_go_on(held, terminal):
    m = held(EQUAL)
    m.queue(2, 1)
    terminal.wait("[YES/NO] ")
    terminal.close_ours()
    m.wait_event("response", count=2)
    assert m.order() == [2, 1]
    assert m.messages("the terminal is gone")
    assert m.vm(3).ask("PING") == "1:PONG"  # and nothing is held any more


@both_channels
def test_stop_while_a_question_is_open_keeps_the_requests(held, terminal, channel):
    m = held(EQUAL)
    m.queue(1, 2)
    terminal.wait("[YES/NO] ")
    m.stop()
    assert not m.order()
    m.start()
    m.wait_event("response", count=2)
    # Windows are taken over in no order.
    assert (m.order() if channel == "file" else sorted(m.order())) == [1, 2]


@pytest.mark.parametrize("stdin", ["/dev/null", "file", "pipe"])
@both_channels
def test_without_a_terminal_it_is_refused_with_the_remedy(mediator, place, stdin):
    m = mediator(start=False)
    m.allow_error("--test-mode")
    (place / "file").write_text("NO\n")
    if stdin == "pipe":
        m.launch("--test-mode", stdin=subprocess.PIPE)
    else:
        with open(place / stdin) as source:
            m.launch("--test-mode", stdin=source)
    process = m.process
    assert m.wait() == 1
    if process.stdin:
        process.stdin.close()
    assert "--hold-until N" in m.stderr.read_text()


# --- without a terminal ---------------------------------------------------------------------


@both_channels
def test_hold_until_releases_by_itself_first_come_first_served(mediator):
    m = mediator(vms=EQUAL, arguments=["--hold-until", "3"])
    m.queue(3, 1)
    m.wait_looks()
    assert not m.order()
    m.queue(2)
    m.wait_event("response", count=3)
    assert m.order() == [3, 1, 2]


@both_channels
def test_preferred_vm_wins_among_equals_every_time(mediator):
    m = mediator(vms=EQUAL, arguments=["--hold-until", "3", "--prefer-vm", "2"])
    for _ in range(2):
        after = m.mark()
        m.queue(3, 1, 2)
        m.wait_event("response", count=3, after=after)
        assert m.order(after=after) == [2, 3, 1]


@both_channels
def test_preferred_vm_does_not_beat_a_higher_priority(mediator):
    m = mediator(vms={1: ("A", HIGH), 2: ("A", LOW), 3: ("A", LOW)},
                 arguments=["--hold-until", "3", "--prefer-vm", "3"])
    m.queue(2, 3, 1)
    m.wait_event("response", count=3)
    assert m.order() == [1, 3, 2]


@pytest.mark.parametrize("preferred, order", [(1, [1, 3, 2, 4]), (3, [3, 1, 4, 2]),
                                              (4, [4, 1, 3, 2])])
@both_channels
def test_with_independent_pools_the_preferred_vms_pool_goes_first(mediator, preferred, order):
    m = mediator(vms={1: ("A", MEDIUM), 2: ("A", MEDIUM), 3: ("B", MEDIUM), 4: ("B", MEDIUM)},
                 pools_mode="independent",
                 arguments=["--hold-until", "4", "--prefer-vm", str(preferred)])
    m.queue(1, 2, 3, 4)
    m.wait_event("response", count=4)
    assert m.order() == order


@both_channels
def test_preferred_vm_that_does_not_wait_changes_nothing(mediator):
    m = mediator(vms=EQUAL, arguments=["--hold-until", "2", "--prefer-vm", "3"])
    m.queue(2, 1)
    m.wait_event("response", count=2)
    assert m.order() == [2, 1]
