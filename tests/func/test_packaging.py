# SPDX-License-Identifier: Apache-2.0
"""What an administrator installs: the unit file, and what lies around it.

The unit takes powers away from the mediator.  That what it leaves is enough is
shown without systemd: the mediator runs with the same capabilities, and any
system call outside the unit's filter ends it.
"""

import contextlib
import ctypes
import os
import pathlib
import re
import shutil
import struct
import subprocess
import time

import pytest
from support import BUILD, MEDIATOR, REPOSITORY, is_sanitized
from xen_support import UUIDS, build_shim, registered_host
from xen_worker_support import World

UNIT = BUILD / "packaging/vgpu-mediator.service"
XEN = BUILD / "src/xen/vgpu-xen"
XEN_UNIT = BUILD / "packaging/vgpu-xen.service"
RELAY = BUILD / "src/relay/vgpu-relay"
RELAY_UNIT = BUILD / "packaging/vgpu-relay.service"
PACKAGING = REPOSITORY / "packaging"
PATIENCE_S = 90
OWNER = 123456

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: capabilities, chown")


def needs(program):
    return pytest.mark.skipif(not shutil.which(program), reason=f"there is no {program} here")


def judges_system_calls(test):
    """What a test needs that kills a program for any other system call."""
    for mark in [needs_root, needs("systemd-analyze"),
                 pytest.mark.skipif(os.uname().machine != "x86_64",
                                    reason="knows the numbers of x86-64 only"),
                 pytest.mark.skipif(is_sanitized(), reason="sanitizers make system calls that the "
                                    "program does not")]:
        test = mark(test)
    return test


def unit_values(key, unit=UNIT):
    return re.findall(rf"^{key}=(.*)$", unit.read_text(), re.MULTILINE)


def kept_capabilities(unit=UNIT):
    """As setpriv(1) names them."""
    words = unit_values("CapabilityBoundingSet", unit)[0].split()
    return [word[len("CAP_"):].lower() for word in words]


def bounded_by(kept):
    """Words before a program, which has no more capabilities then."""
    return ["setpriv", "--no-new-privs", "--inh-caps=-all",
            "--bounding-set=-all," + ",".join(f"+{name}" for name in kept)]


def allowed_calls(unit=UNIT):
    names = system_calls("@default")
    for group in unit_values("SystemCallFilter", unit)[0].split():
        names |= system_calls(group) if group.startswith("@") else {group}
    return names


def write_config(directory):
    config = directory / "mediator.conf"
    config.write_text(f"[mediator]\nshare={directory}/share\nstate_dir={directory}/state\n"
                      f"[vm 7]\npool=A\nowner={OWNER}\n")
    return config


def wait_for(condition, process):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.01)


def serve_one_request(directory, argv, **options):
    """Starts the mediator, lets it answer as a guest would ask, stops it."""
    process = subprocess.Popen([*argv, MEDIATOR, "--config", write_config(directory)], text=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, **options)
    try:
        request = directory / "share/vm7/request.txt"
        response = directory / "share/vm7/response.txt"
        wait_for(request.exists, process)
        # Something hostile that must be removed, then a request.
        request.unlink()
        request.mkdir()
        wait_for(lambda: response.read_text().startswith("2:request.txt is a directory"), process)
        request.write_text("A:1:7:3:4\n")
        os.chown(request, OWNER, OWNER)
        request.chmod(0o600)
        wait_for(lambda: response.read_text() == "1:3 + 4 = 7\n", process)
        process.terminate()
        assert process.wait(PATIENCE_S) == 0, process.stdout.read()
        return process.stdout.read()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


# --- the unit ------------------------------------------------------------------


@needs("systemd-analyze")
@pytest.mark.parametrize("made, program", [(UNIT, MEDIATOR), (XEN_UNIT, XEN), (RELAY_UNIT, RELAY)],
                         ids=["vgpu-mediator", "vgpu-xen", "vgpu-relay"])
def test_systemd_finds_nothing_wrong_in_the_unit(tmp_path, made, program):
    unit = tmp_path / made.name
    # systemd asks whether the program is there; here it is not installed.
    unit.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={program}", made.read_text(),
                           flags=re.MULTILINE))
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", unit], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert (done.returncode, done.stdout) == (0, "")


