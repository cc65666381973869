"""Lines of results: kept as they come, and a cut-off one costs no other."""

from __future__ import annotations

from pathlib import Path

from benchmarks.lines import append_line, read_lines


def test_lines_are_read_back_and_a_cut_one_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "found.jsonl"
    assert read_lines(path) == []
    append_line(path, {"index": 1, "name": "é"})
    append_line(path, {"index": 2})
    with path.open("a") as file:
        file.write('{"index": 3, "na')
    assert read_lines(path) == [{"index": 1, "name": "é"}, {"index": 2}]
