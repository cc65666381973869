from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest

from bounds.errors import DataError
from verify.records import Configuration
from verify.suites import Listed, families, find_lists, read_list, read_suite, spread

TOOL = Configuration("ringfence", "1", {})


def write(folder: Path, text: str, *, files: tuple[str, ...] = ("a.onnx", "p.vnnlib")) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in files:
        (folder / name).write_text(name)
    (folder / "instances.csv").write_text(text)
    return folder / "instances.csv"


@pytest.mark.parametrize(
    "text",
    [
        "a.onnx,p.vnnlib,20\nb.onnx,q.vnnlib,1.5\n",
        "onnx,vnnlib,timeout\na.onnx,p.vnnlib,20\n\nb.onnx,q.vnnlib,1.5",
        "\ufeffonnx, vnnlib, timeout_s, expected\na.onnx, p.vnnlib, 20.0,\nb.onnx,q.vnnlib,1.5, \n",
        "vnnlib,timeout,onnx\np.vnnlib,20,a.onnx\nq.vnnlib,1.5,b.onnx\n",
        "onnx,vnnlib,timeout_s,comment\r\na.onnx,p.vnnlib,20,x\r\nb.onnx,q.vnnlib,1.5,y\r\n",
    ],
)
def test_layouts(tmp_path: Path, text: str) -> None:
    assert read_list(write(tmp_path, text)) == [Listed("a.onnx", "p.vnnlib", 20.0, ""), Listed("b.onnx", "q.vnnlib", 1.5, "")]


def test_expected_column(tmp_path: Path) -> None:
    path = write(tmp_path, "a.onnx,p.vnnlib,20,sat\na.onnx,q.vnnlib,20,UNSAT\na.onnx,r.vnnlib,20,\n")
    assert [row.expected for row in read_list(path)] == ["sat", "unsat", ""]


@pytest.mark.parametrize(
    "text, told",
    [
        ("onnx,vnnlib,timeout\na.onnx,p.vnnlib,20\na.onnx,p.vnnlib\n", "line 3 has no timeout"),
        ("a.onnx\n", "line 1 has no vnnlib and no timeout"),
        ("a.onnx,,20\n", "line 1 has no vnnlib"),
        ("a.onnx,p.vnnlib,soon\n", "line 1 has the timeout 'soon'"),
        ("a.onnx,p.vnnlib,-1\n", "line 1 has the timeout '-1'"),
        ("a.onnx,p.vnnlib,nan\n", "line 1 has the timeout 'nan'"),
        ("a.onnx,p.vnnlib,20,maybe\n", "line 1 expects 'maybe'"),
        ("onnx,vnnlib\na.onnx,p.vnnlib\n", "line 2 has no timeout"),
        ("", "no instance in it"),
        ("onnx,vnnlib,timeout\n", "no instance in it"),
    ],
)
def test_malformed_lists_are_refused_by_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_list(write(tmp_path, text))


def test_a_list_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "instances.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot be read"):
        read_list(tmp_path / "instances.csv")


def test_tasks(tmp_path: Path) -> None:
    path = write(tmp_path / "acas", "onnx/../a.onnx,p.vnnlib,20,sat\n")
    (tmp_path / "acas" / "onnx").mkdir()
    (one,) = read_suite([path], None)
    assert one.instance.family == "acas"
    assert one.instance.name == "a p"
    assert (one.instance.limit_s, one.instance.expected, one.broken) == (20.0, "sat", None)
    assert one.instance.network_hash == hashlib.sha256(b"a.onnx").hexdigest()
    assert one.instance.spec_hash == hashlib.sha256(b"p.vnnlib").hexdigest()
    assert read_suite([path], 3.0)[0].instance.limit_s == 3.0


def test_gzipped_files_are_found_and_hash_the_same(tmp_path: Path) -> None:
    plain = read_suite([write(tmp_path / "a", "a.onnx,p.vnnlib,20\n")], None)[0]
    path = write(tmp_path / "b", "a.onnx,p.vnnlib,20\n", files=())
    for name in ("a.onnx", "p.vnnlib"):
        (tmp_path / "b" / f"{name}.gz").write_bytes(gzip.compress(name.encode()))
    packed = read_suite([path], None)[0]
    assert packed.model.name == "a.onnx.gz"
    assert packed.instance.key(TOOL) == plain.instance.key(TOOL)


def test_missing_files_cost_their_rows_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "a.onnx,none.vnnlib,20\nnone.onnx,p.vnnlib,20\na.onnx,p.vnnlib,20\n")
    (tmp_path / "p.vnnlib.gz").write_bytes(b"not used: the plain file is there")
    tasks = read_suite([path], None)
    assert [t.broken is None for t in tasks] == [False, False, True]
    assert "none.vnnlib: cannot be read" in (tasks[0].broken or "")
    assert len({t.instance.key(TOOL) for t in tasks}) == 3


def test_damaged_gzip_costs_its_row_alone(tmp_path: Path) -> None:
    path = write(tmp_path, "a.onnx,q.vnnlib,20\n")
    (tmp_path / "q.vnnlib.gz").write_bytes(gzip.compress(b"text")[:-6])
    assert "q.vnnlib.gz: cannot be read" in (read_suite([path], None)[0].broken or "")


def test_what_a_suite_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = write(tmp_path / "data" / "one", "a.onnx,p.vnnlib,20\n")
    two = write(tmp_path / "data" / "two", "a.onnx,p.vnnlib,20\n")
    (tmp_path / "data" / "empty").mkdir()
    assert find_lists(str(one), None) == [one]
    assert find_lists(str(one.parent), None) == [one]
    assert find_lists(str(tmp_path / "data"), None) == [one, two]
    assert find_lists("two", tmp_path / "data") == [two]
    assert find_lists("one", tmp_path / "data" / "one") == [one]
    monkeypatch.chdir(tmp_path)
    assert find_lists("data/one", None) == [one.relative_to(tmp_path)]
    assert [t.instance.family for t in read_suite(find_lists("data/one", None), None)] == ["one"]
    for suite, folder in (("three", tmp_path / "data"), ("nowhere", None), ("data/empty", None)):
        with pytest.raises(DataError, match="no suite"):
            find_lists(suite, folder)


def test_every_so_many_of_each_family(tmp_path: Path) -> None:
    text = "".join(f"a.onnx,p.vnnlib,{limit}\n" for limit in range(1, 6))
    tasks = read_suite([write(tmp_path / "one", text), write(tmp_path / "two", "".join(text.splitlines(True)[:2]))], None)
    assert spread(tasks, 1) == tasks
    chosen = [(task.instance.family, task.instance.limit_s) for task in spread(tasks, 2)]
    assert chosen == [("one", 1.0), ("one", 3.0), ("one", 5.0), ("two", 1.0)]
    assert [task.instance.family for task in spread(tasks, 9)] == ["one", "two"]


def test_families(tmp_path: Path) -> None:
    lists = [write(tmp_path / name, "a.onnx,p.vnnlib,20\n") for name in ("one", "two")]
    tasks = read_suite(lists, None)
    assert families(tasks, []) == tasks
    assert families(tasks, ["two"]) == tasks[1:]
    with pytest.raises(DataError, match="no family 'three'; there are one, two"):
        families(tasks, ["three"])
