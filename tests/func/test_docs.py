# SPDX-License-Identifier: Apache-2.0
"""The documents are true: what they name is there, what they show happens.

Each test is one promise of the documents as a whole.  A test that fails names
the document and the words; mostly the document is what must change.
"""

import functools
import os
import pathlib
import re
import shutil
import signal
import subprocess

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("VGPU_BUILD_DIR", REPOSITORY / "build")).resolve()
MEDIATOR = BUILD / "src/mediator/vgpu-mediator"
PROGRAMS = {
    "vgpu-mediator.8": MEDIATOR,
    "vgpu-worker.8": BUILD / "src/exec/vgpu-worker",
    "vgpu-gpu-check.8": BUILD / "src/gpu/vgpu-gpu-check",
    "vgpu-client.1": BUILD / "src/client/vgpu-client",
    "vgpu-sim.1": BUILD / "src/sim/vgpu-sim",
    "vgpu-admin.8": BUILD / "src/admin/vgpu-admin",
    "vgpu-relay.8": BUILD / "src/relay/vgpu-relay",
    "vgpu-xen.8": BUILD / "src/xen/vgpu-xen",
}
CONFIG_PAGE = REPOSITORY / "man/vgpu-mediator.conf.5.scd"
EXAMPLE = REPOSITORY / "packaging/mediator.conf"
ROOT_DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "third_party/README.md",
                  "kernels/README.md", "examples/README.md"]
DOCUMENTS = [REPOSITORY / name for name in ROOT_DOCUMENTS] + sorted(
    (REPOSITORY / "docs").glob("*.md"))
QUICKSTART_S = 120


def document_id(path):
    return str(path.relative_to(REPOSITORY))


each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=document_id)


def without_code(text):
    """The text without its code blocks, in which `#` and `[` are no markdown."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def run(*argv, **options):
    return subprocess.run([str(word) for word in argv], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


# --- programs and their manual pages -----------------------------------------------


def help_options(program):
    text = run(program, "--help").stdout
    return set(re.findall(r"^ .*?(--[a-z][a-z-]+)", text, re.MULTILINE))


def page_section(page, title):
    text = (REPOSITORY / "man" / f"{page}.scd").read_text()
    return re.search(rf"^# {title}$(.*?)(?=^# |\Z)", text, re.MULTILINE | re.DOTALL)[1]


def page_options(page):
    """What the page's section OPTIONS defines: `*-c*, *--config*=_FILE_` and the like."""
    lines = [line for line in page_section(page, "OPTIONS").splitlines()
             if line.startswith("*-")]
    return {option for line in lines for option in re.findall(r"\*(--[a-z][a-z-]+)\*", line)}


@pytest.mark.parametrize("page", PROGRAMS)
def test_every_option_of_a_program_is_in_its_manual_page(page):
    options = help_options(PROGRAMS[page])
    assert "--help" in options
    # argp adds --usage by itself; pages need not explain it.
    assert options - page_options(page) <= {"--usage"}


@pytest.mark.parametrize("page", PROGRAMS)
def test_every_option_in_a_manual_page_is_one_of_its_program(page):
    assert page_options(page) - help_options(PROGRAMS[page]) == set()


def test_every_program_that_is_installed_has_a_page_that_is_installed():
    listed = re.search(r"man_pages = \[(.*?)\]", (REPOSITORY / "man/meson.build").read_text(),
                       re.DOTALL)[1]
    assert set(PROGRAMS) | {"vgpu-mediator.conf.5"} <= set(re.findall(r"'(.*?)'", listed))


