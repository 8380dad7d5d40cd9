# SPDX-License-Identifier: Apache-2.0
"""docs/admin-guide.md shows what happens.

Its commands run in order, in one shell, on a host that lies in a directory: paths
below /etc, /var and /run are that directory's, systemctl starts a mediator, and xl is
a stand-in.  VGPU_WRITE_GUIDE=1 writes what was printed into the guide.
"""

import os
import pathlib
import re
import signal
import subprocess

import pytest

from admin_support import ADMIN, BUILD, MEDIATOR, REPOSITORY, UUID, script

GUIDE = REPOSITORY / "docs/admin-guide.md"
CLIENT = BUILD / "src/client/vgpu-client"
WALL_S = 120

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: chown")


def commands_of(text):
    """[[lines of the command, lines that it prints]], block by block."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append([[line[2:]], []])
            elif line.startswith("> ") and not found[-1][1]:
                found[-1][0].append(line[2:])
            else:
                found[-1][1].append(line)
    return found


def with_outputs(text, outputs):
    """The guide with these outputs in the place of those that it has."""
    outputs = iter(outputs)

    def block(match):
        lines = []
        for command, _ in commands_of(match[0]):
            lines += [f"$ {command[0]}"] + [f"> {line}" for line in command[1:]]
            lines += next(outputs).splitlines()
        return "```console\n" + "\n".join(lines) + "\n```"

    return re.sub(r"^```console\n.*?^```$", block, text, flags=re.MULTILINE | re.DOTALL)


def settled(text):
    """Times, durations and process numbers differ from run to run, and with their
    widths so do columns."""
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
    text = re.sub(r"\d{8}T\d{6}Z", "TIME", text)
    text = re.sub(r"process \d+, up \S+ \S+", "process N, up N s", text)
    text = re.sub(r"\b[\d.]+ (ms|us|s)\b", r"N \1", text)
    text = re.sub(r'"id": \d+', '"id": N', text)
    return "\n".join(re.sub(r" {2,}|  +-(?= |$)", "  ", line) for line in text.splitlines())


def make_host(place):
    programs = place / "bin"
    programs.mkdir()
    for name in ["etc/vgpu", "etc/xen", "etc/ganesha", "var/lib", "run"]:
        (place / name).mkdir(parents=True)
    (place / "etc/xen/mail.cfg").write_text(f'name = "mail"\nuuid = "{UUID}"\nmemory = 512\n')
    script(programs / "vgpu-admin",
           f'exec {ADMIN} --config {place}/etc/vgpu/mediator.conf "$@" 2>&1\n')
    script(programs / "vgpu-client", f'exec {CLIENT} "$@" 2>&1\n')
    script(programs / "systemctl", f"""\
        case $1 in
        start)
            {MEDIATOR} --config {place}/etc/vgpu/mediator.conf </dev/null >{place}/log 2>&1 &
            echo $! >{place}/pid
            until grep -qs READY {place}/log; do kill -0 $! || exit 1; sleep 0.02; done
            ;;
        stop)
            kill $(cat {place}/pid)
            while test -e {place}/run/vgpu/control.sock; do sleep 0.02; done
            ;;
        esac
        """)
    script(programs / "xl", f"""\
        case $1 in
        vm-list)
            echo "UUID                                  ID    name"
            echo "00000000-0000-0000-0000-000000000000  0    Domain-0                      "
            test -e {place}/off || echo "{UUID}  3    mail                          "
            ;;
        list)
            echo "Name                            ID   Mem VCPUs      State   Time(s)"
            test -e {place}/off || echo "mail                             3   512     1     -b----    1.0"
            ;;
        shutdown) touch {place}/off ;;
        create)
            # The guide's last renumbering meets a host that has no memory left.
            if grep -qs vm_id=26 "$2"; then echo "xl: not enough free memory" >&2; exit 1; fi
            rm -f {place}/off
            ;;
        esac
        """)
    return programs


# Until each client that was sent to the background waits in the queue.
_WAIT = """
vgpu_wait() {
    for _ in $(seq 500); do
        [ "$(vgpu-admin queue --json | grep -o '"depth"' | wc -l)" -ge "$1" ] && return
        sleep 0.02
    done
}
"""


def run_guide(place, commands):
    programs = make_host(place)
    program, background = _WAIT, 0
    outputs = place / "outputs"
    outputs.mkdir()
    for number, (lines, _) in enumerate(commands):
        text = re.sub(r"(?<![\w./])/(etc|var|run)/", rf"{place}/\1/", "\n".join(lines))
        program += f"exec >{outputs}/{number} 2>&1\n{text}\n"
        if text.endswith("&"):
            background += 1
            program += f"vgpu_wait {background}\n"
    environment = dict(os.environ, LC_ALL="C", PATH=f"{programs}:{os.environ['PATH']}",
                       VGPU_TOOLSTACK_PATH=f"{programs}:/usr/bin:/bin",
                       VGPU_XL_DIRECTORY=f"{place}/etc/xen")
    environment.pop("SUDO_USER", None)
    shell = subprocess.Popen(["bash", "-c", program], cwd=place, start_new_session=True,
                             stdin=subprocess.DEVNULL, env=environment)
    try:
        shell.wait(WALL_S)
    finally:
        try:
            os.killpg(shell.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        shell.wait()
    return [(outputs / str(number)).read_text().replace(str(place), "")
            for number in range(len(commands))]


def test_the_guide_is_what_happens(place):
    commands = commands_of(GUIDE.read_text())
    assert len(commands) > 50
    printed = run_guide(pathlib.Path(place), commands)
    if os.environ.get("VGPU_WRITE_GUIDE"):
        GUIDE.write_text(with_outputs(GUIDE.read_text(), printed))
        return
    for (lines, expected), output in zip(commands, printed):
        assert settled(output) == settled("\n".join(expected)), "\n".join(lines)


def test_every_command_is_in_the_guide_or_in_a_page_of_its_own():
    text = GUIDE.read_text() + "".join(
        path.read_text() for path in (REPOSITORY / "docs").glob("*.md"))
    table = (REPOSITORY / "src/admin/commands.c").read_text()
    commands = re.findall(r'\{"([a-z-]+)",[^{}]*?"[^"]*",\s*"(?:VMs|Pools|Live|Host|Database)"',
                          table)
    assert len(commands) > 30
    page = (REPOSITORY / "man/vgpu-admin.8.scd").read_text()
    assert {name for name in commands if f"*{name}*" not in page} == set()
    missing = {name for name in commands if not re.search(rf"(?<![\w-]){name}(?![\w-])", text)}
    assert missing == set()
