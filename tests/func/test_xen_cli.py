# SPDX-License-Identifier: Apache-2.0
"""vgpu-xen's command line: what it prints, what it refuses, its exit codes."""

import socket
import subprocess

import pytest
from control_support import ADMIN
from support import BUILD, WAIT_S

SUCCESS, FAILURE, USAGE = 0, 1, 2
PROGRAM = BUILD / "src/xen/vgpu-xen"


def run(*arguments):
    return subprocess.run([PROGRAM, *map(str, arguments)], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, timeout=WAIT_S, check=False)


def write_config(place, database=True):
    config = place / "mediator.conf"
    config.write_text(f"[mediator]\nshare = {place}/share\nstate_dir = {place}/state\n" +
                      f"database = {place}/vgpu.db\n" * database)
    if database:
        subprocess.run([ADMIN, "init", "--config", config, "--toolstack", "none"], check=True,
                       stdout=subprocess.DEVNULL)
    return config


def test_version_names_program_and_version():
    done = run("--version")
    assert done.returncode == SUCCESS and done.stdout.startswith("vgpu-xen 0.")


def test_help_names_every_option_and_the_exit_codes():
    done = run("--help")
    assert done.returncode == SUCCESS and not done.stderr
    for word in ("--config", "--log", "--log-format", "--log-level", "--xenbus", "--version",
                 "2 wrong options"):
        assert word in done.stdout


@pytest.mark.parametrize("arguments, text", [
    (["--nonsense"], "unrecognized option"),
    (["word"], "'word' is no option"),
    (["--log-level", "loud"], "--log-level loud: expected error, warning, info or debug"),
    (["--log-format", "xml"], "--log-format xml: expected text or json"),
    (["--config"], "requires an argument"),
])
def test_wrong_usage_exits_with_2_and_says_why(arguments, text):
    done = run(*arguments)
    assert done.returncode == USAGE
    assert text in done.stderr and not done.stdout


def test_a_missing_configuration_is_an_error_that_names_it(place):
    done = run("--config", place / "missing.conf")
    assert done.returncode == FAILURE and f"{place}/missing.conf" in done.stderr


def test_a_configuration_without_a_registry_is_an_error_that_says_what_for(place):
    done = run("--config", write_config(place, database=False))
    assert done.returncode == FAILURE
    assert "names no database" in done.stderr and "vgpu-admin(8)" in done.stderr


def test_a_host_without_xen_is_an_error_that_says_which_modules(place):
    done = run("--config", write_config(place), "--xenbus", place / "xenbus")
    assert done.returncode == FAILURE
    assert f"{place}/xenbus" in done.stderr and "modprobe xenfs" in done.stderr


def test_a_socket_that_nobody_listens_to_is_an_error(place):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(place / "xenstored"))
    done = run("--config", write_config(place), "--xenbus", place / "xenstored")
    assert done.returncode == FAILURE and "Connection refused" in done.stderr


def test_a_log_that_cannot_be_opened_is_an_error(place):
    done = run("--log", place / "nowhere/log")
    assert done.returncode == FAILURE and f"{place}/nowhere/log" in done.stderr