@pytest.mark.parametrize("page", sorted((REPOSITORY / "man").glob("*.scd")), ids=document_id)
def test_a_manual_page_can_be_made(page):
    if not shutil.which("scdoc"):
        pytest.skip("there is no scdoc here")
    done = subprocess.run(["scdoc"], stdin=page.open(), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(".\\\"")


# --- the configuration -------------------------------------------------------------


def config_keys():
    """{section: keys}, from the tables of the program."""
    text = (REPOSITORY / "src/mediator/config.c").read_text()
    table = re.search(r"mediator_keys\[\] = \{(.*?)\n\};", text, re.DOTALL)[1]
    found = {"mediator": set(re.findall(r"PATH\((\w+)\)|NUMBER\((\w+),|CHOICE\(\"(\w+)\"|"
                                        r"\.name = \"(\w+)\"", table))}
    found["mediator"] = {name for names in found["mediator"] for name in names if name}
    for section in ["pool", "vm"]:
        names = re.search(rf"{section}_keys\[\] = \{{(.*?)\}}", text, re.DOTALL)[1]
        found[section] = set(re.findall(r'"(\w+)"', names))
    return found


def page_keys():
    found = {}
    for section, title in [("mediator", r"\[MEDIATOR\]"), ("pool", r"\[POOL X\]"),
                           ("vm", r"\[VM N\]")]:
        lines = page_section("vgpu-mediator.conf.5", title).splitlines()
        found[section] = {match[1] for line in lines if (match := re.match(r"\*(\w+)\*=", line))}
    return found


def example_keys():
    """Keys that the example sets, or shows behind a `#`."""
    found, section = {}, None
    for line in EXAMPLE.read_text().splitlines():
        if match := re.match(r"\[(\w+)", line):
            section = match[1]
        elif match := re.match(r"#?(\w+) = ", line):
            found.setdefault(section, set()).add(match[1])
    return found


def test_the_program_has_the_keys_that_this_file_finds_in_it():
    """So that the two tests below look at something."""
    keys = config_keys()
    assert len(keys["mediator"]) > 15 and {"share", "pools", "max_priority"} <= keys["mediator"]
    assert keys["pool"] >= {"device"} and keys["vm"] >= {"pool", "priority", "owner"}


def test_every_key_of_the_configuration_is_in_its_page_and_no_other():
    assert page_keys() == config_keys()


def test_every_key_of_the_configuration_is_in_the_example_and_no_other():
    assert example_keys() == config_keys()


@pytest.mark.parametrize("uncomment", [False, True], ids=["as-it-is", "all-keys-set"])
def test_the_example_passes_its_own_check(tmp_path, uncomment):
    text = EXAMPLE.read_text()
    if uncomment:
        # A database stands in the place of the sections.
        text = re.sub(r"^#(?!database)(\w+ = )", r"\1", text, flags=re.MULTILINE)
        # Not installed here.
        text = re.sub(r"^worker = .*", f"worker = {PROGRAMS['vgpu-worker.8']}", text,
                      flags=re.MULTILINE)
    config = tmp_path / "mediator.conf"
    config.write_text(text)
    done = run(MEDIATOR, "--config", config, "--check-config")
    assert (done.returncode, done.stdout) == (0, "configuration is right: 2 pools, 1 VMs\n")


def c_default(name):
    text = (REPOSITORY / "src/mediator/config.c").read_text()
    return re.search(rf"\.{name} = ([^,]+),", text)[1]


def test_the_page_and_the_example_name_the_programs_defaults():
    page, example = CONFIG_PAGE.read_text(), EXAMPLE.read_text()
    numbers = sorted(key for key in config_keys()["mediator"] if key.endswith("_ms"))
    assert len(numbers) == 9
    for key in numbers:
        value = c_default(key)
        assert re.search(rf"^\*{key}\*=_N_ \(.*, default {value}\)$", page, re.MULTILINE), key
        assert re.search(rf"^{key} = {value}$", example, re.MULTILINE), key


# --- the knobs of performance-tuning.md ----------------------------------------------

TUNING_PAGE = REPOSITORY / "docs/performance-tuning.md"


def constant_in(path, name):
    value = re.search(rf"^#define {name} (.*)$", (REPOSITORY / path).read_text(), re.MULTILINE)[1]
    return whole_number(value.split("/*")[0].strip())


def whole_number(text):
    """Of `8`, `64u` or `16u << 20`."""
    words = re.fullmatch(r"\(?(\d+)u?l*(?: << (\d+))?\)?", text)
    return int(words[1]) << int(words[2] or 0)


def program_ranges():
    """{section: {key: its values as the tuning page names them}}, of numbers and choices."""
    text = (REPOSITORY / "src/mediator/config.c").read_text()
    text = text.replace("TRACE_KIB_MAX)", f"{constant_in('src/trace/trace.h', 'TRACE_KIB_MAX')})")
    names = {table: ", ".join(re.findall(r'\{"([\w -]+)", ', body)) for table, body in re.findall(
        r"struct choice (\w+)\[\] = \{(.*?)\{NULL, 0\}\};", text, re.DOTALL)}
    ranges = {key: f"{least} to {whole_number(most)}" for key, least, most in re.findall(
        r"NUMBER\((\w+), (\d+), ([^)]+)\)", text)}
    ranges.update({key: names[table] for key, table in re.findall(
        r'CHOICE\("(\w+)", \w+, (\w+)\)', text)})
    limits = re.findall(r"\{offsetof\(struct config_vm, (\w+)\), ([^}]+)\}", text)
    aging = re.search(r'parse_number\("aging_ms", value, (\d+), (\d+)', text)
    devices = constant_in("src/mediator/mediator.h", "CONFIG_POOL_DEVICES_MAX")
    return {"mediator": ranges,
            "pool": {"policy": names["pool_policies"], "placement": names["placements"],
                     "demand": names["yes_no"], "aging_ms": f"{aging[1]} to {aging[2]}",
                     "session_devices": f"1 to {devices}"},
            "vm": {key: f"0 to {whole_number(most)}" for key, most in limits}}


def example_values():
    """{section: {key: what it is when it is left out}}, of the first of each kind."""
    found, section = {}, None
    for line in EXAMPLE.read_text().splitlines():
        if match := re.match(r"\[(\w+)", line):
            section = match[1]
        elif match := re.match(r"(\w+) = (.*)", line):
            found.setdefault(section, {}).setdefault(match[1], match[2])
    return found


def knob_rows():
    """{section: {key: (default, range)}}: the tables below these headings."""
    found = {}
    for section, part in re.findall(r"^### [^\n]*`\[(mediator|pool|vm)[^]\n]*\]`(.*?)(?=^#)",
                                    TUNING_PAGE.read_text(), re.MULTILINE | re.DOTALL):
        rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \| ([^|]*) \|", part, re.MULTILINE)
        found[section] = {key: (default, values) for key, default, values in rows}
    return found


def test_every_knob_of_the_tuning_page_has_the_programs_default_and_range():
    rows, ranges, defaults = knob_rows(), program_ranges(), example_values()
    assert {section: len(keys) > 4 for section, keys in rows.items()} == dict.fromkeys(ranges, True)
    for section, keys in rows.items():
        for key, (default, values) in keys.items():
            assert key in ranges[section], f"{key} is no number or choice of [{section}]"
            in_order = sorted(values.split(", ")) == sorted(ranges[section][key].split(", "))
            assert (default, in_order) == (defaults[section][key], True), \
                f"{key}: {ranges[section][key]}, default {defaults[section][key]}"


def test_the_tuning_page_passes_over_no_key():
    """Each stands in a table or in the list of those that are not about speed."""
    listed = re.search(r"^Not about speed: (.*?)\n\n", TUNING_PAGE.read_text(),
                       re.MULTILINE | re.DOTALL)[1]
    listed = set(re.findall(r"`(\w+)`", listed))
    rows, keys = knob_rows(), config_keys()
    assert {section: keys[section] - set(rows[section]) - listed for section in keys} == \
        dict.fromkeys(keys, set())
    assert listed - set().union(*keys.values()) == set()
    assert listed & set().union(*rows.values()) == set()


def test_the_tuning_page_has_the_librarys_and_the_devices_defaults():
    page = TUNING_PAGE.read_text()
    spin_us = constant_in("lib/session.c", "SPIN_US")
    window_mib = constant_in("lib/socket.c", "WINDOW_BYTES") >> 20
    sessions = [constant_in("include/vgpu/window.h", f"VGPU_SLOTS_{name}")
                for name in ("DEFAULT", "MAX")]
    spare_mib = constant_in("src/exec/cuda_private.h", "CUDA_SPARE_BYTES") >> 20
    flights = constant_in("src/exec/runner.h", "RUNNER_FLIGHTS_MAX")
    for row in [f"`spin_us` | {spin_us};", f"`window_bytes` | {window_mib} MiB",
                f"`sessions` | {sessions[0]} | 1 to {sessions[1]} |",
                f"freed granules | {spare_mib} MiB a session",
                f"operations in flight on the device | {flights} |"]:
        assert row in page


# --- links, names, commands ----------------------------------------------------------


def heading_anchors(path):
    """As GitHub makes them from headings."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", without_code(path.read_text()), re.MULTILINE):
        plain = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading)
        found.add(re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-"))
    return found


@each_document
def test_every_relative_link_leads_somewhere(document):
    links = re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"",
                       without_code(document.read_text()))
    broken = []
    for link in (first or second for first, second in links):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        if not target.exists() or (anchor and anchor not in heading_anchors(target)):
            broken.append(link)
    assert broken == []


@each_document
def test_every_make_target_that_is_named_exists(document):
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(word for line in re.findall(r"^([a-z][a-z \\\n-]*):", makefile, re.MULTILINE)
                  for word in line.split())
    assert {"demo", "check", "check-unit", "lint"} <= targets
    named = re.findall(r"`make ([a-z-]+)|^\$ make ([a-z-]+)", document.read_text(), re.MULTILINE)
    assert {first or second for first, second in named} - targets == set()


@functools.lru_cache(maxsize=None)
def source_files(suffixes=(".c", ".h", ".py", ".sh")):
    found = run("git", "-C", REPOSITORY, "ls-files", "-co", "--exclude-standard").stdout
    return [REPOSITORY / name for name in found.splitlines()
            if name.endswith(suffixes) and (REPOSITORY / name).is_file()]


@functools.lru_cache(maxsize=None)
def defined_functions():
    found = set()
    for path in source_files():
        text = path.read_text(errors="replace")
        if path.suffix == ".py":
            found |= set(re.findall(r"^\s*def (\w+)\(", text, re.MULTILINE))
        else:
            found |= set(re.findall(r"\b(\w+)\([^;{}]*\)\s*(?:__attribute__\S+\s*)?\{", text))
            found |= set(re.findall(r"\(\*(\w+)\)\(", text))  # of a vtable
    return found


@each_document
def test_every_function_that_is_named_exists(document):
    text = document.read_text()
    named = set(re.findall(r"`(\w+)\(\)`", text)) | set(re.findall(r"`(test_\w+)`", text))
    if document.name == "protocol.md":
        # The sequence diagram.
        named |= set(re.findall(r"\b([a-z]\w+)\(\)", text))
    unknown = {name for name in named - defined_functions()
               if not (REPOSITORY / f"tests/unit/{name}.c").exists()}
    assert unknown == set()


@each_document
def test_every_path_that_is_named_exists(document):
    text = document.read_text()
    folders = "src|integrations|include|kernels|examples|device|guest|tests|scripts|demo|docs|man|packaging|bench|third_party"
    named = set(re.findall(rf"`((?:{folders})/[\w./-]*\w/?)`", text))
    assert {name for name in named if not (REPOSITORY / name).exists()} == set()


@each_document
def test_a_document_is_finished(document):
    assert re.findall(r"\b(?:TODO|FIXME|XXX|TBD)\b", document.read_text()) == []


def requirement_rows():
    text = (REPOSITORY / "docs/security.md").read_text()
    part = text[text.index("\n## Requirements, controls, evidence"):]
    part = part[:part.index("\n## ", 5)]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")]
            for line in part.splitlines() if line.startswith("| ")]
    return [row for row in rows if row[0] != "requirement"]


def test_every_requirement_of_security_has_a_control_and_evidence_or_says_not_shown():
    rows = requirement_rows()
    assert len(rows) > 20
    for row in rows:
        assert len(row) == 3 and all(row), row
        assert re.search(r"`test_\w+`|`tests/[\w./]+`|not shown", row[2]), row


# --- messages -----------------------------------------------------------------------

_LITERAL = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
_FORMAT = re.compile(r"%[-+ #0-9.*]*(?:hh|h|ll|l|z|j)?[a-zA-Z]")
ANY = "…"


def string_literals(text):
    """C's strings with neighbours joined; formats and macros in between are ANY."""
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.DOTALL)
    joined, current, end = [], "", None
    for match in _LITERAL.finditer(text):
        gap = text[end:match.start()] if end is not None else None
        if gap is not None and re.fullmatch(r"[\sA-Za-z0-9_]*", gap):
            current += {"PRIu32": "u", "PRId64": "d"}.get(gap.strip(), ANY if gap.strip() else "")
            current += match[1]
        else:
            joined.append(current)
            current = match[1]
        end = match.end()
    joined.append(current)
    return [re.sub(f"{ANY}+", ANY, _FORMAT.sub(ANY, text)).replace('\\"', '"')
            .replace("\\\\", "\\") for text in joined]


