# SPDX-License-Identifier: Apache-2.0
"""The report of a soak: one JSON object, and the same as a text for people."""

import json
import os
import pathlib
import re
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _output_of(*argv):
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=ROOT)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _first(pattern, text):
    found = re.search(pattern, text, re.MULTILINE)
    return found[1] if found else "unknown"


def machine(accelerator):
    """{word: what} of where it runs."""
    memory_kib = int(_first(r"^MemTotal:\s+(\d+) kB", pathlib.Path("/proc/meminfo").read_text()))
    return {
        "cpu": _first(r"^model name\s*: (.*)$", pathlib.Path("/proc/cpuinfo").read_text()),
        "cores": os.cpu_count(),
        "memory_mib": memory_kib // 1024,
        "kernel": os.uname().release,
        "system": _first(r'^PRETTY_NAME="(.*)"', pathlib.Path("/etc/os-release").read_text()),
        "qemu": _first(r"version (\S+)", _output_of("qemu-system-x86_64", "--version")),
        "accelerator": accelerator,
    }


def source():
    """The commit, with a + where files differ from it."""
    commit = _output_of("git", "rev-parse", "--short=12", "HEAD")
    return (commit or "unknown") + ("+" if _output_of("git", "status", "--porcelain") else "")


def now():
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def _lines(value, indent=""):
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield f"{indent}{key}"
            yield from _lines(item, indent + "  ")
        elif isinstance(item, (dict, list)):
            yield f"{indent}{key}: {', '.join(map(str, item)) or 'none'}"
        else:
            yield f"{indent}{key}: {item}"


def text(result):
    """For people: verdict first, then what is wrong, then the figures."""
    shown = {key: value for key, value in result.items()
             if key not in ("verdict", "problems", "samples")}
    problems = result["problems"]
    head = [f"{'PASSED' if result['verdict'] == 'passed' else 'FAILED'}: {result['command']}"]
    return "\n".join(head + [f"  wrong: {problem}" for problem in problems]
                     + list(_lines(shown))) + "\n"


def write(result, directory):
    """Writes DIR/soak-<date>-<duration>s.json and .txt; returns their paths.

    The verdict is set here: no problem, passed.
    """
    result["verdict"] = "failed" if result["problems"] else "passed"
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"soak-{result['date'].split()[0]}-{result['duration_s']}s"
    data, words = directory / f"{stem}.json", directory / f"{stem}.txt"
    data.write_text(json.dumps(result, indent=1) + "\n")
    words.write_text(text(result))
    return data, words
