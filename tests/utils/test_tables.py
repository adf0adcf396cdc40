"""Markdown tables."""

import pytest

from wsfvit.utils.tables import markdown_table


def test_aligned_and_plain_tables() -> None:
    content = ["name", "ms"], [["a", "1.5"], ["longer", "20"]]
    assert markdown_table(*content).splitlines() == [
        "| name   |  ms |",
        "| ------ | --: |",
        "| a      | 1.5 |",
        "| longer |  20 |",
    ]
    assert markdown_table(*content, aligned=False).splitlines() == [
        "| name | ms |",
        "|---|---|",
        "| a | 1.5 |",
        "| longer | 20 |",
    ]


def test_a_row_with_too_many_cells_is_refused() -> None:
    with pytest.raises(ValueError):
        markdown_table(["name"], [["a", "b"]])