def shell_texts(text):
    text = re.sub(r'"\s*\\\n\s*"', " ", text)
    return [re.sub(r"\$\{[^}]*\}|\$\w+", ANY, line) for line in text.splitlines()]


@functools.lru_cache(maxsize=None)
def all_texts():
    found = []
    for path in source_files((".c", ".h")):
        if path.relative_to(REPOSITORY).parts[0] in ("src", "device", "lib"):
            found += string_literals(path.read_text())
    for name in ["device/qemu-with-vgpu", "device/qemu-source.sh", "scripts/build-device"]:
        found += shell_texts((REPOSITORY / name).read_text())
    return found


def pieces_of(message):
    return [piece for piece in message.split(ANY) if len(piece.strip()) > 1]


def stands_in(message, text):
    """All of the message's pieces, in order."""
    at = 0
    for piece in pieces_of(message):
        at = text.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return True


def explained_messages():
    """[(section, message)]: the first column of troubleshooting.md's tables."""
    text = (REPOSITORY / "docs/troubleshooting.md").read_text()
    found, section = [], ""
    for line in text.splitlines():
        if line.startswith("#"):
            section = line.strip("# ")
        elif match := re.match(r"\| (`+)(.+?)\1( .*?)? \|", line):
            found.append((section, match[2], match[3] or ""))
    return found