@needs_root
@needs("setpriv")
def test_the_units_capabilities_are_enough(tmp_path):
    kept = kept_capabilities()
    assert len(kept) == 6
    tmp_path.chmod(0o755)
    serve_one_request(tmp_path, bounded_by(kept))
    for name in ["", "request.txt", "response.txt"]:
        info = (tmp_path / "share/vm7" / name).stat()
        assert (info.st_uid, info.st_gid) == (OWNER, OWNER), name


@needs_root
@needs("setpriv")
def test_without_the_units_capabilities_it_says_what_it_cannot_do(tmp_path):
    """So the test above can fail."""
    done = subprocess.run(
        ["setpriv", "--inh-caps=-all", "--bounding-set=-all", MEDIATOR, "--config",
         write_config(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert re.search(rf"cannot give socket '.*' to owner {OWNER}:{OWNER}", done.stdout)


def system_calls(group):
    """The names in one of systemd's groups, without the groups in it."""
    text = subprocess.run(["systemd-analyze", "syscall-filter", group], text=True, check=True,
                          stdout=subprocess.PIPE).stdout
    names = set()
    for word in (line.strip() for line in text.splitlines()[1:]):
        if word.startswith("@"):
            names |= system_calls(word)
        elif word and not word.startswith("#"):
            names.add(word)
    return names


def kill_on_others(names):
    """Makes a function for the child: from then on any other system call kills."""
    header = pathlib.Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").read_text()
    numbers = dict(re.findall(r"#define __NR_(\w+) (\d+)", header))
    load, equal, give = 0x20, 0x15, 0x06
    allow, kill = 0x7FFF0000, 0x80000000
    program = [(load, 0, 0, 0)]
    for name in sorted(names & numbers.keys()):
        program += [(equal, 0, 1, int(numbers[name])), (give, 0, 0, allow)]
    program.append((give, 0, 0, kill))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    descriptor = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)

    def confine():
        no_new_privileges, seccomp, with_filter = 38, 22, 2
        if libc.prctl(no_new_privileges, 1, 0, 0, 0) or \
                libc.prctl(seccomp, with_filter, descriptor, code, 0):
            raise OSError(ctypes.get_errno(), "prctl")

    return confine


@judges_system_calls
def test_the_units_system_calls_are_enough(tmp_path):
    serve_one_request(tmp_path, [], preexec_fn=kill_on_others(allowed_calls()))


def serve_one_session(mediator, directory, **options):
    """vgpu-xen's life with a session that works, and a mediator that is started anew in it."""
    with registered_host(mediator, [1], shim=build_shim(directory), start=False) as host:
        host.start(**options)
        domain = host.start_domain(5, UUIDS[1]).wait_offer()
        session = domain.open()
        session.ping()
        host.mediator.stop_but_keep_workers()
        after = host.mediator.mark()
        host.mediator.start()
        host.mediator.wait_event("link", after=after, vm=1)
        session.ping()
        domain.put(session.name, "state", "closing")
        domain.wait_told(session.name, None)
        host.stop()


@needs_root
@needs("setpriv")
def test_the_xen_units_capabilities_are_enough(mediator, tmp_path):
    kept = kept_capabilities(XEN_UNIT)
    assert kept == ["setuid", "setgid", "kill"]
    serve_one_session(mediator, tmp_path, prefix=bounded_by(kept))


@judges_system_calls
def test_the_xen_units_system_calls_are_enough(mediator, tmp_path):
    serve_one_session(mediator, tmp_path, preexec_fn=kill_on_others(allowed_calls(XEN_UNIT)))


def agree(mediator, directory, argv=(), **options):
    """vgpu-relay's life on both sides: the registry, a guest, a question and an answer."""
    with contextlib.ExitStack() as stack:
        world = World(directory, mediator, stack)
        world.on_start = lambda program: confine(program, argv, options)
        world.start_served()
        assert world.dom0.json("status")["vms"][0]["vm_id"] == 7
        world.dom0.good("set-priority", "vm7", "high")
        world.relay.stop()
        world.worker.stop()


def confine(program, argv, options):
    program.argv = [*argv, *program.argv]
    program.options = options


@needs_root
@needs("setpriv")
def test_the_relay_units_capabilities_are_enough(mediator, place):
    kept = kept_capabilities(RELAY_UNIT)
    assert kept == ["chown", "dac_override"]
    agree(mediator, place, bounded_by(kept))


@judges_system_calls
def test_the_relay_units_system_calls_are_enough(mediator, place):
    agree(mediator, place, preexec_fn=kill_on_others(allowed_calls(RELAY_UNIT)))


def test_the_unit_leaves_time_to_finish_an_operation():
    config = (PACKAGING / "mediator.conf").read_text()
    limit_ms = int(re.search(r"^operation_limit_ms = (\d+)$", config, re.MULTILINE)[1])
    assert int(unit_values("TimeoutStopSec")[0]) > limit_ms / 1000 + 10


def test_the_unit_may_write_where_the_example_configuration_does():
    config = (PACKAGING / "mediator.conf").read_text()
    may_write = unit_values("ReadWritePaths")[0].split()
    for key in ["share", "state_dir", "log"]:
        path = re.search(rf"^{key} = (\S+)$", config, re.MULTILINE)[1]
        assert any(path == place or path.startswith(place + "/") for place in may_write), key
    made = re.findall(r"^d (\S+)", (PACKAGING / "vgpu-mediator.tmpfiles").read_text(),
                      re.MULTILINE)
    assert made == may_write


# --- around it -------------------------------------------------------------------


@needs("systemd-tmpfiles")
@needs_root
def test_tmpfiles_makes_a_share_that_can_be_entered_but_not_listed(tmp_path):
    tmp_path.chmod(0o755)
    subprocess.run(["systemd-tmpfiles", "--create", f"--root={tmp_path}",
                    PACKAGING / "vgpu-mediator.tmpfiles"], check=True)
    modes = {name: oct((tmp_path / "var" / name).stat().st_mode & 0o7777)
             for name in ["vgpu", "lib/vgpu", "log/vgpu"]}
    assert modes == {"vgpu": "0o711", "lib/vgpu": "0o700", "log/vgpu": "0o750"}


@needs("logrotate")
def test_logrotate_understands_its_file(tmp_path):
    done = subprocess.run(["logrotate", "--debug", "--state", tmp_path / "state",
                           PACKAGING / "vgpu-mediator.logrotate"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0 and "error" not in done.stdout.lower(), done.stdout


def complete(program, *words):
    """What bash offers for the last of these words."""
    line = " ".join(f"'{word}'" for word in [program, *words])
    script = (f"source {PACKAGING}/{program}.bash; COMP_WORDS=({line}); "
              f"COMP_CWORD={len(words)}; _{program.replace('-', '_')}; "
              f"printf '%s\\n' \"${{COMPREPLY[@]}}\"")
    done = subprocess.run(["bash", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, check=True)
    return sorted(done.stdout.split())


@pytest.mark.parametrize("program, least", [(MEDIATOR, 10), (XEN, 7), (RELAY, 9)],
                         ids=lambda value: getattr(value, "name", ""))
def test_completion_offers_every_option_of_the_program(program, least):
    text = subprocess.run([program, "--help"], stdout=subprocess.PIPE, text=True).stdout
    options = set(re.findall(r"^ .*?(--[a-z-]+)", text, re.MULTILINE))
    assert len(options) > least
    assert complete(program.name, "-") == sorted(options)


@pytest.mark.parametrize("words, offered", [
    (["--log-format", ""], ["json", "text"]),
    (["--log-format", "=", "j"], ["json"]),
    (["--log-level", "="], ["debug", "error", "info", "warning"]),
    (["--config", f"{PACKAGING}/mediator.c"], [f"{PACKAGING}/mediator.conf"]),
    (["--xenbus", f"{PACKAGING}/vgpu-xen.b"], [f"{PACKAGING}/vgpu-xen.bash"]),
])
@pytest.mark.parametrize("program", ["vgpu-xen", "vgpu-relay"])
def test_completion_of_vgpu_xen_and_vgpu_relay_offers_values(program, words, offered):
    assert complete(program, *words) == offered


@pytest.mark.parametrize("words, offered", [
    (["--pools", ""], ["independent", "shared"]),
    (["--pools", "=", "s"], ["shared"]),
    (["--pools", "="], ["independent", "shared"]),
    (["--log-format", ""], ["json", "text"]),
    (["--log-level", ""], ["debug", "error", "info", "warning"]),
    (["--config", f"{PACKAGING}/mediator.c"], [f"{PACKAGING}/mediator.conf"]),
    (["--share", f"{REPOSITORY}/pack"], [f"{PACKAGING}"]),
])
def test_completion_offers_values(words, offered):
    assert complete("vgpu-mediator", *words) == offered
    if len(words) == 2 and words[1] == "":
        # What is offered is what the program takes.
        for value in offered:
            done = subprocess.run([MEDIATOR, words[0], value, "--config", "/dev/null",
                                   "--check-config"], stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True)
            assert done.returncode == 0, done.stdout
