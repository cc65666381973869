from __future__ import annotations

import io
import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from bounds.errors import ClusterError, OutputError, SpecError
from tests.mnist_files import write_mnist
from tests.verify.test_cli import dense, question
from tests.verify.test_sweep import Inline
from verify.bench_command import (
    IMAGE_TIMEOUT_S,
    Wanted,
    _duration,
    _line,
    _lines,
    _table,
    choose_engine,
    choose_out,
    read_normalisation,
    read_numbers,
    read_retry,
)
from verify.cli import main
from verify.records import Instance, Outcome
from verify.results import Results
from verify.sweep import Tally
from verify.tasks import Normalisation

Runner = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Run the command line in this process and in a folder of its own: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> Inline:
    """Instead of worker processes: the first word of an instance's name is its verdict."""
    engine = Inline()
    monkeypatch.setattr("verify.bench_command.choose_engine", lambda *arguments: engine)
    return engine


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A family of four rows: verified, falsified, a missing file, and the first again."""
    folder = tmp_path / "family"
    folder.mkdir()
    dense(folder / "net.onnx")
    question(folder / "safe.vnnlib", "(>= Y_0 2.0)")
    question(folder / "unsafe.vnnlib", "(>= Y_0 0.75)")
    rows = ["net.onnx,safe.vnnlib,20,unsat", "net.onnx,unsafe.vnnlib,20,", "net.onnx,gone.vnnlib,20,sat", "net.onnx,safe.vnnlib,20,"]
    (folder / "instances.csv").write_text("onnx,vnnlib,timeout_s,expected\n" + "\n".join(rows) + "\n")
    return folder / "instances.csv"


def words(tmp_path: Path, *rows: str) -> Path:
    """A family whose instances are named so that `Inline` gives the wanted verdicts: "verdict,expected"."""
    folder = tmp_path / "words"
    folder.mkdir(exist_ok=True)
    lines = []
    for number, row in enumerate(rows):
        verdict, _, expected = row.partition(",")
        (folder / f"{verdict}.onnx").write_text(verdict)
        (folder / f"{number}.vnnlib").write_text(row + str(number))
        lines.append(f"{verdict}.onnx,{number}.vnnlib,20,{expected}")
    (folder / "instances.csv").write_text("\n".join(lines))
    return folder


def test_a_suite_from_end_to_end(run: Runner, suite: Path, tmp_path: Path) -> None:
    code, out, err = run("bench", suite, "--workers", "1", "--no-report")
    assert code == 2
    assert "1 of 3 instances ended in an error; --retry error asks them again" in err
    lines = out.splitlines()
    assert any(line.startswith("1/3  family  net gone  error") and "gone.vnnlib: cannot be read" in line for line in lines)
    assert any("family  net safe  verified" in line for line in lines)
    assert any("family  net unsafe  falsified" in line for line in lines)
    assert lines[-3].split()[:8] == ["family", "3", "0", "1", "1", "0", "1", "0"]
    assert lines[-2] == "1 instances are the same as earlier ones and were not asked again"
    assert lines[-1] == "results in family.sqlite"
    with Results.read(tmp_path / "family.sqlite") as results:
        rows = {row.instance.name: row for row in results.rows()}
        safe, unsafe = rows["net safe"].outcome, rows["net unsafe"].outcome
        assert (safe.proof, safe.semantics) == ("rigorous", "real")
        assert 0.9 < (safe.bound or 0) <= 1
        assert set(safe.seconds) == {"load", "attack", "bounds", "milp", "total"}
        assert 0 < safe.seconds["total"] <= safe.wall_s
        assert safe.peak_mb
        assert safe.cpu_s
        arrays = results.arrays(rows["net unsafe"].key)
        assert arrays["input"].shape == (2,)
        assert np.array_equal(arrays["output"], np.maximum(arrays["input"], 0))
        assert arrays["output"][0] >= 0.75
        assert np.array_equal(arrays["center"], np.zeros(2))
        assert np.array_equal(arrays["center_output"], np.zeros(2))
        assert unsafe.bound is None
        (known,) = results.runs()
        assert (known.status, known.info.engine, known.info.workers) == ("finished", "workers", 1)


def test_images_from_end_to_end(run: Runner, tmp_path: Path) -> None:
    """The demo's network, with and without a normalisation in front of it; images that it gets wrong are left out."""
    stored = np.load(ROOT / "demo" / "images.npz")
    labels = stored["labels"].copy()
    labels[1] = (labels[1] + 1) % 10
    write_mnist(tmp_path, stored["images"], labels)
    common = (
        "bench",
        "mnist",
        "--data-dir",
        tmp_path,
        "--model",
        ROOT / "demo" / "network.onnx",
        "--workers",
        "1",
        "--eps",
        "0.01,0.05",
        "--json",
    )
    code, out, err = run(*common, "--count", "3")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["total"] == document["done"] == 6
    assert list(document["families"]) == ["network linf 0.01", "network linf 0.05"]
    with Results.read(tmp_path / "mnist.sqlite") as results:
        rows = list(results.rows())
        asked = [row.instance.question or {} for row in rows]
        assert sorted((q["eps"], q["index"]) for q in asked) == [(eps, index) for eps in (0.01, 0.05) for index in (0, 2, 3)]
        assert all(q["label"] == labels[q["index"]] and q["dataset"] == "mnist" and q["norm"] == "inf" for q in asked)
        for row in (row for row in rows if row.outcome.verdict == "falsified"):
            arrays = results.arrays(row.key)
            index = (row.instance.question or {})["index"]
            assert np.array_equal(arrays["center"][0], stored["images"][index].astype(np.float32) / np.float32(255))
            assert int(arrays["center_output"].argmax()) == labels[index] != int(arrays["output"].argmax())
    code, out, _ = run(*common, "--count", "3", "--mean", "0", "--std", "1")
    again = json.loads(out)
    assert code == 0
    assert again["asked"] == 6
    assert {n: f["verified"] for n, f in again["families"].items()} == {n: f["verified"] for n, f in document["families"].items()}
    code, _, err = run(*common, "--count", "9")
    assert (code, "9 images were asked for; only 7 of the 8 of mnist here are classified correctly" in err) == (2, True)


