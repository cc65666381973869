from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bounds.errors import OutputError
from tests.verify.browser import RESOLVED, contrast, launch
from tests.verify.sample_results import OURS, write_sample
from verify.records import Instance, Outcome, Row, RunInfo
from verify.report import render, write_html
from verify.report_data import seconds, select, wrong
from verify.results import Results

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1><!-- {{DATA}} &amp; \u2028 ünï"
Entry = tuple[Instance, Outcome]


@dataclass
class Opened:
    """A page in the browser, and everything it complained about or asked for."""

    tab: Any
    troubles: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def text(self, selector: str) -> str:
        return str(self.tab.locator(selector).first.inner_text())

    def column(self, key: str) -> list[str]:
        """The cells of a column that are in the page, from the top."""
        script = """key => { const at = [...document.querySelectorAll('table.rows th')].findIndex(th => th.dataset.key === key);
          return [...document.querySelectorAll('table.rows tbody tr[aria-rowindex]')].map(tr => tr.cells[at].textContent); }"""
        return list(self.tab.evaluate(script, key))

    def told(self) -> int:
        """How many instances the page says it shows."""
        return int(self.text(".told").split(" of ")[0].replace(",", ""))


Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from launch()


@pytest.fixture
def visit(browser: Any) -> Iterator[Open]:
    """Open a page; at the end nothing may have gone wrong in it, and it asked for nothing but itself."""
    opened: list[Opened] = []

    def call(path: Path, scheme: str = "light") -> Opened:
        tab = browser.new_page(viewport={"width": 1366, "height": 768}, color_scheme=scheme)
        page = Opened(tab)
        opened.append(page)
        tab.on("console", lambda message: page.troubles.append(message.text) if message.type in ("error", "warning") else None)
        tab.on("pageerror", lambda error: page.troubles.append(str(error)))
        tab.on("request", lambda request: page.requests.append(request.url))
        tab.goto(path.resolve().as_uri())
        return page

    yield call
    for page in opened:
        page.tab.close()
        assert page.troubles == []
        assert [url[:5] for url in page.requests if not url.startswith("data:")] == ["file:"]


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results file with something of everything in it, and its report beside it."""
    path = tmp_path_factory.mktemp("report") / "sample.sqlite"
    write_sample(path, 240)
    write_html(path, path.with_suffix(".html"))
    return path


def stored(path: Path, entries: list[Entry], status: str | None = "finished") -> Path:
    with Results.write(path) as results:
        configuration = results.configuration(OURS)
        run = results.begin(RunInfo("suite", "local", 1, None, {}))
        for instance, outcome in entries:
            results.record(run, configuration, instance.key(OURS), instance, outcome)
        if status is not None:
            results.end(run, status)
    write_html(path, path.with_suffix(".html"))
    return path.with_suffix(".html")


def instance(number: int, **changes: Any) -> Instance:
    fields: dict[str, Any] = {"family": "family", "name": f"name {number}", "network": "net.onnx", "spec": f"{number}.vnnlib"}
    return Instance(**fields | {"network_hash": "n", "spec_hash": str(number)} | changes)


def main_rows(path: Path) -> tuple[Row, ...]:
    found = select(path).main
    assert found is not None
    return found.rows


def test_every_section_is_there_with_the_right_figures(sample: Path, visit: Open) -> None:
    page, rows = visit(sample.with_suffix(".html")), main_rows(sample)
    assert {s.get_attribute("id") for s in page.tab.locator("section").all()} == {
        "summary",
        "plots",
        "radii",
        "counterexamples",
        "instances",
    }
    questions = [row for row in rows if row.outcome.verdict != "measured"]
    solved = [row for row in questions if row.outcome.verdict in ("verified", "falsified")]
    assert page.text(".headline .figure") == f"{len(solved)} of {len(questions)} solved"
    assert "contradicts the expected one: net_0 prop_0" in page.text(".headline .notice.bad")
    assert sum(map(wrong, rows)) == 1
    table = [[cell.strip() for cell in line.all_inner_texts()] for line in
             (row.locator("th, td") for row in page.tab.locator(".families tbody tr").all())]  # fmt: skip
    for line in table:
        group = [row.outcome.verdict for row in rows if row.instance.family == line[0]]
        assert line[2:6] == [str(n) for n in (len(group), *(group.count(v) for v in ("verified", "falsified", "unknown")))]
    assert page.tab.locator("#plots svg[role=img]").count() == 2
    assert page.tab.locator("#radii rect.radius").count() > 3


def test_cactus_ends_at_the_number_of_solved_instances(sample: Path, visit: Open) -> None:
    page, selection = visit(sample.with_suffix(".html")), select(sample)
    assert selection.main is not None
    for answers in (selection.main, *selection.others):
        solved = sum(row.outcome.verdict in ("verified", "falsified") for row in answers.rows)
        assert f"{answers.label}: {solved}" in page.text("#plots .legend")


def test_scatter_names_and_opens_the_nearest_instance(tmp_path: Path, visit: Open) -> None:
    path = tmp_path / "one.sqlite"
    stored(path, [(instance(0), Outcome("verified", seconds={"total": 1.0}, wall_s=1.0))])
    other = tmp_path / "other.sqlite"
    with Results.write(other) as results:
        theirs = replace(OURS, version="0")
        number, run = results.configuration(theirs), results.begin(RunInfo("suite", "local", 1, None, {}))
        results.record(run, number, instance(0).key(theirs), instance(0), Outcome("falsified", seconds={"total": 8.0}, wall_s=8.0))
    write_html(path, tmp_path / "both.html", against=other)
    page = visit(tmp_path / "both.html")
    assert "1 instance verified by one and falsified by the other: name 0" in page.text("#plots .notice.bad")
    clash = page.tab.locator("circle.clash")
    clash.scroll_into_view_if_needed()
    clash.hover(force=True)
    assert page.text("#tip").splitlines() == ["name 0", "here: verified, 1.00 s", "there: falsified, 8.00 s"]
    clash.click(force=True)
    assert page.text("#detail-name") == "name 0"


def test_sorting(sample: Path, visit: Open) -> None:
    page, rows = visit(sample.with_suffix(".html")), main_rows(sample)
    press = page.tab.locator("th[data-key=seconds] button")
    slowest_first = sorted((seconds(row) for row in rows), reverse=True)
    for state, expected in (("descending", slowest_first), ("ascending", slowest_first[::-1])):
        press.click()
        assert page.tab.locator("th[data-key=seconds]").get_attribute("aria-sort") == state
        shown = [float(cell) for cell in page.column("seconds")]
        assert len(shown) >= 15
        assert shown == pytest.approx(expected[: len(shown)], rel=0.01, abs=0.001)
    page.tab.locator("th[data-key=bound] button").click()
    bounds = sorted((row.outcome.bound for row in rows if row.outcome.bound is not None), reverse=True)
    shown = page.column("bound")
    assert [float(cell) for cell in shown if cell] == bounds[: len(shown)]
    page.tab.locator("th[data-key=name] button").click()
    natural = sorted((row.instance.name for row in rows), key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])
    shown = page.column("name")
    assert shown == natural[: len(shown)]
    assert "mnist_cnn image 2" in shown


def test_only_rows_in_sight_are_in_the_page_and_scrolling_reaches_the_last(sample: Path, visit: Open) -> None:
    page, rows = visit(sample.with_suffix(".html")), main_rows(sample)
    assert page.column("name")[0] == rows[0].instance.name
    assert len(page.column("name")) < len(rows) // 2
    page.tab.evaluate("document.querySelector('.scroll').scrollTop = 1e9")
    page.tab.locator(f'table.rows tr[aria-rowindex="{len(rows) + 1}"]').wait_for(state="attached")
    assert page.column("name")[-1] == rows[-1].instance.name


def test_filters(sample: Path, visit: Open) -> None:
    page, rows = visit(sample.with_suffix(".html")), main_rows(sample)
    page.tab.locator(".chip[data-verdict=falsified]").click()
    falsified = [row for row in rows if row.outcome.verdict == "falsified"]
    assert page.told() == len(falsified)
    assert all("falsified" in cell for cell in page.column("verdict"))
    page.tab.locator("#family").select_option(label="mnist")
    both = [row for row in falsified if row.instance.family == "mnist"]
    assert 0 < page.told() == len(both) < len(falsified)
    assert page.tab.locator("#counterexamples .card").count() == min(12, len(both))
    page.tab.locator("#search").fill("IMAGE 13")
    assert page.column("name") == [row.instance.name for row in both if "image 13" in row.instance.name]
    page.tab.locator("#search").fill("no such thing")
    assert "No instance matches" in page.text("table.rows tbody")
    page.tab.get_by_role("button", name="Clear the filters").click()
    assert page.told() == len(rows)
    page.tab.locator(".chip[data-verdict=wrong]").click()
    assert page.column("name") == ["net_0 prop_0"]


def test_a_family_of_the_summary_is_shown_alone(sample: Path, visit: Open) -> None:
    page, rows = visit(sample.with_suffix(".html")), main_rows(sample)
    page.tab.locator(".families").get_by_role("button", name="mnist radii").click()
    assert page.told() == sum(row.instance.family == "mnist radii" for row in rows)
    assert "Nothing is solved here yet" in page.text("#plots figure")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_are_legible(sample: Path, visit: Open, scheme: str) -> None:
    page = visit(sample.with_suffix(".html"), scheme)
    text, back = page.tab.locator("body").evaluate(RESOLVED)
    assert (sum(back) > sum(text)) == (scheme == "light")
    looked_at = (
        "h1",
        ".origin dt",
        ".small",
        ".badge",
        ".link",
        ".notice",
        ".about",
        ".chip",
        "#links a",
        ".families td",
        ".rows td",
        ".told",
    )
    for selector in looked_at:
        found = page.tab.locator(f"{selector}:not(.zero)").evaluate_all(f"elements => elements.slice(0, 40).map({RESOLVED})")
        assert found
        assert min(map(contrast, found)) >= 4.5, selector
    page.tab.locator("#theme").click()
    flipped = page.tab.locator("body").evaluate(RESOLVED)
    assert (sum(flipped[1]) > sum(flipped[0])) == (scheme == "dark")
    page.tab.reload()
    page.requests.pop()
    assert page.tab.locator("body").evaluate(RESOLVED) == flipped


def test_pictures_show_the_arrays(tmp_path: Path, visit: Open) -> None:
    rng = np.random.default_rng(0)
    center = rng.integers(0, 256, (3, 32, 32))
    x = center.copy()
    x[1, 5, 7] = (center[1, 5, 7] + 128) % 256
    arrays = {"center": (center / 255).astype(np.float32), "input": (x / 255).astype(np.float32), "output": np.array([0.0, 3.0, 1.0])}
    radii = {"radius_map": np.linspace(0.1, 0.2, 784).reshape(1, 28, 28)}
    html = stored(
        tmp_path / "pictures.sqlite",
        [
            (instance(0, question={"label": 2}), Outcome("falsified", wall_s=1.0, arrays=arrays)),
            (instance(1), Outcome("measured", radius_lower=0.1, wall_s=1.0, arrays=radii)),
        ],
    )
    page = visit(html)
    pixels = """image => { const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight).getContext("2d");
      canvas.drawImage(image, 0, 0); return [...canvas.getImageData(0, 0, image.naturalWidth, image.naturalHeight).data]; }"""
    images = page.tab.locator("#counterexamples img")
    assert [image.get_attribute("alt").split()[0] for image in images.all()] == ["image", "adversary", "difference"]
    for number, array in ((0, center), (1, x)):
        drawn = np.array(images.nth(number).evaluate(pixels)).reshape(32, 32, 4)[:, :, :3]
        np.testing.assert_array_equal(drawn, array.transpose(1, 2, 0))
    changed = np.array(images.nth(2).evaluate(pixels)).reshape(32, 32, 4)[:, :, :3]
    assert np.argwhere(changed != changed[0, 0]).tolist() == [[5, 7, 1]]
    assert re.search(r"class 2\s*→\s*1", page.text("#counterexamples .card"))
    map_of_radii = np.array(page.tab.locator("#maps img").evaluate(pixels)).reshape(28, 28, 4)
    assert map_of_radii[0, 0, :3].tolist() == [68, 1, 84]
    assert map_of_radii[-1, -1, :3].tolist() == [253, 231, 37]
    assert "radii 0.1 to 0.2" in page.text("#maps .card")


def test_the_middle_of_a_region_that_violates_is_told(tmp_path: Path, visit: Open) -> None:
    arrays = {"center": np.full((1, 28, 28), 0.5), "input": np.full((1, 28, 28), 0.5), "output": np.array([0.0, 3.0])}
    page = visit(stored(tmp_path / "middle.sqlite", [(instance(0), Outcome("falsified", wall_s=1.0, arrays=arrays))]))
    assert [image.get_attribute("alt").split()[0] for image in page.tab.locator("#counterexamples img").all()] == ["image", "adversary"]
    assert "the middle of the region itself" in page.text("#counterexamples .card")


def test_details_of_an_instance(sample: Path, visit: Open) -> None:
    page = visit(sample.with_suffix(".html"))
    page.tab.locator("#search").fill("net_1 prop_4")
    page.tab.locator("table.rows").get_by_role("button", name="net_1 prop_4", exact=True).click()
    shown = page.text("#detail")
    for expected in ("falsified", "as expected", "onnx/net_1.onnx", "X_0\t0\t0.1", "X_1\t0\t-0.2", "outputs 1, 0.5", "inputs rounded\n1"):
        assert expected in shown
    page.tab.keyboard.press("Escape")
    page.tab.locator("#search").fill("prop_12")
    page.tab.locator("table.rows").get_by_role("button", name="net_3 prop_12", exact=True).click()
    assert re.search(r"unknown\s+expected verified", page.text("#detail .detail"))
    page.tab.keyboard.press("Escape")
    assert not page.tab.locator("#detail").is_visible()


def test_markup_in_names_is_text(tmp_path: Path, visit: Open) -> None:
    texts = {"family": HOSTILE, "name": HOSTILE, "network": f"{HOSTILE}.onnx", "spec": HOSTILE}
    entries = [
        (instance(k, **texts | {"family": f"{HOSTILE}{k}"}), Outcome("error", HOSTILE, decided_by=HOSTILE, wall_s=1.0)) for k in (0, 1)
    ]
    page = visit(stored(tmp_path / "<b>&.sqlite", entries))
    assert page.tab.evaluate("window.hacked") is None
    assert page.column("name") == [HOSTILE, HOSTILE]
    assert page.column("note") == [HOSTILE, HOSTILE]
    page.tab.locator("table.rows button.link").first.click()
    assert page.tab.locator("#detail-name").text_content() == HOSTILE
    assert page.tab.title().startswith("<b>&")
    assert page.tab.locator("script").count() == 2


def test_no_results_yet(tmp_path: Path, visit: Open) -> None:
    page = visit(stored(tmp_path / "empty.sqlite", [], None))
    assert "This file holds no results yet" in page.text(".notice")
    assert page.tab.locator("section").count() == 0


def test_a_killed_sweep_and_nothing_solved(tmp_path: Path, visit: Open) -> None:
    page = visit(stored(tmp_path / "killed.sqlite", [(instance(0), Outcome("unknown", "time limit", wall_s=1.0))], None))
    assert "was killed" in page.text("header .notice")
    assert "Nothing is solved here yet" in page.text("#plots .empty")
    assert page.tab.locator("#radii, #counterexamples, #maps").count() == 0
    assert not page.tab.locator("#family-label").is_visible()


def test_printing_brings_all_rows(sample: Path, visit: Open) -> None:
    page, rows = visit(sample.with_suffix(".html")), main_rows(sample)
    page.tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert list(page.tab.locator("table.rows tbody tr td:first-child").all_inner_texts()) == [row.instance.name for row in rows]
    page.tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert len(page.column("name")) < len(rows)
    assert page.tab.locator("th[data-key=seconds] button").count() == 1


def test_a_folder_is_not_replaced(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="it is a folder"):
        write_html(sample, tmp_path)


def test_page_names_no_address_and_is_the_same_twice(sample: Path) -> None:
    page = render(select(sample), sample)
    assert set(re.findall(r"https?://[^\s\"']*", page)) == {"http://www.w3.org/2000/svg"}
    assert page == render(select(sample), sample)


def test_pictures_beyond_the_budget_are_left_out_and_told(
    sample: Path, monkeypatch: pytest.MonkeyPatch, visit: Open, tmp_path: Path
) -> None:
    monkeypatch.setattr("verify.report.PICTURE_BYTES", 9000)
    write_html(sample, tmp_path / "few.html")
    page = visit(tmp_path / "few.html")
    cards = page.tab.locator("#counterexamples .card").count()
    assert cards >= 1
    left = int(re.findall(r"(\d+) more", page.text("#counterexamples .small"))[0])
    assert cards + left >= sum(row.instance.family == "mnist" and row.outcome.verdict == "falsified" for row in main_rows(sample))
