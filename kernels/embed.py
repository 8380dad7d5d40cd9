#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""embed.py OUTPUT NAME FILE: C source with the file's text as NAME[], and NAME_bytes."""

import pathlib
import sys

output, name, file = sys.argv[1:]
lines = pathlib.Path(file).read_text().splitlines()
text = ("/* Made by embed.py. */\n#include <stddef.h>\n\n"
        f"extern const char {name}[];\nextern const size_t {name}_bytes;\n\n"
        f"const char {name}[] =\n")
for line in lines:
    escaped = line.replace("\\", "\\\\").replace('"', '\\"').replace("\t", "\\t")
    text += f'    "{escaped}\\n"\n'
pathlib.Path(output).write_text(text + f";\nconst size_t {name}_bytes = sizeof({name}) - 1;\n")