def test_the_same_command_goes_on(run: Runner, tmp_path: Path, inline: Inline) -> None:
    folder = words(tmp_path, "verified", "unknown", "falsified,sat")
    inline.stop_after = 2
    code, out, err = run("bench", folder)
    assert code == 130
    assert "interrupted; 2 answers kept in words.sqlite; the same command goes on" in err
    assert out.splitlines()[-2].split()[:4] == ["words", "2", "1", "1"]
    inline.stop_after = None
    assert run("bench", folder)[0] == 0
    assert len(inline.asked) == 3
    assert run("bench", folder, "--retry", "unknown")[0] == 0
    assert len(inline.asked) == 4


def test_a_contradiction_is_exit_code_4(run: Runner, tmp_path: Path, inline: Inline) -> None:
    folder = words(tmp_path, "verified,sat", "falsified,unsat", "error", "verified,unsat")
    code, out, _ = run("bench", folder, "--no-report")
    assert code == 4
    assert "WRONG, expected sat" in out
    assert "2 VERDICTS CONTRADICT what is expected" in out
    code, out, _ = run("bench", folder, "--json")
    assert (code, json.loads(out)["wrong"], json.loads(out)["asked"]) == (4, 2, 0)


def test_json_is_one_document(run: Runner, tmp_path: Path, inline: Inline) -> None:
    code, out, err = run("bench", words(tmp_path, "verified", "unknown", "unknown"), "--json", "--out", "r.sqlite")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["schema"] == "ringfence/1"
    assert document["results"] == "r.sqlite"
    assert (document["total"], document["done"], document["verified"], document["unknown"], document["wrong"]) == (3, 3, 1, 2, 0)
    assert document["families"]["words"]["unknown"] == 2