def test_every_message_that_troubleshooting_explains_is_in_the_sources():
    checked, unknown = 0, []
    for section, message, note in explained_messages():
        if section == "NFS" or "own words" in note:
            continue  # of other programs
        checked += 1
        assert pieces_of(message), f"{message!r} says nothing"
        if not any(stands_in(message, text) for text in all_texts()):
            unknown.append(message)
    assert unknown == []
    assert checked > 80


def test_a_message_that_is_nowhere_is_noticed():
    assert not any(stands_in("pool '…' does not exist: try …", text) for text in all_texts())


def reasons_in(path):
    """The messages that a file gives to error_set() and its kin."""
    text = re.sub(r"/\*.*?\*/", " ", (REPOSITORY / path).read_text(), flags=re.DOTALL)
    calls = re.findall(r"\b(?:error_set|error_set_errno|bad_value)\((.*?)\);", text, re.DOTALL)
    found = []
    for call in calls:
        texts = [text for text in string_literals(call) if " " in text]
        if texts and "no memory" not in texts[0]:
            found.append(texts[0])
    return found


@pytest.mark.parametrize("path, at_least", [
    ("src/protocol/request.c", 11), ("src/protocol/command.c", 7), ("src/mediator/config.c", 12),
    ("src/channel/journal.c", 3)])
