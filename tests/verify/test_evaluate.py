from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bounds.crown import Crown
from bounds.errors import DeviceError, MemoryLimitError, NumericsError, SpecError
from bounds.network import Network
from bounds.ops.affine import Linear
from bounds.ops.piecewise import Relu
from bounds.region import LpBall
from tests.verify.nets import bump, chain, linear
from verify import evaluate as module
from verify.evaluate import METHODS, PROVERS, Chunk, Limits, Settings, evaluate, evaluate_chunk, summarise
from verify.provers import Proofs

IMAGES = np.array([[0.9, 0.1], [0.6, 0.5], [0.4, 0.5], [0.5, 0.5]], np.float32)
ZEROS = np.zeros(4, np.uint8)


class Always:
    """A model for which one class always wins, unless the first input is so small that all it returns is NaN."""

    input_dtype = np.dtype(np.float32)

    def __init__(self, label: int, features: int = 2, fails_below: float = -1.0) -> None:
        self.label, self.input_shape, self.fails_below = label, (features,), fails_below

    def __call__(self, x: np.ndarray) -> np.ndarray:
        y = np.tile(np.arange(2) == self.label, (len(x), 1)).astype(np.float32)
        y[x[:, 0] < self.fails_below] = np.nan
        return y


@pytest.fixture
def identity() -> Network:
    """y = x: the margin of label 0 is x_0 - x_1."""
    return linear([[1.0, 0.0], [0.0, 1.0]])


@pytest.fixture(scope="module")
def demo(root: Path) -> tuple[Network, np.ndarray, np.ndarray]:
    stored = np.load(root / "demo" / "images.npz")
    network = Network.from_onnx(root / "demo" / "network.onnx")
    images = stored["images"].astype(np.float32) / np.float32(255)
    return network, images.reshape(-1, *network.input_shape), stored["labels"]


def test_figures_by_hand(identity: Network) -> None:
    """Margins 0.8, 0.1, -0.1 and a tie; a perturbation of 0.1 takes away 0.2."""
    found = evaluate(identity, IMAGES, ZEROS, Settings(0.1, methods=METHODS, steps=5, restarts=2))
    assert found.clean_error == 50
    assert found.pgd_error == 75
    assert found.certified_error == dict.fromkeys(PROVERS, 75)
    # The margin 0.1 is used up by a perturbation of 0.05: that much the envelope still certifies.
    assert found.average_certified_bound == pytest.approx(dict.fromkeys(PROVERS, 0.1 / 4) | {"pec": 0.15 / 4})
    assert (found.images, found.complete, found.reason) == (4, True, None)
    assert set(found.seconds) == set(METHODS)


@pytest.mark.parametrize(("norm", "loss"), [(math.inf, 0.5), (2.0, 0.25 * math.sqrt(2)), (1.0, 0.25)])
def test_margins_follow_the_norm(identity: Network, norm: float, loss: float) -> None:
    settings = Settings(0.25, norm, methods=PROVERS, clip=False)
    chunk = evaluate_chunk(identity, np.array([[0.75, 0.25]], np.float32), ZEROS[:1], settings)
    for name in ("crown-ibp", "fastlin", "crown"):
        (margin,) = chunk.margins[name]
        assert margin is not None
        assert 0.5 - loss - 1e-5 <= margin <= 0.5 - loss


def test_a_tie_at_the_edge_is_not_certified(identity: Network) -> None:
    """0.75 - 0.5 - 2 x 0.125 = 0 in exact arithmetic, which float32 and float64 would also compute."""
    found = evaluate(identity, np.array([[0.75, 0.5]], np.float32), ZEROS[:1], Settings(0.125, methods=PROVERS))
    assert found.clean_error == 0
    assert found.certified_error == dict.fromkeys(PROVERS, 100)


def test_clipping_keeps_pixels_in_the_unit_box() -> None:
    """y_0 - y_1 = x + 0.05 at x = 0: a perturbation of 0.1 breaks it only outside [0, 1]."""
    network = linear([[1.0], [0.0]], [0.05, 0.0])
    images = np.zeros((1, 1), np.float32)
    for clip, error in ((True, 0), (False, 100)):
        found = evaluate(network, images, ZEROS[:1], Settings(0.1, clip=clip, methods=METHODS, steps=5, restarts=2))
        assert found.pgd_error == error
        assert found.certified_error == dict.fromkeys(PROVERS, error)