def test_count_and_family_and_timeout(run: Runner, tmp_path: Path, inline: Inline) -> None:
    folder = words(tmp_path, "verified", "unknown", "falsified")
    assert json.loads(run("bench", folder, "--count", "2", "--json")[1])["total"] == 2
    assert json.loads(run("bench", folder, "--every", "2", "--json", "--out", "e.sqlite")[1])["falsified"] == 1
    with Results.read(tmp_path / "e.sqlite") as results:
        assert [row.outcome.verdict for row in results.rows()] == ["verified", "falsified"]
    assert json.loads(run("bench", tmp_path, "--family", "words", "--timeout", "3", "--json", "--out", "t.sqlite")[1])["total"] == 3
    with Results.read(tmp_path / "t.sqlite") as results:
        assert {row.instance.limit_s for row in results.rows()} == {3.0}
        assert next(iter(results.configurations().values())).options["timeout"] == 3.0


def test_options_are_stored_and_other_options_ask_again(
    run: Runner, tmp_path: Path, inline: Inline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("verify.commands._second_solver", lambda: "second")
    folder = words(tmp_path, "verified")
    assert run("bench", folder)[0] == 0
    changed = ("--seed", "3", "--memory-limit", "1GB", "--semantics", "float32-any-order", "--confirm")
    assert run("bench", folder, *changed)[0] == 0
    assert len(inline.asked) == 2
    with Results.read(tmp_path / "words.sqlite") as results:
        first, second = (known.options for known in results.configurations().values())
    assert (first["seed"], first["semantics"], first["confirm"], first["timeout"]) == (0, "real", None, None)
    assert (second["seed"], second["semantics"], second["confirm"]) == (3, "float32-any-order", "second")
    assert (second["memory_mb"], second["device"]) == (1024.0, "cpu")


def test_a_data_set_is_fetched_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = np.load(ROOT / "demo" / "images.npz")

    def fetch(name: str, folder: Path | None) -> Path:
        assert (name, folder) == ("mnist", None)
        write_mnist(tmp_path, stored["images"], stored["labels"])
        return tmp_path

    monkeypatch.setattr("verify.download.download", fetch)
    wanted = Wanted("mnist", models=(ROOT / "demo" / "network.onnx",), eps=(0.01,), radius=True, count=2, download=True)
    tasks = wanted.tasks(lambda line: None)
    assert [(task.instance.question or {})["eps"] for task in tasks] == [0.01, 0.01, None, None]
    assert {task.instance.limit_s for task in tasks} == {IMAGE_TIMEOUT_S}
    assert {task.instance.limit_s for task in replace(wanted, timeout=5.0).tasks(lambda line: None)} == {5.0}


def test_a_page_at_the_end(run: Runner, tmp_path: Path, inline: Inline) -> None:
    folder = words(tmp_path, "verified")
    code, out, _ = run("bench", folder)
    assert (code, out.splitlines()[-1]) == (0, "report in words.html")
    assert b"<html" in (tmp_path / "words.html").read_bytes()
    assert run("bench", folder, "--report", "page.html")[1].splitlines()[-1] == "report in page.html"
    assert (tmp_path / "page.html").exists()
    assert "report" not in run("bench", folder, "--no-report", "--out", "quiet.sqlite")[1]
    assert not (tmp_path / "quiet.html").exists()


def test_a_page_that_cannot_be_written_hides_no_verdict(
    run: Runner, tmp_path: Path, inline: Inline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **settings: object) -> None:
        raise OutputError("page: cannot be written")

    monkeypatch.setattr("verify.report.write_html", full)
    for verdict, expected_code in (("verified,sat", 4), ("verified", 2)):
        code, out, err = run("bench", words(tmp_path, verdict), "--out", f"{expected_code}.sqlite")
        assert code == expected_code
        assert f"results in {expected_code}.sqlite" in out
        assert f"page: cannot be written; make the page with: ringfence report {expected_code}.sqlite --html PAGE" in err
        with Results.read(tmp_path / f"{expected_code}.sqlite") as results:
            assert [row.outcome.verdict for row in results.rows()] == ["verified"]


@pytest.mark.parametrize(
    "arguments, told",
    [
        (("--report", "none/page.html"), "cannot write none/page.html: no folder none"),
        (("--report", "words"), "cannot write words: it is a folder"),
        (("--report", "r.sqlite"), "r.sqlite cannot hold both the results and the page"),
        (("--report", "here/../r.sqlite"), "cannot hold both"),
        (("--family", "words", "--out", "words"), "cannot write words: it is a folder"),
        (("--out", "null"), "cannot write null: it is a device"),
    ],
)
def test_places_are_looked_at_before_anything_is_asked(
    run: Runner, tmp_path: Path, inline: Inline, arguments: tuple[str, ...], told: str
) -> None:
    folder = words(tmp_path, "verified")
    (tmp_path / "here").mkdir()
    (tmp_path / "null").symlink_to(os.devnull)
    out = () if "--out" in arguments else ("--out", "r.sqlite")
    code, _, err = run("bench", folder, *out, *arguments)
    assert (code, inline.asked, len(err.splitlines())) == (2, [], 1)
    assert told in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "null", "words"]


