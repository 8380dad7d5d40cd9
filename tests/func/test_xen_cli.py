# SPDX-License-Identifier: Apache-2.0
"""The command lines of vgpu-xen and vgpu-relay: what they print and refuse, their exit codes."""

import socket
import subprocess

import pytest
from control_support import ADMIN
from support import BUILD, WAIT_S

SUCCESS, FAILURE, USAGE = 0, 1, 2
PROGRAMS = {"vgpu-xen": BUILD / "src/xen/vgpu-xen", "vgpu-relay": BUILD / "src/relay/vgpu-relay"}


@pytest.fixture(params=PROGRAMS)
def name(request):
    return request.param


@pytest.fixture
def run(name):
    return lambda *arguments: subprocess.run(
        [PROGRAMS[name], *map(str, arguments)], stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=WAIT_S, check=False)


def write_config(place, database=True):
    config = place / "mediator.conf"
    config.write_text(f"[mediator]\nshare = {place}/share\nstate_dir = {place}/state\n" +
                      f"database = {place}/vgpu.db\n" * database)
    if database:
        subprocess.run([ADMIN, "init", "--config", config, "--toolstack", "none"], check=True,
                       stdout=subprocess.DEVNULL)
    return config


def test_version_names_program_and_version(run, name):
    done = run("--version")
    assert done.returncode == SUCCESS and done.stdout.startswith(f"{name} 0.")


def test_help_names_every_option_and_the_exit_codes(run):
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
def test_wrong_usage_exits_with_2_and_says_why(run, arguments, text):
    done = run(*arguments)
    assert done.returncode == USAGE
    assert text in done.stderr and not done.stdout


def test_a_missing_configuration_is_an_error_that_names_it(run, place):
    done = run("--config", place / "missing.conf")
    assert done.returncode == FAILURE and f"{place}/missing.conf" in done.stderr


def test_a_configuration_without_a_registry_is_an_error_that_says_what_for(run, place):
    done = run("--config", write_config(place, database=False))
    assert done.returncode == FAILURE
    assert "names no database" in done.stderr and "vgpu-admin" in done.stderr


def test_a_host_without_xen_is_an_error_that_asks_about_it(run, place):
    done = run("--config", write_config(place), "--xenbus", place / "xenbus")
    assert done.returncode == FAILURE
    assert f"{place}/xenbus: is this a" in done.stderr


def test_a_socket_that_nobody_listens_to_is_an_error(run, place):
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(place / "xenstored"))
    done = run("--config", write_config(place), "--xenbus", place / "xenstored")
    assert done.returncode == FAILURE and "Connection refused" in done.stderr


def test_a_log_that_cannot_be_opened_is_an_error(run, place):
    done = run("--log", place / "nowhere/log")
    assert done.returncode == FAILURE and f"{place}/nowhere/log" in done.stderr
