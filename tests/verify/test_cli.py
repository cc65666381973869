from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bounds.errors import NumericsError, SolverMissingError
from tests.mnist_files import write_mnist
from verify.cli import main

Runner = Callable[..., tuple[int, str, str]]
PARTS = {"load", "attack", "bounds", "milp", "total"}


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Runner:
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return int(stopped.value.code or 0), captured.out, captured.err

    return call


def dense(path: Path, *, weight: list[list[float]] | None = None, op: str = "Relu") -> Path:
    """y = op(x) W with W the identity of size 2 by default, as an ONNX file."""
    W = np.array(weight if weight is not None else [[1.0, 0.0], [0.0, 1.0]], np.float32)
    nodes = [helper.make_node(op, ["x"], ["h"], name="first"), helper.make_node("MatMul", ["h", "W"], ["y"], name="second")]
    graph = helper.make_graph(
        nodes,
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", W.shape[1]])],
        [numpy_helper.from_array(W, "W")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def question(path: Path, violation: str, *, inputs: int = 2, low: float = -1.0, high: float = 1.0) -> Path:
    """x in [low, high]^inputs, violated by an assertion about Y."""
    lines = [f"(declare-const X_{i} Real)" for i in range(inputs)] + ["(declare-const Y_0 Real)", "(declare-const Y_1 Real)"]
    lines += [f"(assert (>= X_{i} {low}))\n(assert (<= X_{i} {high}))" for i in range(inputs)]
    path.write_text("\n".join([*lines, f"(assert {violation})"]))
    return path


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return dense(tmp_path / "net.onnx")


@pytest.fixture
def safe(tmp_path: Path) -> Path:
    """relu(x) <= 1 < 2 on the box: verified."""
    return question(tmp_path / "safe.vnnlib", "(>= Y_0 2.0)")


@pytest.fixture
def unsafe(tmp_path: Path) -> Path:
    """relu(x_0) reaches 0.75 on the box: falsified."""
    return question(tmp_path / "unsafe.vnnlib", "(>= Y_0 0.75)")


@pytest.fixture
def digits(root: Path, tmp_path: Path) -> Path:
    """The demo's images as MNIST files."""
    stored = np.load(root / "demo" / "images.npz")
    write_mnist(tmp_path, stored["images"], stored["labels"])
    return tmp_path


def test_verified(run: Runner, net: Path, safe: Path) -> None:
    code, out, err = run("verify", net, safe)
    assert (code, err) == (0, "")
    assert out.startswith("verified ")
    assert "rigorous" in out
    assert len(out.splitlines()) == 1


def test_verified_json(run: Runner, net: Path, safe: Path) -> None:
    code, out, err = run("verify", net, safe, "--json")
    document = json.loads(out)
    assert (code, err) == (0, "")
    assert document["verdict"] == "verified"
    assert document["proof"] == "rigorous"
    assert document["semantics"] == "real"
    assert document["counterexample"] is None
    assert document["reason"] is None
    assert 0.9 < document["lower_bound"] <= 1.0
    assert isinstance(document["decided_by"], str)
    assert "index" not in document
    assert set(document["seconds"]) == PARTS
    assert document["seconds"]["total"] >= document["seconds"]["load"] > 0


def test_falsified_json_replays(run: Runner, net: Path, unsafe: Path) -> None:
    code, out, _ = run("verify", net, unsafe, "--json", "--seed", "3")
    document = json.loads(out)
    assert code == 1
    assert document["verdict"] == "falsified"
    assert document["lower_bound"] is None
    x, y = (np.array(document["counterexample"][part], np.float32) for part in ("input", "output"))
    assert x.shape == y.shape == (2,)
    assert np.all(np.abs(x) <= 1)
    assert np.array_equal(y, np.maximum(x, 0))
    assert y[0] >= 0.75


@pytest.mark.parametrize("form", ["npy", "txt"])
def test_counterexample_file(run: Runner, net: Path, unsafe: Path, tmp_path: Path, form: str) -> None:
    path = tmp_path / f"witness.{form}"
    code, out, _ = run("verify", net, unsafe, "--counterexample", path)
    assert code == 1
    assert str(path) in out
    if form == "npy":
        x = np.load(path)
    else:
        pairs = dict(re.findall(r"\(([XY]_\d) ([^)]+)\)", path.read_text()))
        assert set(pairs) == {"X_0", "X_1", "Y_0", "Y_1"}
        x = np.array([float(pairs["X_0"]), float(pairs["X_1"])])
        assert float(pairs["Y_0"]) == max(x[0], 0)
    assert 0.75 <= x[0] <= 1
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_no_counterexample_file_when_verified(run: Runner, net: Path, safe: Path, tmp_path: Path) -> None:
    assert run("verify", net, safe, "--counterexample", tmp_path / "witness.npy")[0] == 0
    assert not (tmp_path / "witness.npy").exists()


def test_unknown_says_why(run: Runner, net: Path, safe: Path) -> None:
    code, out, _ = run("verify", net, safe, "--timeout", "0", "--json")
    document = json.loads(out)
    assert code == 3
    assert document["verdict"] == "unknown"
    assert "time limit" in document["reason"]
    assert document["proof"] is None
    assert document["lower_bound"] is None


def test_semantics_is_told(run: Runner, net: Path, safe: Path) -> None:
    code, out, _ = run("verify", net, safe, "--semantics", "float32-any-order", "--json")
    assert (code, json.loads(out)["semantics"]) == (0, "float32-any-order")


def test_confirm_keeps_a_rigorous_verdict(run: Runner, net: Path, safe: Path) -> None:
    assert run("verify", net, safe, "--confirm")[0] == 0


def test_data_set_images(run: Runner, root: Path, digits: Path) -> None:
    """The last image of the demo is falsified, the first is verified: several questions, several results, the worst code."""
    count = len(np.load(root / "demo" / "images.npz")["labels"])
    common = (
        "verify",
        root / "demo" / "network.onnx",
        "--dataset",
        "mnist",
        "--data-dir",
        digits,
        "--norm",
        "inf",
        "--eps",
        "0.05",
        "--json",
    )
    code, out, _ = run(*common, "--index", "0")
    document = json.loads(out)
    assert (code, document["verdict"], document["index"], document["label"]) == (0, "verified", 0, 7)
    code, out, _ = run(*common, "--index", f"{count - 2}:{count}", "--counterexample", digits / "w.npy")
    document = json.loads(out)
    assert code == 1
    assert set(document) == {"schema", "results"}
    assert [result["index"] for result in document["results"]] == [count - 2, count - 1]
    last = document["results"][-1]
    assert last["verdict"] == "falsified"
    written = np.load(digits / f"w-{count - 1}.npy")
    assert written.dtype == np.float32
    assert np.array_equal(written, np.array(last["counterexample"]["input"], np.float32))
    assert int(np.argmax(last["counterexample"]["output"])) != last["label"]
    assert written.min() >= 0
    assert written.max() <= 1


def _nonfinite(constant: str) -> Any:
    raise AssertionError(f"{constant} is no JSON")


def test_json_holds_no_infinity(run: Runner, net: Path, safe: Path) -> None:
    for extra in ((), ("--timeout", "0")):
        json.loads(run("verify", net, safe, "--json", *extra)[1], parse_constant=_nonfinite)


ERRORS = {
    "model absent": (["verify", "absent.onnx", "safe.vnnlib"], "absent.onnx"),
    "model corrupt": (["verify", "corrupt.onnx", "safe.vnnlib"], "corrupt.onnx"),
    "model truncated": (["verify", "cut.onnx.gz", "safe.vnnlib"], "cut.onnx.gz"),
    "op unsupported": (["verify", "unsupported.onnx", "safe.vnnlib"], "'first'.*Det"),
    "weights NaN": (["verify", "nan.onnx", "safe.vnnlib"], "NaN|nan|not finite"),
    "spec absent": (["verify", "net.onnx", "absent.vnnlib"], "absent.vnnlib"),
    "spec of another network": (["verify", "net.onnx", "three.vnnlib"], "3 inputs"),
    "spec unbounded": (["verify", "net.onnx", "open.vnnlib"], "bound"),
    "spec reversed": (["verify", "net.onnx", "reversed.vnnlib"], "X_0|input 0"),
    "no question": (["verify", "net.onnx"], "SPEC.vnnlib"),
    "two questions": (["verify", "net.onnx", "safe.vnnlib", "--dataset", "mnist"], "either"),
    "no folder": (["verify", "net.onnx", "--dataset", "mnist", "--eps", "0.1"], "--data-dir"),
    "no eps": (["verify", "net.onnx", "--dataset", "mnist", "--data-dir", "."], "--eps"),
    "unknown data set": (["verify", "net.onnx", "--dataset", "svhn", "--data-dir", ".", "--eps", "0.1"], "svhn"),
    "negative eps": (["verify", "net.onnx", "--dataset", "mnist", "--data-dir", ".", "--eps", "-0.1"], "eps.*-0.1"),
    "NaN eps": (["verify", "net.onnx", "--dataset", "mnist", "--data-dir", ".", "--eps", "nan"], "eps.*nan"),
    "unknown norm": (["verify", "net.onnx", "--dataset", "mnist", "--data-dir", ".", "--eps", "1", "--norm", "3"], "norm '3'"),
    "index beyond": (
        ["verify", "net.onnx", "--dataset", "mnist", "--data-dir", ".", "--eps", "1", "--index", "0:99"],
        "'0:99'.*out of range",
    ),
    "index no number": (["verify", "net.onnx", "--dataset", "mnist", "--data-dir", ".", "--eps", "1", "--index", "a"], "index 'a'"),
    "images do not fit": (["verify", "net.onnx", "--dataset", "mnist", "--data-dir", ".", "--eps", "1"], r"\(2,\)"),
    "label beyond": (["verify", "flat.onnx", "--dataset", "mnist", "--data-dir", ".", "--eps", "1"], "label 7 is out of range"),
    "device unknown": (["verify", "net.onnx", "safe.vnnlib", "--device", "abacus"], "abacus"),
    "memory limit": (["verify", "net.onnx", "safe.vnnlib", "--memory-limit", "lots"], "'lots'"),
    "semantics": (["verify", "net.onnx", "safe.vnnlib", "--semantics", "vague"], "'vague'"),
    "folder of the witness": (["verify", "net.onnx", "safe.vnnlib", "--counterexample", "absent/w.npy"], "absent"),
    "witness is a folder": (["verify", "net.onnx", "safe.vnnlib", "--counterexample", "."], "no ordinary file"),
    "timeout negative": (["verify", "net.onnx", "safe.vnnlib", "--timeout", "-1"], "--timeout"),
    "option unknown": (["verify", "net.onnx", "safe.vnnlib", "--fast"], "--fast"),
    "command unknown": (["prove"], "prove"),
    "evaluate method": (["evaluate", "net.onnx", "--dataset", "mnist", "--data-dir", ".", "--eps", "1", "--methods", "luck"], "luck"),
    "evaluate too many": (["evaluate", "net.onnx", "--dataset", "mnist", "--data-dir", ".", "--eps", "1", "--count", "99"], "99 images"),
    "evaluate no eps": (["evaluate", "net.onnx", "--dataset", "mnist", "--data-dir", "."], "--eps"),
    "inspect absent": (["inspect", "absent.onnx"], "absent.onnx"),
    "explain absent": (["explain", "absent.vnnlib"], "absent.vnnlib"),
    "explain nonsense": (["explain", "nonsense.vnnlib"], "line 1"),
    "explain nothing": (["explain"], "SPEC.vnnlib"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_one_line_and_code_2(
    run: Runner, net: Path, safe: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(net.parent)
    arguments, pattern = ERRORS[case]
    Path("corrupt.onnx").write_bytes(b"no model at all")
    Path("cut.onnx.gz").write_bytes(gzip.compress(net.read_bytes())[:-30])
    dense(Path("unsupported.onnx"), op="Det")
    dense(Path("nan.onnx"), weight=[[1.0, float("nan")], [0.0, 1.0]])
    flat = dense(Path("flat.onnx"), weight=[[0.0, 1.0]] * 784)
    proto = onnx.load(flat)
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 784
    onnx.save(proto, flat)
    question(Path("three.vnnlib"), "(>= Y_0 2.0)", inputs=3)
    question(Path("reversed.vnnlib"), "(>= Y_0 2.0)", low=2.0)
    Path("open.vnnlib").write_text(
        "(declare-const X_0 Real)(declare-const X_1 Real)(declare-const Y_0 Real)(declare-const Y_1 Real)(assert (>= Y_0 0))"
    )
    Path("nonsense.vnnlib").write_text("what is this")
    before = sorted(os.listdir())
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert re.search(pattern, err), err
    assert err.startswith("ringfence: ")
    assert err.count("\n") == 1
    assert sorted(os.listdir()) == before


def test_gpu_asked_for_and_absent(run: Runner, net: Path, safe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, out, err = run("verify", net, safe, "--device", "cuda")
    assert (code, out) == (2, "")
    assert "cuda" in err


def test_inspect(run: Runner, root: Path) -> None:
    code, out, _ = run("inspect", root / "demo" / "network.onnx", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["input_shape"] == [1, 28, 28]
    assert document["output_shape"] == [10]
    proto = onnx.load(root / "demo" / "network.onnx")
    stored = sum(int(np.prod(t.dims)) for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT)
    assert document["totals"]["parameters"] == stored == sum(node["parameters"] for node in document["nodes"])
    assert document["totals"]["neurons"] == 8 * 14 * 14 + 16 * 7 * 7 + 64
    assert {node["support"] for node in document["nodes"]} == {"exact"}
    text = run("inspect", root / "demo" / "network.onnx")[1]
    assert "node_conv2d_1" in text
    assert f"{stored:,} parameters" in text


def test_inspect_shows_what_is_relaxed(run: Runner, tmp_path: Path) -> None:
    _, out, _ = run("inspect", dense(tmp_path / "tanh.onnx", op="Tanh"), "--json")
    assert {node["op"]: node["support"] for node in json.loads(out)["nodes"]}["Tanh"] == "relaxed"


def test_inspect_shows_what_stands_in_the_way(run: Runner, tmp_path: Path) -> None:
    code, out, err = run("inspect", dense(tmp_path / "unsupported.onnx", op="Det"), "--json")
    document = json.loads(out)
    assert code == 2
    assert {node["name"]: node["support"] for node in document["nodes"]} == {"first": "not", "second": "exact"}
    assert document["totals"]["not"] == 1
    assert "Det" in err
    assert err.count("\n") == 1
    assert "1 not supported" in run("inspect", tmp_path / "unsupported.onnx")[1]


def test_explain(run: Runner, unsafe: Path) -> None:
    code, out, _ = run("explain", unsafe)
    assert code == 0
    assert "Verified means" in out
    code, out, _ = run("explain", unsafe, "--json")
    assert json.loads(out)["inputs"] == 2


@pytest.fixture
def evaluation(root: Path, digits: Path) -> tuple[object, ...]:
    return ("evaluate", root / "demo" / "network.onnx", "--dataset", "mnist", "--data-dir", digits, "--eps", "0.05")


def test_evaluate_agrees_with_verify(run: Runner, root: Path, evaluation: tuple[object, ...]) -> None:
    """Certified by crown is at most what verify proves; what pgd breaks is at most what verify falsifies."""
    code, out, _ = run(*evaluation, "--norm", "inf", "--methods", "ibp,crown,pgd", "--json")
    document = json.loads(out)
    assert code == 0
    count = len(np.load(root / "demo" / "images.npz")["labels"])
    assert document["images"] == count
    results = json.loads(run("verify", *evaluation[1:], "--index", f"0:{count}", "--json")[1])["results"]
    falsified = 100 * sum(result["verdict"] == "falsified" for result in results) / count
    assert 0 <= document["clean_error"] <= document["pgd_error"] <= falsified <= document["certified_error"]["crown"]
    assert document["certified_error"]["crown"] < document["certified_error"]["ibp"]
    for method in ("ibp", "crown"):
        share = 1 - document["certified_error"][method] / 100
        assert document["average_certified_bound"][method] == pytest.approx(0.05 * share)
    assert {"ibp", "crown", "pgd"} <= set(document["seconds"])


def test_evaluate_resumes(run: Runner, evaluation: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    code, _, err = run(*evaluation, "--methods", "ibp", "--out", out, "--timeout", "0")
    assert code == 3
    assert "time limit" in err
    assert run(*evaluation, "--methods", "ibp", "--out", out)[0] == 0
    kept = out.read_bytes()
    assert run(*evaluation, "--methods", "ibp", "--out", out)[0] == 0
    assert out.read_bytes() == kept
    code, text, err = run(*evaluation, "--methods", "ibp", "--out", out, "--norm", "2")
    assert (code, text, err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize("command", ["verify", "inspect", "explain", "evaluate"])
def test_every_command_takes_the_common_options(run: Runner, net: Path, safe: Path, evaluation: tuple[object, ...], command: str) -> None:
    files = {"verify": (net, safe), "inspect": (net,), "explain": (safe,), "evaluate": evaluation[1:]}[command]
    common = ("--json", "--timeout", "30", "--device", "cpu", "--memory-limit", "1GB", "--seed", "1")
    code, out, err = run(command, *files, *common)
    assert (code, err) == (0, "")
    assert "schema" in json.loads(out)


def test_explain_tells_what_every_stage_did(run: Runner, net: Path, safe: Path) -> None:
    code, out, err = run("verify", net, safe, "--explain")
    assert code == 0
    assert out.count("\n") == 1
    head, *rows = err.splitlines()
    assert head.split()[0] == "stage"
    assert rows[-1].split()[-1] == "verified"
    code, out, err = run("verify", net, safe, "--explain", "--json")
    assert (code, err) == (0, "")
    stages = json.loads(out)["stages"]
    assert len(stages) == len(rows)
    assert (stages[-1]["stage"], stages[-1]["outcome"]) == (json.loads(out)["decided_by"], "verified")
    assert "stages" not in json.loads(run("verify", net, safe, "--json")[1])


def test_effort_is_one_of_three(run: Runner, net: Path, safe: Path) -> None:
    assert run("verify", net, safe, "--effort", "quick")[0] == 0
    code, out, err = run("verify", net, safe, "--effort", "lots")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "quick, normal or thorough" in err


def test_interrupt_keeps_what_is_known(run: Runner, root: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import verify.command

    asked, answer = [], verify.command.verify

    def interrupted(*arguments: Any, **options: Any) -> Any:
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return answer(*arguments, **options)

    monkeypatch.setattr(verify.command, "verify", interrupted)
    code, out, err = run(
        "verify", root / "demo" / "network.onnx", "--dataset", "mnist", "--data-dir", digits, "--index", "0:3", "--eps", "0.05", "--json"
    )
    document = json.loads(out)
    assert code == 130
    assert document["interrupted"] is True
    assert [result["verdict"] for result in document["results"]] == ["verified"]
    assert err.count("\n") == 1


def test_an_error_in_one_of_several_questions(run: Runner, root: Path, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import verify.command

    asked, answer = [], verify.command.verify

    def failing(*arguments: Any, **options: Any) -> Any:
        asked.append(1)
        if len(asked) == 1:
            raise NumericsError("planted")
        return answer(*arguments, **options)

    monkeypatch.setattr(verify.command, "verify", failing)
    code, out, err = run(
        "verify", root / "demo" / "network.onnx", "--dataset", "mnist", "--data-dir", digits, "--index", "0:2", "--eps", "0.05", "--json"
    )
    results = json.loads(out)["results"]
    assert code == 2
    assert [result["verdict"] for result in results] == ["unknown", "verified"]
    assert results[0]["reason"] == "planted"
    assert "planted" in err


def test_signal_ends_with_130(root: Path, net: Path, safe: Path) -> None:
    script = f"""
import signal, sys, time
import verify.command
def slow(*arguments, **options):
    print("waiting", flush=True)
    time.sleep(60)
verify.command.verify = slow
from verify.cli import main
main(["verify", {str(net)!r}, {str(safe)!r}])
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err


def test_help_loads_nothing_heavy(root: Path) -> None:
    script = """
import sys
from verify.cli import main
try:
    main(["verify", "--help"])
except SystemExit as stopped:
    heavy = {"torch", "numpy", "scipy", "onnx", "onnxruntime", "networkx", "rich", "bounds"} & set(sys.modules)
    sys.exit(f"loaded {heavy}" if heavy or stopped.code else 0)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--counterexample" in done.stdout


def test_explain_does_not_load_torch(root: Path, safe: Path) -> None:
    script = f"""
import sys
from verify.cli import main
try:
    main(["explain", {str(safe)!r}, "--json"])
except SystemExit as stopped:
    sys.exit("loaded torch" if "torch" in sys.modules else stopped.code)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["outputs"] == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_on_stdout(root: Path, safe: Path) -> None:
    with open("/dev/full", "w") as full:
        script = f"from verify.cli import main; main(['explain', {str(safe)!r}])"
        done = subprocess.run([sys.executable, "-c", script], cwd=root, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("ringfence: cannot write to standard output")
    assert done.stderr.count("\n") == 1


def test_console_script_is_installed() -> None:
    script = shutil.which("ringfence", path=str(Path(sys.executable).parent))
    if script is None:
        pytest.skip("the command ringfence is not installed in this environment; run make env")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"ringfence \d+\.\d+\.\d+\n", done.stdout)


def test_confirm_names_another_solver_than_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    from milp import solvers
    from verify.command import second_solver

    monkeypatch.setattr(solvers, "available", lambda: ["highs", "pulp"])
    assert second_solver() == "pulp"
    monkeypatch.setattr(solvers, "available", lambda: ["highs"])
    with pytest.raises(SolverMissingError, match="pip install"):
        second_solver()


def test_confirm_reaches_the_question(run: Runner, net: Path, safe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import verify.command

    asked: list[Any] = []
    answer = verify.command.verify

    def listening(*arguments: Any, **options: Any) -> Any:
        asked.append(options["confirm"])
        return answer(*arguments, **options)

    monkeypatch.setattr(verify.command, "verify", listening)
    run("verify", net, safe)
    run("verify", net, safe, "--confirm")
    assert asked == [None, verify.command.second_solver()]


def test_an_interrupt_before_anything_was_asked_says_so(run: Runner, net: Path, safe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("verify.command.choose", stop)
    code, out, err = run("verify", net, safe)
    assert (code, out, err.split("\n")[-2]) == (130, "", "ringfence: interrupted")