def test_every_reason_that_a_person_can_meet_is_explained(path, at_least):
    reasons = reasons_in(path)
    assert len(reasons) >= at_least
    explained = [message for _, message, _ in explained_messages()]
    missing = [reason for reason in reasons
               if not any(stands_in(message, reason) for message in explained)
               # What a key expects follows the words "… = …: expected".
               and not reason.startswith(("a mode that", "an octal", "one letter, A", "user or",
                                          "at most 63", "cpu, ", "a whole", "an absolute",
                                          "0, 1, 2", "cannot read a number",
                                          "the name of a user", "each device", "at most 8"))
               # Only programs can ask for a key that does not exist.
               and reason != f"unknown key '{ANY}' in [mediator]"
               and reason != f"{ANY}, line {ANY}: {ANY}"]
    assert missing == []


def test_every_failure_of_the_client_is_explained():
    table = (REPOSITORY / "src/client/failure.c").read_text()
    codes = set(re.findall(r'= \{"([a-z-]+)", ', table)) - {"none"}
    assert len(codes) > 10
    text = (REPOSITORY / "docs/troubleshooting.md").read_text()
    assert {code for code in codes if f"`{code}`" not in text} == set()


# --- what is shown happens -------------------------------------------------------------


def blocks_of(document, language, until=None):
    text = document.read_text()
    if until:
        text = text[:text.index(until)]
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands_of(block):
    """[(command, what it prints)]"""
    found = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append([line[2:], ""])
        elif line.startswith(">") and not found[-1][1]:
            found[-1][0] += "\n" + line[1:].removeprefix(" ")
        else:
            found[-1][1] += line + "\n"
    return found