def test_margins_within_float32_rounding_are_proven_in_float64() -> None:
    """The margin is x - 0.5 + 1e-6 >= 1e-6, among terms +-100 (x + 1) whose rounding in float32 hides 1e-6."""
    hidden = Linear(torch.ones(41, 1), torch.ones(41))
    last = torch.tensor([[100.0, -100.0] * 20 + [1.0], [0.0] * 41], dtype=torch.float64)
    offset = torch.tensor([-1.5 + 1e-6, 0.0], dtype=torch.float64)
    network = chain(1, (hidden, 41), (Relu(), 41), (Linear(last, offset), 2))
    network = replace(network, original=Always(0))
    images, settings = np.full((1, 1), 0.75, np.float32), Settings(0.25, methods=("crown",))
    narrow = Crown()(network, LpBall(torch.from_numpy(images), 0.25), torch.tensor([[[1.0, -1.0]]]))
    assert float(narrow.objective.lower) <= 0
    assert evaluate(network, images, ZEROS[:1], settings).certified_error == {"crown": 0}
    below = replace(settings, eps=0.25 + 2e-6)
    assert evaluate(network, images, ZEROS[:1], below).certified_error == {"crown": 100}


@pytest.mark.parametrize("norm", [1.0, 2.0, math.inf])
def test_columns_are_ordered_as_they_must_be(demo: tuple[Network, np.ndarray, np.ndarray], norm: float) -> None:
    """clean <= broken by the attack <= not certified; and the attack breaks no certified image although it may try them all."""
    eps = {1.0: 0.3, 2.0: 0.15, math.inf: 0.04}[norm]
    chunk = evaluate_chunk(*demo, Settings(eps, norm, methods=PROVERS))
    attacked = evaluate_chunk(*demo, Settings(eps, norm, methods=("pgd",), steps=20, restarts=3))
    assert attacked.broken is not None
    assert attacked.correct == chunk.correct
    assert all(broken or right for broken, right in zip(attacked.broken, attacked.correct, strict=True))
    for name in PROVERS:
        assert not any(broken and proven for broken, proven in zip(attacked.broken, chunk.certified(name), strict=True))
    counts = {name: sum(chunk.certified(name)) for name in PROVERS}
    assert counts["ibp"] <= counts["crown"]
    assert counts["crown"] > 0


