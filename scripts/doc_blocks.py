# SPDX-License-Identifier: Apache-2.0
"""Blocks of documents that show a command and what it prints, made anew.

    ```console
    $ vgpu-sim docs/scheduling/mixed.ini --brief
    what it prints
    ```

scripts/scheduling-doc and scripts/tuning-doc put there what their commands print now.
"""

import pathlib
import re
import shlex
import subprocess

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]


def block_pattern(program):
    """Of blocks with one command of that program: [1] the command, [2] what it prints."""
    return re.compile(rf"^```console\n\$ ({re.escape(program)} (?:[^\n]*\\\n)*[^\n]*)\n(.*?)^```$",
                      re.MULTILINE | re.DOTALL)


def words_of(command):
    """The command's words behind the program's name."""
    return shlex.split(command.replace("\\\n", " "))[1:]


def output_of(program, words):
    """What the program prints, run from the repository's root."""
    return subprocess.run([program, *words], cwd=REPOSITORY, stdin=subprocess.DEVNULL, check=True,
                          stdout=subprocess.PIPE, text=True).stdout


def remake(document, pattern, make):
    """Puts make(command, what stands there) into each block in the place of that."""
    def block(match):
        return f"```console\n$ {match[1]}\n{make(match[1], match[2])}```"

    document.write_text(pattern.sub(block, document.read_text()))
