# SPDX-License-Identifier: Apache-2.0
"""The configuration file: every mistake is told with file, line and remedy."""

import subprocess

import pytest

import support


def check(path, *options):
    done = subprocess.run([support.MEDIATOR, "--config", path, "--check-config", *options],
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


@pytest.mark.parametrize("text, counts", [
    ("", "2 pools, 0 VMs"),
    ("[mediator]\n# nothing is set\n", "2 pools, 0 VMs"),
    ("[vm 7]\npool=A\n", "2 pools, 1 VMs"),
    ("[vm 7]\npool = A ; with a comment\n\n; another\n# and one more\n[vm 8]\npriority: HIGH\n",
     "2 pools, 2 VMs"),
    ("[pool C]\ndevice=cpu:3\n[vm 7]\npool=C\n", "1 pools, 1 VMs"),
    ("[vm 4294967295]\nmode=0770\nowner=1:2\n", "2 pools, 1 VMs"),
    ("[mediator]\n#" + 197 * "x" + "\n[vm 7]\npool=A\n", "2 pools, 1 VMs"),
])
def test_what_is_right_is_counted(place, text, counts):
    (place / "c").write_text(text)
    assert check(place / "c") == (0, f"configuration is right: {counts}\n")


@pytest.mark.parametrize("text, line, error", [
    ("pool=A\n", 1, "'pool' stands before the first section: put [mediator], [pool X] or [vm N] "
                    "above it"),
    ("[vm 7\npool=A\n", 1, "expected [section] or key = value"),
    ("[vm 7]\nnonsense\n", 2, "expected [section] or key = value"),
    ("[vm 7]\n", 1, "section [vm 7] has no key and would not count: give it one"),
    ("[vm 7]\n[vm 8]\npool=A\n", 1, "section [vm 7] has no key and would not count: give it one"),
    ("[pool C]\n\n[mediator]\n", 1, "section [pool C] has no key and would not count: give it one"),
    ("[vm 7]\npool=A\n[vm 8]\n# pool=A\n", 3,
     "section [vm 8] has no key and would not count: give it one"),
    ("[wm 7]\npool=A\n", 2, "unknown section [wm 7]: expected [mediator], [pool X] or [vm N]"),
    ("[vm 0]\npool=A\n", 2, "section [vm 0]: expected a number from 1 to 4294967295"),
    ("[vm 4294967296]\npool=A\n", 2,
     "section [vm 4294967296]: expected a number from 1 to 4294967295"),
    ("[pool AB]\ndevice=cpu\n", 2, "section [pool AB]: expected one letter, A to Z"),
    ("[mediator]\nbogus=1\n", 2, "unknown key 'bogus' in [mediator]: see vgpu-mediator.conf(5)"),
    ("[vm 7]\nbogus=1\n", 2,
     "unknown key 'bogus' in [vm 7]: it may have pool, priority, name, owner, mode, weight,"
     " request_rate, request_burst, device_share_percent, queue_depth_max, inflight_ops_max,"
     " inflight_kib_max"),
    ("[pool A]\npool=A\n", 2, "unknown key 'pool' in [pool A]: it may have name, device, "
     "placement, session_devices, policy, aging_ms, demand"),
    ("[vm 7]\npool=A\npool=B\n", 3, "'pool' stands twice in [vm 7], or its value has several lines"),
    ("[vm 7]\npool=A\n  B\n", 3, "'pool' stands twice in [vm 7], or its value has several lines"),
    ("[mediator]\n#" + 198 * "x" + "\n", 2, "line is longer than 198 bytes"),
    ("[mediator]\nshare=here\n", 2, "share = here: expected an absolute path"),
    ("[mediator]\npoll_min_ms=0\n", 2, "poll_min_ms = 0: expected a whole number from 1 to 1000"),
    ("[mediator]\npolicy=fair\n", 2, "policy = fair: expected strict or wfq or fifo or round-robin"),
    ("[mediator]\nmax_priority=3\n", 2,
     "max_priority = 3: expected 0, 1, 2 or low, medium, high"),
    ("[pool A]\ndevice=cuda\n", 2,
     "device = cuda: expected cpu, cpu:0 to cpu:63, cuda:0 to cuda:63, GPU-<uuid>, MIG-<uuid> "
     "or a PCI address such as 0000:65:00.0"),
    ("[vm 7]\npool=a\n", 2, "pool = a: expected one letter, A to Z"),
    ("[vm 7]\nmode=0777\n", 2, "mode = 0777: expected a mode that does not let everybody write "
                               "(least privilege: 0700)"),
    ("[vm 7]\nmode=0500\n", 2, "mode = 0500: expected an octal mode from 0700 to 0777"),
    ("[vm 7]\nowner=no such user\n", 2, "owner = no such user: expected user or user:group, by "
                                        "name or number, that exists on this host"),
])
def test_what_is_wrong_is_told_with_its_line(place, text, line, error):
    (place / "c").write_text(text)
    assert check(place / "c") == (1, f"vgpu-mediator: {place}/c, line {line}: {error}\n")


@pytest.mark.parametrize("text, error", [
    ("[mediator]\npoll_min_ms=50\npoll_max_ms=10\n",
     "poll_min_ms = 50 is more than poll_max_ms = 10"),
    ("\n[vm 7]\npriority=low\npool=C\n",
     "[vm 7] (line 2): pool C does not exist: add [pool C] or choose another"),
    ("[mediator]\nshare=/s\nstate_dir=/s/state\n",
     "state_dir = /s/state lies inside share = /s: guests could reach the journal; put it "
     "elsewhere"),
    ("[mediator]\nworker=/nowhere\n", "worker = /nowhere cannot be run: No such file or directory"),
])
def test_what_does_not_fit_together_is_told(place, text, error):
    (place / "c").write_text(text)
    assert check(place / "c") == (1, f"vgpu-mediator: {error}\n")


def test_a_file_that_is_named_and_missing_is_an_error(place):
    assert check(place / "c") == (1, f"vgpu-mediator: cannot open configuration file '{place}/c': "
                                     "No such file or directory\n")


def test_options_win_over_the_file_and_are_checked_alike(place):
    (place / "c").write_text("[mediator]\nlog_level=debug\n")
    assert check(place / "c", "--log-level", "info")[0] == 0
    assert check(place / "c", "--log-level", "loud") == (
        1, "vgpu-mediator: log_level = loud: expected error or warning or info or debug\n")
