# SPDX-License-Identifier: Apache-2.0
"""vgpu-admin's command line: help, options, errors in words and JSON, tables, completion."""

import json
import os
import re
import subprocess

import pytest

from admin_support import (ADMIN, DATABASE, DECLINED, EXISTS, FAILED, NOT_FOUND, OK, REPOSITORY,
                           USAGE, Host)

COMPLETION = REPOSITORY / "packaging/vgpu-admin.bash"


def run(*words, **options):
    return subprocess.run([ADMIN, *map(str, words)], text=True, stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=180, check=False, **options)


def listed_commands():
    """{name: usage}, from the help."""
    return {match[1].split()[0]: match[1] for line in run("--help").stdout.splitlines()
            if (match := re.match(r"  ([a-z-]+(?: \[?[A-Z]+\]?)*)  +\S", line))}


def table_commands():
    """{name: arguments}, from the table of commands; those that have a group."""
    text = (REPOSITORY / "src/admin/commands.c").read_text()
    rows = re.findall(r'\{"([a-z-]+)",\s*(NULL|"[^"]*"),\s*"[^"]+",\s*"[^"]+",\s*cmd_\w+\}', text)
    return {name: "" if words == "NULL" else words.strip('"') for name, words in rows}


COMMANDS = table_commands()
each_command = pytest.mark.parametrize("command", COMMANDS)


@pytest.fixture
def host(place):
    host = Host(place)
    host.good("init")
    return host


# --- help ---------------------------------------------------------------------------------


def test_the_help_lists_the_commands_of_the_table():
    assert len(COMMANDS) > 30
    assert {name: usage.removeprefix(name).strip() for name, usage in listed_commands().items()} \
        == COMMANDS