def settled(text, home):
    """Times and durations differ from run to run, and so does who you are."""
    text = text.replace(str(home), "/home/you")
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", text)
    return re.sub(r"\b[\d.]+ (ms|us)\)", r"N \1)", text)


def test_the_quickstart_is_what_happens(tmp_path):
    blocks = blocks_of(REPOSITORY / "docs/quickstart.md", "console", "\n## 6.")
    commands = [pair for block in blocks for pair in commands_of(block)]
    assert len(commands) > 25
    home, place, outputs = tmp_path / "home", tmp_path / "tree", tmp_path / "out"
    for path in [home, place, outputs]:
        path.mkdir()
    (place / "build").symlink_to(BUILD)
    script = ""
    for number, (command, _) in enumerate(commands):
        # Not `{ …; } >file`: a command may end with & or a here-document.
        script += f"exec >{outputs}/{number} 2>&1\n{command}\n"
    shell = subprocess.Popen(["bash", "-c", script], cwd=place, start_new_session=True,
                             stdin=subprocess.DEVNULL, env={**os.environ, "HOME": str(home)})
    try:
        shell.wait(QUICKSTART_S)
    finally:
        try:
            os.killpg(shell.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        shell.wait()
    for number, (command, expected) in enumerate(commands):
        shown = (outputs / str(number)).read_text()
        assert settled(shown, home) == settled(expected, "/home/you"), command


def test_the_client_in_the_protocol_works(tmp_path):
    """The shell script that shows how to write one, and its first lines as well."""
    program = blocks_of(REPOSITORY / "docs/protocol.md", "sh")[0]
    config = tmp_path / "mediator.conf"
    config.write_text(f"[mediator]\nshare={tmp_path}/share\nstate_dir={tmp_path}/state\n"
                      "[vm 100]\npool=A\n")
    mediator = subprocess.Popen([MEDIATOR, "--config", config], stdin=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, text=True)
    try:
        while "READY" not in (line := mediator.stderr.readline()):
            assert line, "the mediator ended"
        program = program.replace("/mnt/vgpu", f"{tmp_path}/share")
        for _ in range(3):
            done = run("sh", "-c", program, timeout=180)
            assert (done.returncode, done.stdout) == (0, "1:3 + 4 = 7\n")
        mediator.terminate()
        assert mediator.wait(30) == 0
    finally:
        mediator.kill()
        mediator.wait()
        mediator.stderr.close()


def test_the_nfs_configuration_is_the_one_that_the_tests_use():
    shown = blocks_of(REPOSITORY / "docs/nfs.md", "ganesha")[0]
    used = (REPOSITORY / "tests/vm/harness/nfs.py").read_text()
    settings = [re.findall(r"\b([A-Z][A-Za-z0-9_]+) = ([^;]+);", text) for text in [shown, used]]
    assert len(settings[0]) > 25
    fixed = [{(key, value) for key, value in found if re.fullmatch(r"[\w, ]+", value)
              and key not in ("Export_Id", "Anonymous_Uid", "Anonymous_Gid")}
             for found in settings]
    assert fixed[0] == fixed[1]
    assert {key for key, _ in settings[0]} == {key for key, _ in settings[1]}


def test_the_mount_options_are_those_that_the_tests_use():
    used = (REPOSITORY / "tests/vm/harness/guest.py").read_text()
    text = (REPOSITORY / "docs/nfs.md").read_text()
    shown = re.search(r"^mount -t nfs4 -o (\S+)", text, re.MULTILINE)[1].split(",")
    for option in shown:
        if option not in ("vers=4.1", "nosuid", "nodev", "noexec"):
            assert option in used, option
    fstab = re.search(r"^10\.77\.0\.1:/vm100 \S+ nfs4 (\S+)", text, re.MULTILINE)[1].split(",")
    assert set(fstab) == set(shown) | {"_netdev"}


# --- window.md and the headers ------------------------------------------------------------

WINDOW_PAGE = REPOSITORY / "docs/window.md"


def header_text(name):
    text = (REPOSITORY / "include/vgpu" / name).read_text()
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def page_fields():
    """{struct: {field: offset}}: the tables under the headings that name a struct."""
    found = {}
    for struct, table in re.findall(r"^### `struct (\w+)`\n.*?^\| offset \| field \|.*?\n(.*?)\n\n",
                                    WINDOW_PAGE.read_text(), re.MULTILINE | re.DOTALL):
        rows = re.findall(r"^\| (0x[0-9a-f]+|\d+) \| `(\w+)` \|", table, re.MULTILINE)
        found[struct] = {field: int(offset, 0) for offset, field in rows}
    return found


def test_every_offset_in_the_windows_page_is_the_compilers(tmp_path):
    documented = page_fields()
    assert set(documented) == {"vgpu_window_header", "vgpu_slot_guest", "vgpu_slot_host",
                               "vgpu_descriptor", "vgpu_completion"}
    lines = "".join(f'printf("{struct} {field} %zu\\n", offsetof(struct {struct}, {field}));\n'
                    for struct, fields in documented.items() for field in fields)
    source = tmp_path / "offsets.c"
    source.write_text('#include "vgpu/window.h"\n#include <stdio.h>\n'
                      f"int main(void) {{\n{lines}return 0;\n}}\n")
    built = run("gcc", f"-I{REPOSITORY}/include", "-o", tmp_path / "offsets", source)
    assert built.returncode == 0, built.stdout
    told = {}
    for line in run(tmp_path / "offsets").stdout.splitlines():
        struct, field, offset = line.split()
        told.setdefault(struct, {})[field] = int(offset)
    assert told == documented


@pytest.mark.parametrize("struct", ["vgpu_window_header", "vgpu_slot_guest", "vgpu_slot_host",
                                    "vgpu_completion"])
def test_every_field_of_a_structure_is_in_the_windows_page(struct):
    body = re.search(rf"struct {struct} \{{(.*?)\n\}};", header_text("window.h"), re.DOTALL)[1]
    fields = set(re.findall(r"(\w+)(?:\[\d+\])?;", body))
    assert {field for field in fields if not field.startswith("pad")} == set(page_fields()[struct])


def test_the_parts_of_a_slot_are_where_the_windows_page_says():
    defined = {name: int(value, 16) for name, value in re.findall(
        r"#define (VGPU_SLOT_[A-Z]+) (0x[0-9a-f]+)u", header_text("window.h"))}
    shown = {name: int(value, 16) for value, name in re.findall(
        r"^\| (0x[0-9a-f]+) \| `(VGPU_SLOT_[A-Z]+)`", WINDOW_PAGE.read_text(), re.MULTILINE)}
    assert len(shown) == 6
    assert shown == defined


@pytest.mark.parametrize("header, enum, prefix, column", [
    ("window.h", "vgpu_opcode", "VGPU_OP_", "operation"),
    ("window.h", "vgpu_status", "VGPU_", "status"),
    ("link.h", "vgpu_link_type", "VGPU_LINK_", "message")])
def test_every_number_of_the_protocol_is_in_the_windows_page(header, enum, prefix, column):
    body = re.search(rf"enum {enum} \{{(.*?)\}};", header_text(header), re.DOTALL)[1]
    defined = {name: int(number) for name, number in re.findall(rf"{prefix}(\w+) = (\d+)", body)}
    table = re.search(rf"^\| number \| {column} \|.*?\n\n", WINDOW_PAGE.read_text(),
                      re.MULTILINE | re.DOTALL)[0]
    shown = {name: int(number) for number, name in re.findall(r"^\| (\d+) \| `(\w+)` \|", table,
                                                              re.MULTILINE)}
    assert shown == defined


def arrows_of_the_window():
    """[(arrow, its tests)]: the rows of the three state machines."""
    found, inside = [], False
    for line in WINDOW_PAGE.read_text().splitlines():
        if not line.startswith("|"):
            inside = False
        elif line.endswith("| walked by |"):
            inside = True
        elif inside and not line.startswith("|---"):
            cells = line.strip("| ").split(" | ")
            found.append((cells[0], re.findall(r"`(test_\w+)`", cells[-1])))
    return found


def test_every_arrow_of_a_state_machine_is_walked_by_a_test_that_exists():
    arrows = arrows_of_the_window()
    assert len(arrows) > 20
    tests = set()
    for path in source_files((".py",)):
        if path.name.startswith("test_"):
            tests |= set(re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE))
    assert [arrow for arrow, names in arrows if not names or not set(names) <= tests] == []