def test_attack_spares_certified_images_and_finds_the_same(
    demo: tuple[Network, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(0.06, methods=("crown", "pgd"), steps=20, restarts=3)
    attacked: list[int] = []
    attack = module._attack

    def counting(network: Network, region: LpBall, *rest: object) -> np.ndarray:
        attacked.append(region.batch)
        return attack(network, region, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_attack", counting)
    both = evaluate_chunk(*demo, settings)
    alone = evaluate_chunk(*demo, replace(settings, methods=("pgd",)))
    assert both.broken == alone.broken
    assert attacked == [sum(both.correct) - sum(both.certified("crown")), sum(alone.correct)]
    assert attacked[0] < attacked[1]


def test_clipping_tightens_bounds(demo: tuple[Network, np.ndarray, np.ndarray]) -> None:
    for norm, eps in ((2.0, 0.2), (math.inf, 0.05)):
        clipped, free = (evaluate_chunk(*demo, Settings(eps, norm, clip, PROVERS)) for clip in (True, False))
        for name in PROVERS:
            pairs = list(zip(clipped.margins[name], free.margins[name], strict=True))
            gains = [a - b for a, b in pairs if a is not None and b is not None]
            assert len(gains) == sum(clipped.correct) == sum(free.correct)
            assert sum(gains) > 0
            # Slopes chosen on smaller intervals need not give better planes; interval propagation has no choice.
            assert name != "ibp" or min(gains) >= -1e-4


def test_a_hit_counts_only_if_the_original_model_confirms_it(identity: Network) -> None:
    images, settings = IMAGES[1:2], Settings(0.1, methods=("pgd",), steps=5, restarts=2)
    assert evaluate(identity, images, ZEROS[:1], settings).pgd_error == 100
    assert evaluate(replace(identity, original=Always(0)), images, ZEROS[:1], settings).pgd_error == 0
    assert evaluate(replace(identity, original=Always(0, fails_below=0.6)), images, ZEROS[:1], settings).pgd_error == 0


def test_a_hit_outside_the_region_does_not_count(identity: Network) -> None:
    region = LpBall(torch.tensor([[0.6, 0.5]]), 0.1, domain=(0.0, 1.0))
    inside, outside = torch.tensor([0.51, 0.59]), torch.tensor([0.45, 0.5])
    assert module._breaks(identity, region, ZEROS[:1], 0, inside)
    assert not module._breaks(identity, region, ZEROS[:1], 0, outside)


def test_nothing_is_certified_when_nothing_is_right(identity: Network) -> None:
    found = evaluate(identity, IMAGES, np.array([1, 1, 0, 1], np.uint8), Settings(0.01, methods=METHODS, steps=2))
    assert (found.clean_error, found.pgd_error) == (100, 100)
    assert found.certified_error == dict.fromkeys(PROVERS, 100)


def test_batches_do_not_change_bounds(demo: tuple[Network, np.ndarray, np.ndarray]) -> None:
    settings = Settings(0.05, methods=PROVERS)
    whole = evaluate(*demo, settings)
    chunks: list[Chunk] = []
    parts = evaluate(*demo, replace(settings, batch=3), record=chunks.append)
    assert [chunk.first for chunk in chunks] == [0, 3, 6]
    assert parts.certified_error == whole.certified_error
    assert summarise(chunks, settings, 8).certified_error == whole.certified_error
    first = summarise(chunks, settings, 4)
    assert first.images == 4
    assert first.certified_error["crown"] == 100 - 25 * sum([*chunks[0].certified("crown"), chunks[1].certified("crown")[0]])


def test_finished_chunks_are_not_worked_on_again(identity: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(0.1, methods=("ibp",), batch=1)
    chunks: list[Chunk] = []
    whole = evaluate(identity, IMAGES, ZEROS, settings, record=chunks.append)
    seen: list[int] = []

    def watched(*arguments: object) -> Chunk:
        seen.append(arguments[-1])  # type: ignore[arg-type]
        return evaluate_chunk(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "evaluate_chunk", watched)
    again = evaluate(identity, IMAGES, ZEROS, settings, finished=chunks[:3])
    assert seen == [3]
    assert again.certified_error == whole.certified_error


def stopping(after: int, error: BaseException) -> Callable[[Chunk], None]:
    """A record function that lets `after` chunks pass."""
    passed: list[Chunk] = []

    def record(chunk: Chunk) -> None:
        passed.append(chunk)
        if len(passed) == after:
            raise error

    return record


def test_limits_keep_what_is_finished(identity: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(0.1, methods=("ibp",), batch=1)
    late = evaluate(identity, IMAGES, ZEROS, settings, Limits(deadline=0.0))
    assert (late.images, late.requested, late.complete, late.reason) == (0, 4, False, "time limit")
    assert late.clean_error is None
    assert late.certified_error == {"ibp": None}
    stopped = evaluate(identity, IMAGES, ZEROS, settings, record=stopping(2, KeyboardInterrupt()))
    assert (stopped.images, stopped.reason) == (2, "interrupted")
    assert stopped.certified_error == {"ibp": 50}

    def full(*arguments: object) -> Chunk:
        raise MemoryLimitError("a row needs 3 MB")

    monkeypatch.setattr(module, "evaluate_chunk", full)
    assert evaluate(identity, IMAGES, ZEROS, settings).reason == "a row needs 3 MB"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": -0.1}, "eps must be finite and not negative, got -0.1"),
        ({"eps": math.nan}, "eps must be finite"),
        ({"eps": math.inf}, "eps must be finite"),
        ({"norm": 3.0}, "norm 3.0 is not supported: use 1, 2 or inf"),
        ({"methods": ("ibp", "magic")}, "unknown method 'magic'; use ibp, ibp-planes, crown-ibp, fastlin, crown, alpha, pec, pgd"),
        ({"methods": ()}, "at least one method"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"semantics": "float16"}, "unknown semantics 'float16'"),
    ],
)
def test_settings_that_make_no_sense(change: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message.replace("(", r"\(")):
        Settings(**({"eps": 0.1} | change))  # type: ignore[arg-type]


def test_methods_run_in_their_own_order() -> None:
    assert Settings(0.1, methods=("pgd", "crown", "ibp", "ibp")).methods == ("ibp", "crown", "pgd")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES, [0, 1, 2, 0], "label 2 of image 2 is out of range: the network has 2 outputs"),
        (IMAGES, [0], "4 images of shape .* and 1 labels"),
        (np.zeros((4, 3), np.float32), ZEROS, r"the network reads inputs of shape \(2,\)"),
        (IMAGES + 1, ZEROS, "pixels in"),
        (IMAGES * np.float32(np.nan), ZEROS, "pixels in"),
    ],
)
def test_images_that_do_not_fit(identity: Network, images: np.ndarray, labels: Sequence[int], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        evaluate(identity, images, np.asarray(labels, np.uint8), Settings(0.1))


def test_a_network_with_one_output_is_no_classifier() -> None:
    with pytest.raises(SpecError, match="evaluation compares the outputs"):
        evaluate(linear([[1.0, 1.0]]), IMAGES, ZEROS, Settings(0.1))


def test_device_that_is_not_there(identity: Network) -> None:
    with pytest.raises(DeviceError, match="abacus"):
        evaluate(identity, IMAGES, ZEROS, Settings(0.1), Limits(device="abacus"))


def test_overflow_is_an_error_not_a_figure() -> None:
    with pytest.raises(NumericsError):
        evaluate(linear([[3e38, 3e38], [0.0, 0.0]]), IMAGES, ZEROS, Settings(0.1, methods=("ibp",)))


def test_hidden_layers_matter() -> None:
    """relu(x_0 + x_1 - 1.5) reaches 0.25 only near the corner: IBP and the linear methods see it at once."""
    images = np.array([[0.7, 0.7], [0.1, 0.1]], np.float32)
    found = evaluate(bump(), images, np.ones(2, np.uint8), Settings(0.3, methods=METHODS, steps=20, restarts=20))
    assert found.clean_error == 0
    assert found.pgd_error == 50
    assert found.certified_error == dict.fromkeys(PROVERS, 50)


def test_counts_of_the_published_code(shared: Path) -> None:
    """The authors' code certifies 177 (Fast-Lin) and 58 (IBP) of the first 200 images with this network at 0.1."""
    from verify.datasets import load_dataset

    network = Network.from_onnx(shared / "models" / "mnist_fc1_relu_linf_kw.onnx")
    data = load_dataset("mnist", shared / "data" / "mnist")
    images = data.pixels(slice(0, 200), network.input_shape)
    found = evaluate(network, images, data.labels[:200], Settings(0.1, methods=("ibp", "fastlin")))
    assert found.certified_error == {"ibp": pytest.approx(71), "fastlin": pytest.approx(11.5)}
    assert found.average_certified_bound["fastlin"] == pytest.approx(0.0885)
    # ... and its envelope certifies 0.09364 on average.
    pec = evaluate(network, images, data.labels[:200], Settings(0.1, methods=("pec",)))
    assert pec.average_certified_bound["pec"] == pytest.approx(0.09364, abs=1e-5)


def test_the_envelope_takes_the_best_planes_at_hand(demo: tuple[Network, np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    """One call a linear method, shared; Fast-Lin's own where none was asked for."""
    calls: list[tuple[str, bool]] = []

    class Counting(module.Prover):
        def __call__(self, network: Network, region: LpBall, labels: torch.Tensor, radii: bool = False) -> Proofs:
            calls.append((self.name, radii))
            return super().__call__(network, region, labels, radii)

    monkeypatch.setattr(module, "Prover", Counting)
    chunks = {
        methods: evaluate_chunk(*demo, Settings(0.05, methods=methods))
        for methods in (("pec",), ("ibp", "fastlin", "pec"), ("crown", "pec"), ("fastlin", "crown", "pec"), ("crown",))
    }
    wanted = [("fastlin", True), ("ibp", False), ("fastlin", True), ("crown", True), ("fastlin", True), ("crown", True), ("crown", False)]
    assert calls == wanted
    alone, beside, crowned, both, plain = chunks.values()
    assert alone.radii == beside.radii
    assert plain.radii is None
    assert set(alone.margins) == {"pec"}
    assert alone.margins["pec"] == beside.margins["fastlin"] == beside.margins["pec"]
    assert both.radii == tuple(
        None if a is None or b is None else max(a, b) for a, b in zip(alone.radii or (), crowned.radii or (), strict=True)
    )
    for chunk in (alone, crowned, both):
        assert chunk.certified("pec") == tuple(radius == 0.05 for radius in chunk.radii or ())
        assert any(0 < (radius or 0) < 0.05 for radius in chunk.radii or ())
        assert tuple(radius is None for radius in chunk.radii or ()) == tuple(not right for right in chunk.correct)


def test_the_envelope_s_column(demo: tuple[Network, np.ndarray, np.ndarray]) -> None:
    """The mean radius, misclassified images included; between that of Fast-Lin alone and eps."""
    settings = Settings(0.05, methods=("fastlin", "pec"))
    chunk = evaluate_chunk(*demo, settings)
    found = evaluate(*demo, settings)
    assert found.average_certified_bound["pec"] == pytest.approx(sum(radius or 0 for radius in chunk.radii or ()) / len(chunk))
    assert found.certified_error["pec"] == found.certified_error["fastlin"]
    assert (found.average_certified_bound["fastlin"] or 0) < (found.average_certified_bound["pec"] or 0) < 0.05
    half = summarise([chunk], settings, 4)
    assert half.average_certified_bound["pec"] == pytest.approx(sum(radius or 0 for radius in (chunk.radii or ())[:4]) / 4)


def test_only_positive_margins_certify() -> None:
    chunk = Chunk(0, (True,) * 4 + (False,), {"ibp": (0.0, -1.0, 5e-324, math.nan, None)}, None, {})
    assert chunk.certified("ibp") == (False, False, True, False, False)
