# SPDX-License-Identifier: Apache-2.0
"""vgpu-mediator's command line: what it prints, what it refuses, its exit codes."""

import subprocess

import pytest
from support import MEDIATOR, run

SUCCESS, FAILURE, USAGE = 0, 1, 2


def check(place, text, *arguments):
    config = place / "mediator.conf"
    config.write_text(text)
    return run("--check-config", "--config", config, *arguments)


def test_version_names_program_and_version():
    done = run("--version")
    assert done.returncode == SUCCESS and done.stdout.startswith("vgpu-mediator 0.")


def test_help_names_every_option():
    done = run("--help")
    assert done.returncode == SUCCESS and not done.stderr
    for option in ("--config", "--check-config", "--check-gpu", "--share", "--state-dir",
                   "--pools", "--log", "--log-format", "--log-level", "--cleanup", "--test-mode", "--hold-until",
                   "--prefer-vm", "--version"):
        assert option in done.stdout


@pytest.mark.parametrize("arguments, text", [
    (["--nonsense"], "unrecognized option"),
    (["word"], "unexpected argument 'word'"),
    (["--check-gpu=first"], "--check-gpu: 'first' names no GPU: expected an index as 0"),
    (["--check-gpu", "GPU-1"], "'GPU-1' names no GPU"),
    (["--check-gpu", "1", "2"], "unexpected argument '2'"),
    (["--hold-until", "x"], "--hold-until x: expected a whole number from 1"),
    (["--hold-until", "0"], "--hold-until 0: expected"),
    (["--hold-until", "-1"], "expected a whole number"),
    (["--hold-until", "99999999999"], "expected a whole number"),
    (["--hold-until", "2", "--prefer-vm", "0"], "--prefer-vm 0: expected"),
    (["--prefer-vm", "7"], "--prefer-vm needs --hold-until"),
    (["--config"], "requires an argument"),
    (["--share=/s"] * 9, "too many options"),
])
def test_wrong_usage_exits_with_2_and_says_why(arguments, text):
    done = run(*arguments)
    assert done.returncode == USAGE
    assert text in done.stderr and not done.stdout


def test_right_configuration_is_confirmed(place):
    done = check(place, "[pool A]\ndevice = cpu\n[vm 1]\npool = A\n[vm 2]\npool = A\n")
    assert (done.returncode, done.stderr) == (SUCCESS, "")
    assert "1 pools, 2 VMs" in done.stdout


@pytest.mark.parametrize("text, error", [
    ("[mediator]\nshare = relative\n", "line 2: share = relative: expected an absolute path"),
    ("[mediator]\nnonsense = 1\n", "line 2: unknown key 'nonsense'"),
    ("[nonsense]\nkey = 1\n", "line 2: unknown section [nonsense]"),
    ("[vm 1]\npool = C\n", "[vm 1] (line 1): pool C does not exist"),
    ("just words\n", "line 1: expected [section] or key = value"),
    ("[vm 1]\n", "line 1: section [vm 1] has no key"),
])
def test_wrong_configuration_exits_with_1_and_names_file_and_line(place, text, error):
    done = check(place, text)
    assert done.returncode == FAILURE and not done.stdout
    assert error in done.stderr
    assert "(line " in error or f"{place}/mediator.conf" in done.stderr


def test_missing_configuration_file_is_an_error_when_it_was_named(place):
    done = run("--check-config", "--config", place / "missing.conf")
    assert done.returncode == FAILURE
    assert f"cannot open configuration file '{place}/missing.conf'" in done.stderr


def test_directory_in_place_of_the_configuration_file_is_an_error(place):
    done = run("--check-config", "--config", place)
    assert done.returncode == FAILURE and str(place) in done.stderr


@pytest.mark.parametrize("arguments, error", [
    (["--pools", "mixed"], "pools = mixed: expected shared or independent"),
    (["--log-format", "xml"], "log_format = xml: expected text or json"),
    (["--log-level", "loud"], "log_level = loud: expected"),
])
def test_wrong_value_of_an_option_is_an_error_that_says_what_was_expected(place, arguments, error):
    done = check(place, "", *arguments)
    assert done.returncode == FAILURE and error in done.stderr


def test_options_win_over_the_configuration_file(mediator, place):
    m = mediator(start=False)
    m.settings["share"] = "/nonexistent"
    m.settings["log_format"] = "text"
    m.write_config()
    m.settings["log_format"] = "json"
    m.start("--share", m.share, "--log-format", "json", "--pools", "independent")
    ready = m.wait_event("ready")
    assert ready["share"] == str(m.share) and "(independent, strict)" in ready["message"]
    assert m.vm(1).ask("PING") == "1:PONG"


def test_relative_paths_on_the_command_line_mean_the_current_directory(place):
    done = subprocess.run(
        [MEDIATOR, "--check-config", "--config", "/dev/null", "--share", "s", "--state-dir",
         "s/t"], cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == FAILURE
    assert f"state_dir = {place}/s/t lies inside share = {place}/s" in done.stderr


def test_log_goes_to_standard_error_unless_a_file_is_named(mediator):
    m = mediator(start=False, log=None)
    m.log = m.stderr  # where the fixture collects it
    m.start()
    assert m.vm(1).ask("PING") == "1:PONG"


@pytest.mark.parametrize("level, shown", [("error", False), ("warning", False), ("info", True),
                                          ("debug", True)])
def test_log_level_decides_whether_events_are_logged(mediator, level, shown):
    m = mediator(start=False)
    m.launch("--log-level", level)
    m.vm(1).wait_directory()
    assert m.vm(1).ask("PING") == "1:PONG"
    m.stop()
    assert bool(m.events("queue")) == shown