@each_command
def test_each_command_has_help(command):
    done = run(command, "--help")
    assert (done.returncode, done.stderr) == (OK, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"Usage: vgpu-admin {command} [OPTION...] {COMMANDS[command]}".rstrip()
    assert re.fullmatch(r"[A-Z].*\.", lines[1])
    for option in ["--json", "--database", "--config", "--toolstack", "--yes", "--quiet", "--help"]:
        assert f"  {option}" in done.stdout or f", {option}" in done.stdout, option
    assert max(map(len, lines)) <= 100


@each_command
def test_each_command_has_a_short_summary(command):
    done = run(command, "--usage")
    assert done.returncode == OK
    assert done.stdout.startswith(f"Usage: vgpu-admin {command} ")


@each_command
def test_each_command_refuses_an_option_that_it_does_not_have(command):
    words = ["x"] * len([word for word in COMMANDS[command].split() if word[0] != "["])
    done = run(command, *words, "--frobnicate")
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert done.stderr == ("vgpu-admin: option '--frobnicate' is unknown, not unique, or takes no "
                           f"value (see vgpu-admin {command} --help)\n")


@each_command
def test_each_command_counts_its_words(command):
    words = COMMANDS[command].split()
    needed = [word for word in words if word[0] != "["]
    done = run(command, *["x"] * (len(words) + 1))
    assert done.returncode == USAGE and "is one word too many" in done.stderr
    if needed:
        done = run(command, *["x"] * (len(needed) - 1))
        assert done.returncode == USAGE
        assert f"{command} needs {COMMANDS[command]}: {len(needed) - 1} word" in done.stderr


@each_command
def test_each_command_tells_usage_errors_in_json(command):
    done = run(command, *["x"] * 5, "--json")
    assert (done.returncode, done.stdout) == (USAGE, "")
    error = json.loads(done.stderr)["error"]
    assert list(error) == ["code", "exit", "message"]
    assert (error["code"], error["exit"]) == ("usage", USAGE)


def test_no_command_and_an_unknown_one_are_usage_errors():
    assert run().stderr == "vgpu-admin: which command? (see vgpu-admin --help)\n"
    done = run("frobnicate")
    assert done.returncode == USAGE and "there is no command 'frobnicate'" in done.stderr
    assert json.loads(run("--json", "frobnicate").stderr)["error"]["code"] == "usage"


def test_the_version_is_told():
    assert re.fullmatch(r"vgpu-admin \d+\.\d+\.\d+\n", run("--version").stdout)


def test_help_needs_neither_configuration_nor_database():
    done = run("list-vms", "--config", "/nowhere/x.conf", "--help")
    assert (done.returncode, done.stderr) == (OK, "")


# --- options of all commands ---------------------------------------------------------------


def test_options_may_stand_before_the_command(host):
    done = run("--config", host.config, "--json", "list-vms")
    assert json.loads(done.stdout) == {"vms": []}


def test_a_database_on_the_command_line_counts_more_than_the_configuration(host, place):
    other = place / "other.db"
    host.good("init", "--database", other)
    host.good("register-vm", "web1")
    assert host.json("list-vms", "--database", other) == {"vms": []}


@pytest.mark.parametrize("option", ["database", "config", "socket", "toolstack", "connect"])
def test_an_empty_value_is_refused(option):
    done = run("list-vms", f"--{option}=")
    assert done.returncode == USAGE and "an option has an empty value" in done.stderr


def test_a_mediator_that_listens_elsewhere_is_named_by_its_socket(host, place):
    done = host.run("register-vm", "web1", "--socket", place / "elsewhere.sock")
    assert f"the mediator is not running ({place}/elsewhere.sock)" in done.stderr


def test_exit_codes_are_those_of_the_manual(host, place):
    page = (REPOSITORY / "man/vgpu-admin.8.scd").read_text()
    section = re.search(r"^# EXIT STATUS$(.*?)^# ", page, re.MULTILINE | re.DOTALL)[1]
    assert [int(code) for code in re.findall(r"^\*(\d)\*$", section, re.MULTILINE)] == list(range(9))
    for code, words in [(OK, ["list-vms"]), (FAILED, ["remove-pool", "A", "--json"]),
                        (USAGE, ["show-vm"]), (NOT_FOUND, ["show-vm", "9"]), (EXISTS, ["init"]),
                        (DATABASE, ["list-vms", "--database", place / "none.db"])]:
        if words[0] == "remove-pool":
            host.good("register-vm", "web1")
        assert host.run(*words).returncode == code, words


def test_a_result_that_cannot_be_written_is_a_failure(host):
    with open("/dev/full", "w", encoding="ascii") as full:
        done = subprocess.run([ADMIN, "list-pools", "--config", host.config], stdout=full,
                              stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == FAILED
    assert "cannot write the result: No space left on device" in done.stderr


# --- who ---------------------------------------------------------------------------------------


def last_actor(host):
    return host.json("events")["events"][-1]["actor"]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo's variable counts for root alone")
def test_the_audit_knows_who_used_sudo(host):
    login = open("/proc/self/loginuid", encoding="ascii").read().strip()
    if login not in ("4294967295", "0"):
        pytest.skip("somebody has logged in here: that counts")
    host.good("register-vm", "one")
    assert last_actor(host) == "root"
    host.environment["SUDO_USER"] = "alice"
    host.good("register-vm", "two")
    assert last_actor(host) == "alice (sudo)"
    host.environment["SUDO_USER"] = "al\x1b[31mice"
    host.good("register-vm", "three")
    assert last_actor(host) == r"al\x1b[31mice (sudo)"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to be somebody else")
def test_who_may_not_read_the_database_is_told_so(host, copy_for_others):
    host.directory.chmod(0o755)
    done = host.run("list-vms", user=65534, group=65534, extra_groups=[],
                    executable=copy_for_others(ADMIN))
    assert (done.returncode, done.stdout) == (DATABASE, "")
    assert str(host.database) in done.stderr
    assert "cannot open the database" in done.stderr


# --- tables -----------------------------------------------------------------------------------------


def columns_of(lines):
    """Where each column of the header begins or, right-aligned, ends."""
    return [(match.start(), match.end()) for match in re.finditer(r"\S+", lines[0])]


def test_tables_are_aligned(host):
    for number, name in [(1, "a"), (22, "a-name-that-is-rather-long"), (333333, "mid")]:
        host.good("register-vm", name, "--vm-id", number)
    host.good("set-limit", "22", "--device-memory", "512")
    lines = host.good("list-vms").splitlines()
    starts = columns_of(lines)
    assert lines[0].split() == ["VM", "NAME", "POOL", "PRIORITY", "STATE", "CHANNELS", "SESSIONS",
                                "MEMORY", "UUID"]
    for line in lines[1:]:
        assert line == line.rstrip()
        for (start, end), header in zip(starts, lines[0].split()):
            if header in ("VM", "SESSIONS", "MEMORY"):
                assert line[end - 1] != " " and line[end:end + 2] == "  ", (header, line)
            else:
                assert line[start] != " " and line[start - 2:start] == "  ", (header, line)
    assert lines[1].startswith("     1  a   ") and lines[3].startswith("333333  mid ")


def test_an_empty_cell_is_a_dash_in_words_and_null_in_json(host):
    host.good("register-vm", "a")
    assert host.good("list-vms").splitlines()[1].split()[-1] == "-"
    assert host.json("list-vms")["vms"][0]["uuid"] is None


# --- completion ------------------------------------------------------------------------------------------


def complete(host, line):
    """What bash offers behind `line`."""
    program = f"""
        source {COMPLETION}
        COMP_LINE='{line}'
        read -ra COMP_WORDS <<<"$COMP_LINE"
        [[ $COMP_LINE == *' ' ]] && COMP_WORDS+=('')
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        COMP_POINT=${{#COMP_LINE}}
        compopt() {{ :; }}
        _vgpu_admin
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = dict(host.environment, PATH=f"{ADMIN.parent}:{os.environ['PATH']}")
    done = subprocess.run(["bash", "-c", program], text=True, capture_output=True, env=environment,
                          stdin=subprocess.DEVNULL, timeout=180, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return sorted(set(done.stdout.split("\n")) - {""})


@pytest.fixture
def named(host):
    host.good("register-vm", "web1", "--vm-id", "7")
    host.good("register-vm", "web two", "--vm-id", "8")
    host.good("set-pool-name", "B", "training")
    return host


def test_completion_offers_all_commands(named):
    assert complete(named, "vgpu-admin ") == sorted(COMMANDS)
    assert complete(named, "vgpu-admin set-p") == ["set-pool", "set-pool-name", "set-priority"]
    assert complete(named, f"vgpu-admin --config {named.config} remove-") == [
        "remove-pool", "remove-vm"]


def test_completion_knows_vms_and_pools_of_the_database(named):
    config = f"--config {named.config}"
    assert complete(named, f"vgpu-admin {config} show-vm ") == ["7", "8", "web1", r"web\ two"]
    assert complete(named, f"vgpu-admin {config} show-vm web1") == ["web1"]
    assert complete(named, f"vgpu-admin set-pool {config} 7 ") == ["A", "B", r"Pool\ A", "training"]
    assert complete(named, f"vgpu-admin {config} show-pool t") == ["training"]
    assert complete(named, f"vgpu-admin {config} set-priority 7 ") == ["high", "low", "medium"]
    assert complete(named, f"vgpu-admin {config} bind-device B ") == ["cpu", "none"]
    assert complete(named, f"vgpu-admin {config} list-vms --pool ") == [
        "A", "B", r"Pool\ A", "training"]


@each_command
def test_completion_offers_each_commands_options(named, command):
    offered = complete(named, f"vgpu-admin {command} --")
    shown = set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", "\n".join(
        line[:29] for line in run(command, "--help").stdout.splitlines())))
    assert shown and set(offered) == shown


def test_completion_without_a_database_offers_nothing_and_does_not_complain(host, place):
    assert complete(host, f"vgpu-admin --database {place}/none.db show-vm ") == []


def test_a_declined_question_has_its_own_exit_code(host):
    host.good("backup", host.directory / "copy.db")
    code, _ = host.ask("no\n", "restore", host.directory / "copy.db")
    assert code == DECLINED
