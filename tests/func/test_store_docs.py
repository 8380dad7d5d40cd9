# SPDX-License-Identifier: Apache-2.0
"""docs/database.md says what the database is."""

import re

from store_support import probe, query
from support import REPOSITORY

PAGE = (REPOSITORY / "docs/database.md").read_text()


def test_every_column_of_every_table_is_in_the_page_and_no_other(place):
    probe("create", place / "vgpu.db")
    tables = [name for (name,) in query(place / "vgpu.db",
                                        "SELECT name FROM sqlite_master WHERE type = 'table'"
                                        " AND name NOT LIKE 'sqlite%'")]
    assert len(tables) == 4
    shown = {}
    for table, rows in re.findall(r"^### `(\w+)`\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL):
        shown[table] = re.findall(r"^\| `(\w+)` \|", rows, re.MULTILINE)
    real = {table: [column for (column,) in
                    query(place / "vgpu.db", f"SELECT name FROM pragma_table_info('{table}')")]
            for table in tables}
    assert shown == real


def test_every_version_is_in_the_page():
    steps = sorted(path.stem for path in (REPOSITORY / "src/store/schema").glob("*.sql"))
    table = PAGE[PAGE.index("| version | brought |"):]
    assert re.findall(r"^\| (\d+) \|", table[:table.index("\n\n")], re.MULTILINE) == steps
    assert f"Schema version {steps[-1]}." in PAGE


def test_every_test_that_the_page_names_exists():
    named = re.findall(r"`(test_\w+)`", PAGE)
    assert len(named) > 12
    text = "".join(path.read_text() for folder in ["func", "vm"]
                   for path in (REPOSITORY / "tests" / folder).glob("test_store*.py"))
    assert [name for name in named if f"def {name}(" not in text] == []


def test_every_message_that_the_page_explains_is_in_the_sources():
    source = "".join(path.read_text() for path in sorted(
        (REPOSITORY / "src/store").glob("*.c")))
    source = re.sub(r'"\s*"', "", source)
    table = PAGE[PAGE.index("| message | cause |"):]
    messages = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    assert len(messages) == 10
    of_sqlite = {"file is not a database", "database is locked"}
    for message in messages:
        pieces = {piece.strip(",") for piece in re.split(r"…|: |; ", message)} - of_sqlite
        missing = [piece for piece in pieces
                   if piece.removeprefix("cannot ") not in source]
        assert missing == [], message