@pytest.mark.parametrize(
    "text, told",
    [
        ("a.onnx,p.vnnlib,20\na.onnx,p.vnnlib\n", "line 2 has no timeout"),
        ("a.onnx,p.vnnlib,20,sat\na.onnx,p.vnnlib,20,unsat\n", "is expected to be sat in one row and unsat in another"),
    ],
)
def test_lists_that_cannot_be_asked_leave_nothing_behind(run: Runner, tmp_path: Path, inline: Inline, text: str, told: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    for name in ("a.onnx", "p.vnnlib"):
        (tmp_path / name).write_text(name)
    code, out, err = run("bench", "list.csv")
    assert (code, out, inline.asked, len(err.splitlines())) == (2, "", [], 1)
    assert told in err
    assert not list(tmp_path.glob("*.sqlite*"))


def test_a_file_of_another_version_is_refused_and_kept(run: Runner, tmp_path: Path, inline: Inline) -> None:
    assert run("bench", words(tmp_path, "verified"))[0] == 0
    with sqlite3.connect(tmp_path / "words.sqlite") as connection:
        connection.execute("PRAGMA user_version = 9")
    connection.close()
    before = (tmp_path / "words.sqlite").read_bytes()
    code, _, err = run("bench", words(tmp_path, "verified", "unknown"))
    assert (code, inline.asked) == (2, ["verified 0"])
    assert "words.sqlite: schema version 9, this ringfence reads and writes version 1" in err
    assert (tmp_path / "words.sqlite").read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="limits on the size of files as POSIX has them")
def test_a_full_disk_keeps_what_is_answered(run: Runner, tmp_path: Path, inline: Inline) -> None:
    """A limit on the size of files stands in for the disk; without it the same command goes on."""
    folder = words(tmp_path, *["verified"] * 60)
    script = (
        "import resource; from tests.verify.test_sweep import Inline; import verify.bench_command as bench; from verify.cli import main\n"
        "bench.choose_engine = lambda *arguments: Inline()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))\n"
        f"main(['bench', {str(folder)!r}, '--no-report', '--out', {str(tmp_path / 'r.sqlite')!r}])"
    )
    full = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert full.returncode == 2
    assert "finished results in it are kept" in full.stderr
    with Results.read(tmp_path / "r.sqlite") as results:
        kept = sum(1 for _ in results.rows())
    assert 0 < sum("/60  " in line for line in full.stdout.splitlines()) <= kept < 60
    assert run("bench", folder, "--no-report", "--out", tmp_path / "r.sqlite")[0] == 0
    assert len(inline.asked) == 60 - kept
    with Results.read(tmp_path / "r.sqlite") as results:
        assert [row.attempts for row in results.rows()] == [1] * 60


