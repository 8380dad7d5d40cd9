#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""embed.py OUTPUT SQL...: the files' text as `static const char *const steps[]`."""

import pathlib
import sys

output, *files = map(pathlib.Path, sys.argv[1:])
text = "/* Made by embed.py. */\nstatic const char *const steps[] = {\n"
for file in files:
    for line in file.read_text().splitlines():
        escaped = line.replace("\\", "\\\\").replace('"', '\\"')
        text += f'    "{escaped}\\n"\n'
    text += "    ,\n"
output.write_text(text + "};\n")
