# SPDX-License-Identifier: GPL-2.0-or-later
"""Prints the flags with which QEMU compiles one of its own source files.

usage: compile-flags.py COMPILE_COMMANDS_JSON SOURCE_SUFFIX

What belongs to that one file (input, output, dependency file) is left out, and
so is -fPIE: a shared object is compiled with -fPIC.
"""
import json
import shlex
import sys

WITH_VALUE = {"-o", "-MF", "-MQ", "-MT", "-c"}
ALONE = {"-MD", "-MMD", "-fPIE"}


def flags_of(command):
    words = iter(shlex.split(command)[1:])
    for word in words:
        if word in WITH_VALUE:
            next(words)
        elif word not in ALONE:
            yield word


def main():
    path, suffix = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        entries = [e for e in json.load(file) if e["file"].endswith(suffix)]
    if len(entries) != 1:
        sys.exit(f"compile-flags: {path} names {len(entries)} files that end in "
                 f"{suffix}, expected one: this QEMU is arranged differently")
    print(" ".join(flags_of(entries[0]["command"])))


main()