@pytest.mark.parametrize(
    "arguments, told",
    [
        (("nowhere",), "no suite 'nowhere'"),
        (("mnist",), "also needs --model"),
        (("mnist", "--model", "net.onnx"), "also needs --eps"),
        (("mnist", "--model", "net.onnx", "--eps", "0.1"), "also needs --data-dir DIR"),
        (("mnist", "--model", "net.onnx", "--eps", "0.1", "--data-dir", "."), "net.onnx: no such ONNX file"),
        (("mnist", "--model", "words/verified.onnx", "--eps", "-1", "--data-dir", "."), "eps must be finite"),
        (("mnist", "--model", "words/verified.onnx", "--eps", "0.1", "--norm", "3", "--data-dir", "."), "unknown norm"),
        (("mnist", "--model", "words/verified.onnx", "--eps", "0.1", "--data-dir", "gone"), "gone: no such folder"),
        (("mnist", "--family", "f", "--model", "n", "--eps", "0.1"), "--family goes with lists"),
        (("mnist", "--every", "2", "--model", "n", "--eps", "0.1"), "--every goes with lists"),
        (("words", "--eps", "0.1"), "--eps goes with the suites mnist and cifar10"),
        (("words", "--model", "n.onnx"), "--model goes with the suites"),
        (("words", "--family", "other"), "no family 'other'; there are words"),
        (("words", "--retry", "verified"), "cannot retry 'verified'"),
        (("words", "--engine", "cloud"), "unknown engine 'cloud'; use local or ray"),
        (("words", "--address", "auto"), "--address goes with --engine ray"),
        (("words", "--radius"), "--radius goes with the suites"),
        (("words", "--device", "abacus"), "abacus"),
        (("words", "--semantics", "int8"), "unknown semantics 'int8'"),
        (("words", "--mean", "0.5"), "--mean and --std go together"),
        (("words", "--out", "none/r.sqlite"), "no folder none"),
        (("words", "--out", "words/0.vnnlib"), "not a results file"),
        (("words", "--workers", "0"), "--workers"),
    ],
)
def test_bad_usage_is_one_line(run: Runner, tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    words(tmp_path, "verified")
    code, out, err = run("bench", *arguments)
    assert (code, out) == (2, "")
    assert told in err
    assert len(err.splitlines()) == 1


def test_two_sweeps_on_one_file(run: Runner, tmp_path: Path, inline: Inline) -> None:
    with Results.write(tmp_path / "words.sqlite"):
        code, _, err = run("bench", words(tmp_path, "verified"))
    assert (code, inline.asked) == (2, [])
    assert "words.sqlite: another process is writing to it" in err


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="signals of a terminal")
def test_ctrl_c_keeps_what_is_answered(tmp_path: Path) -> None:
    """The interrupt goes to the whole process group, as a terminal sends it."""
    folder = tmp_path / "family"
    folder.mkdir()
    dense(folder / "net.onnx")
    rows = []
    for number in range(400):
        question(folder / f"{number}.vnnlib", f"(>= Y_0 {2 + number})")
        rows.append(f"net.onnx,{number}.vnnlib,20,unsat")
    (folder / "instances.csv").write_text("\n".join(rows))
    command = [
        sys.executable,
        "-c",
        "from verify.cli import main; main()",
        "bench",
        str(folder),
        "--workers",
        "2",
        "--out",
        str(tmp_path / "r.sqlite"),
    ]
    driver = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert driver.stdout is not None
    for _ in range(5):
        assert driver.stdout.readline()
    os.killpg(driver.pid, signal.SIGINT)
    out, err = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert len(err.splitlines()) == 1
    assert "interrupted" in err
    with Results.read(tmp_path / "r.sqlite") as results:
        stored = sum(row.outcome.verdict == "verified" for row in results.rows())
        assert 5 <= stored < 400
        assert [known.status for known in results.runs()] == ["interrupted"]
    assert out.splitlines()[-2].split()[1:3] == [str(stored), str(400 - stored)]
    deadline = time.monotonic() + 10
    while _group_lives(driver.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _group_lives(driver.pid)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def tally() -> Tally:
    now = Tally(left=10, asked=4, began=time.monotonic() - 8)
    for name, verdicts, wrong in (("acasxu", ("verified", "falsified"), False), ("vit", ("unknown", "verified"), True)):
        count = now.family(name)
        count.total = 5
        for verdict in verdicts:
            count.add(verdict, wrong and verdict == "verified", 2.0)
    return now


def test_the_table_on_a_terminal() -> None:
    text = io.StringIO()
    engine = Inline()
    engine.running = lambda: [("net prop", 3.2)]  # type: ignore[method-assign]
    Console(file=text, width=110).print(_table(tally(), engine))
    lines = [line.replace("│", " ").split() for line in text.getvalue().splitlines()]
    assert ["acasxu", "2", "3", "1", "1", "0", "0", "0", "4.0"] in lines
    assert ["vit", "2", "3", "1", "0", "1", "0", "1", "4.0"] in lines
    assert ["all", "4", "6", "2", "1", "1", "0", "1", "8.0"] in lines
    assert ["about", "12", "s", "left"] in lines
    assert ["net", "prop", "3", "s"] in lines


def test_a_line_in_a_pipe() -> None:
    instance = Instance("vit", "net prop", "n", "s", "a", "b", "sat")
    text = _line(instance, Outcome("verified", wall_s=1.5), tally())
    assert text == "4/10  vit  net prop  verified  1.50 s  WRONG, expected sat"
    assert _line(instance, Outcome("unknown", "time limit", wall_s=1.5), tally()).endswith("unknown  1.50 s  time limit")
    assert _line(instance, Outcome("measured", radius_lower=0.125, wall_s=1.5), tally()).endswith("measured  1.50 s  radius at least 0.125")


def test_measured_radii_have_a_column() -> None:
    now = tally()
    now.family("vit").add("measured", False, 1.0)
    head, *rows = _lines(now)
    assert head.split() == ["family", "done", "left", "measured", "verified", "falsified", "unknown", "error", "wrong", "seconds"]
    assert rows[1].split() == ["vit", "3", "2", "1", "1", "0", "1", "0", "1", "5.0"]
    assert "measured" not in _lines(tally())[0]


def test_small_things_are_read() -> None:
    assert read_retry(None) == []
    assert read_retry("unknown, error") == ["unknown", "error"]
    assert read_numbers("0.1, 2/255".replace("2/255", "0.5"), "--eps") == (0.1, 0.5)
    assert read_normalisation("0.1,0.2", "1,2") == Normalisation((0.1, 0.2), (1.0, 2.0))
    with pytest.raises(SpecError, match="go together"):
        read_normalisation("0.1,0.2", "1")
    with pytest.raises(SpecError, match="cannot read --eps 'x'"):
        read_numbers("x", "--eps")
    assert [_duration(s) for s in (5.4, 65, 7260)] == ["5 s", "1 min 5 s", "2 h 1 min"]
    assert math.isclose(tally().eta_s or 0, 12, rel_tol=0.1)


def test_where_results_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "acasxu").mkdir()
    assert choose_out(Path("x"), "mnist") == Path("x")
    assert [str(choose_out(None, suite)) for suite in ("mnist", "acasxu", "acasxu/instances.csv", "other/list.csv")] == [
        "mnist.sqlite",
        "acasxu.sqlite",
        "acasxu.sqlite",
        "list.sqlite",
    ]


def test_ray_absent_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ClusterError, match=r"pip install 'ringfence\[cluster\]'"):
        choose_engine("ray", 2, None)
