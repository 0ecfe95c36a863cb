"""The benchmark's picture: what it shows, and that the same run gives the same file."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from localdelay.benchmark import plot
from localdelay.lateness import Latencies, LatencyRecorder

TITLE = "How late sends begin: 1,000 messages/s, each due after 2 s"
FACTS = "500 bytes, 20 workers, one message a send, 2 cores"


def intervals(seed: int, count: int = 5, each: int = 2_000) -> list[Latencies]:
    draw = random.Random(seed)
    recorder = LatencyRecorder()
    taken = []
    for _ in range(count):
        for _ in range(each):
            recorder.record(draw.expovariate(1_000))
        taken.append(recorder.take())
    return taken


def drawn(path: Path, *runs: Sequence[Latencies], labels: Sequence[str] = ("this run", "other")) -> Path:
    series = [plot.Series(label, run, 1.0) for label, run in zip(labels, runs, strict=False)]
    plot.draw(path, TITLE, FACTS, series)
    return path


def texts(svg: Path) -> list[str]:
    root = ET.fromstring(svg.read_text(encoding="utf-8"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return ["".join(element.itertext()).strip() for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_an_svg_says_what_it_shows(tmp_path: Path) -> None:
    """Title, facts, both panels, the axis of nines and the lines of the second panel stand in it as text."""
    found = texts(drawn(tmp_path / "run.svg", intervals(1)))
    for text in (
        TITLE,
        FACTS,
        "by percentile, the maximum as a dot",
        "second by second",
        "percentile",
        "seconds since the first message was due",
        *("0", "90", "99", "99.9", "99.99"),
        *("100 µs", "1 ms"),
        *("p50", "p99", "max"),
    ):
        assert text in found, text
    assert "this run" not in found, "a lone run needs no legend"


def test_runs_are_laid_over_one_another_and_named(tmp_path: Path) -> None:
    """With a second run there is a legend, and a line in a colour of its own in each panel."""
    alone = drawn(tmp_path / "one.svg", intervals(1)).read_text()
    path = drawn(tmp_path / "two.svg", intervals(1), intervals(2))
    assert {"this run", "other"} <= set(texts(path))
    both = path.read_text()
    assert "#d1495b" in both
    assert "#d1495b" not in alone


def test_names_of_files_are_shown_as_they_are(tmp_path: Path) -> None:
    """Neither a dollar nor an underscore means anything."""
    path = drawn(tmp_path / "run.svg", intervals(1), intervals(2), labels=["a $x^2$ b", "_hidden"])
    assert {"a $x^2$ b", "hidden"} <= set(texts(path))


def test_the_same_run_gives_the_same_file(tmp_path: Path) -> None:
    """An SVG has no date and no random name in it."""
    first = drawn(tmp_path / "first.svg", intervals(1), intervals(2)).read_bytes()
    second = drawn(tmp_path / "second.svg", intervals(1), intervals(2)).read_bytes()
    assert first == second
    assert b"dc:date" not in first


def test_a_png_is_one(tmp_path: Path) -> None:
    """A PNG, wide enough for a screen of fine resolution."""
    data = drawn(tmp_path / "run.PNG", intervals(1)).read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert width == 1_600
    assert 600 < height < 900


@pytest.mark.parametrize(
    "run",
    [
        [Latencies({0: 5}, 0.0)],
        [Latencies({0: 1}, 0.0)],
        [Latencies(), *intervals(3, 1), Latencies(), *intervals(4, 1, each=1)],
        [Latencies({1_500: 100}, 0.0015)] * 3,
    ],
    ids=["nothing late", "one message", "gaps", "all alike"],
)
def test_odd_runs_can_be_drawn(run: list[Latencies], tmp_path: Path) -> None:
    """No warning and no error for what is the limit of a logarithmic axis."""
    found = texts(drawn(tmp_path / "run.svg", run))
    assert TITLE in found
    assert sum(text.endswith((" µs", " ms", " s")) for text in found) >= 2, "an axis needs two labels"


def test_the_curve_has_the_nines_of_its_ranks() -> None:
    """990 of 1,000 within 1 ms are two nines; the longest stands at the place of the last one."""
    recorder = LatencyRecorder()
    recorder.record(0.001, 990)
    recorder.record(0.002, 9)
    recorder.record(0.5)
    corners = list(plot.percentile_curve(recorder.take()))
    assert [value for _, value in corners] == [0.001, 0.001, 0.002, 0.002, 0.5, 0.5]
    assert [nines for nines, _ in corners] == pytest.approx([0, 2, 2, 3, 3, 3])


@pytest.mark.parametrize(("nines", "said"), [(0, "0"), (1, "90"), (2, "99"), (3, "99.9"), (6, "99.9999")])
def test_nines_are_percentiles(nines: int, said: str) -> None:
    """Each nine more is a decimal more."""
    assert plot.percent(nines) == said
