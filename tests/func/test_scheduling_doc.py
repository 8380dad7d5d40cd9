# SPDX-License-Identifier: Apache-2.0
"""docs/scheduling.md: the commands in it print what it shows, and its plots are theirs.

When one of these fails, the scheduler does something else than the document
says: look whether that is meant, then `make docs-scheduling` and read the text
around the figures again.
"""

import importlib.machinery
import importlib.util
import itertools
import os
import pathlib
import re
import shlex
import subprocess
import xml.etree.ElementTree as ElementTree

import pytest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("VGPU_BUILD_DIR", REPOSITORY / "build")).resolve()
SIM = BUILD / "src/sim/vgpu-sim"
DOCUMENT = REPOSITORY / "docs/scheduling.md"
TOLERANCE, LEAST = 0.10, 0.05

# Of one operation among ten thousands, or of few events: said, but not promised.
RARE = {"p99.9 ms", "max ms", "turn ms", "inversions", "grant ms"}


def load_script():
    path = str(REPOSITORY / "scripts/scheduling-doc")
    loader = importlib.machinery.SourceFileLoader("scheduling_doc", path)
    spec = importlib.util.spec_from_loader("scheduling_doc", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


script = load_script()
BLOCKS = [(match[1], match[2]) for match in script.BLOCK.finditer(DOCUMENT.read_text())]


def block_id(block):
    return re.search(r"docs/scheduling/(\w+)\.ini", block[0])[1]


each_block = pytest.mark.parametrize("block", BLOCKS, ids=block_id)


@pytest.fixture(scope="module", name="made")
def made_fixture(tmp_path_factory):
    """{command: (output, directory of its plots, their place in the tree)}"""
    found = {}
    for command, _ in BLOCKS:
        directory = tmp_path_factory.mktemp("plots")
        output, place = script.run_command(SIM, command, directory)
        found[command] = (output, directory, place)
    return found


def figures(output):
    """{(table, row, column): text}; tables are divided by empty lines and have a header."""
    found = {}
    for number, table in enumerate(output.strip().split("\n\n")):
        header, *rows = table.splitlines()
        columns = [(match.end(), match[0]) for match in re.finditer(r"\S+(?: (?:ms|%))?", header)]
        names = [name for _, name in columns]
        columns = columns[names.index("policy") + 1:]
        for line in rows:
            # Numbers end where their column's name does, and have no blanks.
            row = " ".join(line[:columns[0][0]].split()[:-1])
            for end, name in columns:
                found[number, row, name] = line[:end].split()[-1]
    return found


def is_near(a, b):
    return abs(float(a) - float(b)) <= max(LEAST, TOLERANCE * abs(float(a)))


def differences(shown, told):
    assert shown.keys() == told.keys()
    return {key: (shown[key], told[key]) for key in shown
            if key[2] not in RARE and not is_near(shown[key], told[key])}


@each_block
def test_the_figures_are_those_of_the_scheduler(block, made):
    shown = figures(block[1])
    assert len(shown) > 50
    assert differences(shown, figures(made[block[0]][0])) == {}


def texts_of(path):
    """All but the marks at the axes."""
    root = ElementTree.parse(path).getroot()
    return {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")
            if not re.fullmatch(r"[\d.]+", element.text)}


@each_block
def test_the_plots_are_those_of_the_commands(block, made):
    _, directory, place = made[block[0]]
    kept = sorted((REPOSITORY / place).glob("*.svg"))
    assert kept
    for path in kept:
        assert f"({path.relative_to(DOCUMENT.parent)})" in DOCUMENT.read_text(), "it is not shown"
        assert texts_of(path) == texts_of(directory / path.name)


def test_a_figure_that_is_wrong_is_noticed(made):
    shown = figures(made[BLOCKS[0][0]][0])
    wrong = {**shown, (0, "low strict", "p99 ms"): "60.0"}
    assert list(differences(shown, wrong)) == [(0, "low strict", "p99 ms")]


def test_what_the_text_says_of_the_figures_is_so(made):
    by_name = {block_id(block): figures(made[block[0]][0]) for block in BLOCKS}

    def figure(name, *key):
        return float(by_name[name][key])

    def high(setting, name="p99 ms", document="mixed"):
        return figure(document, 0, f"high {setting}", name)

    assert 4 * high("strict") <= high("round-robin")
    for name, share in [("p50 ms", 0.25), ("p95 ms", 0.34), ("p99 ms", 0.34), ("p99.9 ms", 0.55)]:
        assert high("strict", name) < share * high("fifo:grant_ops=1", name)
        assert figure("mixed", 0, "medium strict", name) < \
            0.23 * figure("mixed", 0, "medium fifo:grant_ops=1", name)
    for policy, share in itertools.product(["strict", "wfq"], [10, 20]):
        assert high(f"{policy}:switch_share_percent={share}", "p99 ms", "switches") < \
            1.1 * high(f"{policy}:switch_share_percent=0", "p99 ms", "switches")
    assert high("strict") < high("wfq") < high("fifo:grant_ops=1") / 2
    assert high("strict") < high("wfq:demand=yes") < high("fifo:grant_ops=1") / 2
    assert figure("mixed", 0, "low strict", "completed") > \
        0.95 * figure("mixed", 0, "low round-robin", "completed")
    assert figure("mixed", 0, "low strict:aging_ms=20", "p99 ms") < \
        figure("mixed", 0, "low strict", "p99 ms")
    assert figure("mixed", 0, "medium strict:aging_ms=20", "p99 ms") > \
        figure("mixed", 0, "medium strict", "p99 ms")
    assert figure("shares", 1, "weight 10 fifo:grant_ops=1", "share %") > 50
    assert figure("starving", 0, "low strict", "completed") == 0
    assert figure("starving", 0, "low strict:aging_ms=200", "turn ms") <= \
        400 + 6 * figure("starving", 2, "strict:aging_ms=200", "grant ms")
    assert is_near(figure("starving", 1, "low wfq", "share %"), 3)
    assert high("strict:protect_us=500:protect_inflight=1", "p95 ms", "protection") < \
        high("strict:protect_us=500", "p95 ms", "protection") < \
        high("strict", "p95 ms", "protection") < \
        high("strict:protect_ms=0", "p95 ms", "protection")
    for policy in ("strict", "wfq"):
        free = figure("switches", 2, f"{policy}:switch_share_percent=0", "busy %")
        bound = figure("switches", 2, f"{policy}:switch_share_percent=10", "busy %")
        assert free < 70 and 1.25 < bound / free < 1.4


def test_what_who_asks_seldom_waits_is_as_the_table_says():
    text = DOCUMENT.read_text()
    command = re.search(r"^\$ vgpu-sim (--brief -P strict:protect_ms=M .*\\\n.*)$", text,
                        re.MULTILINE)[1].replace("\\\n", " ")
    rows = re.findall(r"^\| (\d+) ms \| (\d+) \| (\S+) \| (\S+) \| (\S+) \| (\S+) \|$", text,
                      re.MULTILINE)
    assert len(rows) == 3
    for every_ms, protect_ms, *shown in rows:
        words = shlex.split(command.replace("=N,", f"={every_ms}000,")
                            .replace("=M ", f"={protect_ms} "))
        found = figures(subprocess.run([SIM, *words], stdout=subprocess.PIPE, text=True,
                                       check=True).stdout)
        told = [found[0, f"high strict:protect_ms={protect_ms}", name]
                for name in ("p50 ms", "p95 ms", "p99 ms", "max ms")]
        assert all(map(is_near, shown, told)), (shown, told)
        assert float(told[3]) < 4.1, "an ordinary grant, what is in flight, and its own time"
