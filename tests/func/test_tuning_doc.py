# SPDX-License-Identifier: Apache-2.0
"""docs/performance-tuning.md: its curves are what the programs do, and its plots are of its tables.

What is simulated is simulated again; what is measured depends on the machine, so here it is
only looked at whether it says where and when, and whether measuring works.  When one of the
first fails, the scheduler does something else than the document says: look whether that is
meant, then `scripts/tuning-doc --write NAME` and read the text around the figure again.

(The tables of knobs: tests/func/test_docs.py.)
"""

import importlib.machinery
import importlib.util
import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest

from support import BUILD, REPOSITORY

TOLERANCE = 0.25


def load_script():
    path = str(REPOSITORY / "scripts/tuning-doc")
    loader = importlib.machinery.SourceFileLoader("tuning_doc", path)
    spec = importlib.util.spec_from_loader("tuning_doc", loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


script = load_script()
TEXT = script.DOCUMENT.read_text()
SHOWN = {match[1].split()[1]: match[2] for match in script.BLOCK.finditer(TEXT)}
MEASURED = sorted(set(SHOWN) - set(script.SIMULATED))
each_simulated = pytest.mark.parametrize("name", sorted(script.SIMULATED))


def figures(text):
    """{panel: {series: {x: value}}}, from the tables."""
    found = {}
    for table in text.strip().split("\n\n")[1:]:
        title, header, *rows = table.splitlines()
        names = re.split(r" {2,}", header.strip())[1:]
        cells = [[float(cell.replace(",", "")) for cell in row.split()] for row in rows]
        found[title] = {name: {row[0]: row[1 + at] for row in cells}
                        for at, name in enumerate(names)}
    return found


@pytest.fixture(scope="module", name="simulated")
def simulated_fixture():
    return {name: figures(script.text_of(sweep.curves(BUILD)))
            for name, sweep in script.SIMULATED.items()}


def shape(found):
    return {title: {name: list(values) for name, values in series.items()}
            for title, series in found.items()}


def differences(shown, told):
    return [(title, name, x, value, told[title][name][x]) for title, series in shown.items()
            for name, values in series.items() for x, value in values.items()
            if abs(value - told[title][name][x]) > TOLERANCE * max(value, 0.2)]


def test_every_simulated_figure_is_in_the_document():
    assert set(script.SIMULATED) <= set(SHOWN)


@each_simulated
def test_a_simulated_figure_is_that_of_the_scheduler(name, simulated):
    shown = figures(SHOWN[name])
    assert shape(shown) == shape(simulated[name])
    assert differences(shown, simulated[name]) == []


def test_a_figure_that_is_wrong_is_noticed(simulated):
    shown = figures(SHOWN["grant"])
    title = next(iter(shown))
    shown[title]["protect_ms=0"][2000] *= 1.5
    assert [row[:3] for row in differences(shown, simulated["grant"])] == \
        [(title, "protect_ms=0", 2000)]


def test_what_the_text_says_of_the_simulated_figures_is_so(simulated):
    waits, changes = simulated["grant"].values()
    free, protected = waits["protect_ms=0"], waits["protect_ms=100"]
    assert free[20000] > 2 * free[5000] and free[1000] < 1.25 * free[100]
    assert protected[20000] < 1.1 * protected[2000]
    assert changes["protect_ms=100"][20000] > 0.9 * changes["protect_ms=100"][2000]

    waits, changes = simulated["protect"].values()
    one, two = waits["protect_inflight=1"], waits["protect_inflight=2"]
    assert all(values[2000] < waits["protect_inflight=32"][100] for values in (one, two))
    assert one[500] < 0.6 * two[2000]

    waits, others = simulated["aging"].values()
    assert all(waits["strict"][ms] < 2.5 * ms for ms in (50, 100))
    assert waits["strict"][200] == waits["strict"][1000]
    assert others["strict"][20] > 10 * others["strict"][100]
    assert others["strict"][100] < 1.5 * others["strict"][1000]

    waits, changes = simulated["demand"].values()
    assert waits["demand=yes"][10000] < waits["demand=no"][5000]
    assert changes["demand=yes"][10000] < changes["demand=no"][5000]

    busy, _ = simulated["switch"].values()
    assert busy["grant_us=2000"][0] < 70 < 80 < busy["grant_us=2000"][20]
    assert abs(busy["grant_us=2000"][5] - busy["grant_us=2000"][10]) < 1


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_a_figures_plot_is_of_its_tables(name):
    path = script.PLOTS / f"{name}.svg"
    assert f"(tuning/{name}.svg)" in TEXT
    words = {element.text for element in ElementTree.parse(path).getroot().iter(
        "{http://www.w3.org/2000/svg}text")}
    shown = figures(SHOWN[name])
    assert shown
    for title, series in shown.items():
        assert {title, *series} <= words


def test_no_plot_is_left_over():
    assert {path.stem for path in script.PLOTS.glob("*.svg")} == set(SHOWN)


@pytest.mark.parametrize("name", MEASURED)
def test_a_measured_figure_says_what_ran_and_where_and_when(name):
    command, place, runs = SHOWN[name].splitlines()[:3]
    assert re.match(r"# (bench_load|vgpu-client) ", command)
    assert re.fullmatch(r"# \d{4}-\d\d-\d\d, .+, \d+ cores, .+ backend[,;] .+;", place)
    assert re.match(r"# median of \d+ runs of [\d.]+ s; ", runs)


@pytest.mark.parametrize("own, given", [("/autogroup-7 nice 5\n", "5"), ("", "0")])
def test_a_program_measured_gets_the_precedence_of_the_measuring_one(tmp_path, own, given):
    """On a host that weighs no sessions of processes the file is empty: nothing is changed."""
    script.measured(BUILD)
    for name, text in (("self", own), ("42", "0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "autogroup").write_text(text)
    sys.modules["tuning"].process.share_precedence(42, tmp_path)
    assert (tmp_path / "42/autogroup").read_text() == given


def test_a_figure_can_be_measured_here(monkeypatch):
    tuning = script.measured(BUILD)
    assert set(tuning) == set(MEASURED)
    module = sys.modules["tuning"]
    monkeypatch.setattr(module, "ROUNDS", 1)
    monkeypatch.setattr(module, "DEPTHS", [1, 16])
    found = figures(script.text_of(tuning["depth"]()))
    assert all(value > 0 for series in found.values() for values in series.values()
               for value in values.values())
    assert len(found) == 2
