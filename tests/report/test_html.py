"""The report is one well-formed page without any outside resource."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from lrm_jax.report import Clip, blocks, overlay_video, render_report, write_report
from lrm_jax.report.strip import film_strip
from lrm_jax.report.verdict import verdict

VOID = {"meta", "img", "source", "br", "hr", "link", "input"}
SUMMARY = {
    "base_success": 0.48,
    "refined_success": 0.86,
    "episodes": 512,
    "wilson_base": [0.437, 0.523],
    "wilson_refined": [0.827, 0.887],
    "mcnemar_p": 1e-30,
    "oracle_success": 0.94,
    "iterations": 30,
    "wall_seconds": 812.0,
    "env_steps": 153600,
    "vlm_scores": 163200,
    "invalid_scores": 12,
}


class Page(HTMLParser):
    """Checks that tags close in order, gathers attributes that load something, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.text, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "srcset", "href", "poster", "data", "action"):
                self.loads.append(value)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).replace("\u00a0", " ").split())


@pytest.fixture(scope="module")
def full():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
    outcomes = {name: rng.random(64) < p for name, p in (("base", 0.5), ("refined", 0.9))}
    text = render_report(
        SUMMARY,
        curves=[
            {"kind": "learning_curves", "title": "Learning", "caption": "Five seeds.",
             "x": [0, 1, 2], "arms": {"refined": {"mean": [0.4, np.nan, 0.8]}}},
            {"kind": "reward_components", "title": "Heads", "scores": {"progress": [0.1, 0.9]}},
            {"kind": "reliability", "title": "Calibration",
             "probabilities": [0.2, 0.8], "labels": [False, True]},
            {"kind": "success_bars", "title": "Success", "arms": {"base": (5, 10)}},
            {"title": "Ready made", "png": film_strip(frames)},
        ],
        tables={
            "Controls": blocks.success(outcomes, "base"),
            "Where the minutes go": blocks.minutes({"physics": 100.0, "scoring": 300.0}, 500.0),
        },
        media={
            "Before and after": {"mp4": overlay_video([Clip(frames), Clip(frames)])},
            "Strip": film_strip(frames),
            "Lost": "/nowhere/episode.mp4",
            "Never made": None,
        },
        manifest={"seed": 12345, "config": {"job": "quickstart", "layers": list(range(40))}},
        title="Quickstart <&>",
    )  # fmt: skip
    return text, Page(text)


def test_page_is_well_formed_and_self_contained(full):
    text, page = full
    assert text.startswith("<!doctype html>")
    assert page.loads and all(load.startswith("data:") for load in page.loads)
    outside_data = re.sub(r"data:[a-z0-9/]+;base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", outside_data)
    assert "script" not in page.tags
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text


def test_embedded_media_decode(full):
    kinds = []
    for load in full[1].loads:
        kind, data = re.fullmatch(r"data:([a-z0-9/]+);base64,(.*)", load).groups()
        data = base64.b64decode(data, validate=True)
        kinds.append(kind)
        if kind == "image/png":
            Image.open(io.BytesIO(data)).verify()
        else:
            assert data[4:8] == b"ftyp"
    # Four figures in two themes, one ready made, the strip; one video.
    assert kinds.count("image/png") == 10 and kinds.count("video/mp4") == 1


def test_what_the_page_says(full):
    words = full[1].words
    for expected in (
        "Quickstart <&>",
        "The refined policy is better: +38.0 points",
        "48.0 % of the episodes succeed before refinement, 86.0 % after",
        "(512 paired episodes from the same reset states)",
        "p < 0.0001",
        "recovers 83 % of the gain",
        "95 % interval 43.7 – 52.3 %",
        "VLM scores 163,200",
        "invalid scores 12 (0.0074 %)",
        "wall time 13 min 32 s",
        "Five seeds.",
        "everything else 1 min 40 s 20.0 %",
        "Not available: episode.mp4: No such file or directory.",
        "Not available: this run made none.",
        "seed 12345",
    ):
        assert expected in words, expected


@pytest.mark.parametrize("summary", [{}, {"steps": 3, "loss": float("nan"), "nested": {"a": [1]}}])
def test_any_summary_makes_a_page(summary):
    page = Page(render_report(summary, manifest={"object": object(), "none": None}))
    assert "policy" not in page.words
    assert summary == {} or "steps 3" in page.words


def test_text_is_escaped():
    evil = '<script>alert("1")</script>'
    table = {"columns": ["a", evil], "rows": [[evil, None]], "note": evil}
    page = Page(render_report({evil: evil}, tables={evil: table}, media={evil: None}, title=evil))
    assert "script" not in page.tags and page.words.count("alert") >= 6


def test_writes_one_file(tmp_path):
    path = write_report(tmp_path / "report.html", SUMMARY, title="größer 推 😀")
    assert "größer 推 😀" in path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"curves": [{"kind": "pie", "title": "x"}]},
        {"tables": {"x": {"rows": []}}},
        {"tables": {"x": {"columns": ["a"], "rows": [[1, 2]]}}},
        {"tables": {"x": {"columns": ["a"], "rows": [[1]], "shares": [0.1, 0.2]}}},
        {"media": {"x": {"gif": b""}}},
    ],
)
def test_wrong_forms_are_errors(arguments):
    with pytest.raises(ValueError, match="'x'"):
        render_report({}, **arguments)


def test_media_that_are_not_what_they_claim():
    words = Page(render_report({}, media={"a": b"GIF89a", "b": {"mp4": b"\x89PNG...."}})).words
    assert "the data are no mp4 or png" in words and "the data are no mp4." in words


@pytest.mark.parametrize(
    "change, state, headline",
    [
        ({}, "better", "The refined policy is better: +38.0 points"),
        ({"mcnemar_p": 0.02}, "open", "No difference shown (+38.0 points)"),
        ({"mcnemar_p": None}, "open", "No difference shown (+38.0 points)"),
        ({"refined_success": 0.4}, "worse", "The refined policy is worse: −8.0 points"),
        ({"oracle_success": None}, "better", "The refined policy is better: +38.0 points"),
    ],
)
def test_verdicts(change, state, headline):
    result = verdict({**SUMMARY, **change})
    assert (result["state"], result["headline"]) == (state, headline)
    assert ("recovers" in result["detail"]) == (change.get("oracle_success", 1) is not None)


def test_an_oracle_of_another_clone_is_named_as_such():
    same, other = (verdict({**SUMMARY, "oracle_base": base}) for base in (0.48, 0.455))
    assert "recovers" in same["detail"] and "recovers" not in other["detail"]
    names = [tile["name"] for tile in other["tiles"]]
    assert names[2] == "oracle (privileged reward), recorded on another clone, 45.5\xa0%"
    assert other["tiles"][2]["share"] == 0.94


def test_no_verdict_without_both_arms():
    assert verdict({"base_success": 0.5}) is None
    assert verdict({"base_success": 0.5, "refined_success": None}) is None


def test_blocks():
    table = blocks.minutes({"a": 1.0, "b": 3.0})
    assert [row[0] for row in table["rows"]] == ["b", "a"] and table["shares"] == [0.75, 0.25]
    assert blocks.minutes({})["rows"] == []
    assert blocks.minutes({"a": 0.0})["shares"] == [0.0]
    assert [blocks.duration(s) for s in (0.35, 48, 725, 7260, float("nan"))] == [
        "0.35 s", "48 s", "12 min 05 s", "2 h 01 min", "–",
    ]  # fmt: skip
    assert [blocks.number(v) for v in (None, np.float32("nan"), True, 12345, 0.5, "x")] == [
        "–", "–", "yes", "12,345", "0.500", "x",
    ]  # fmt: skip
    rows = blocks.success({"base": [0, 1, 0], "refined": [1, 1, 1]}, "base")["rows"]
    assert rows[0][3:] == ["1 / 3", "", ""]
    assert rows[1][3:] == ["3 / 3", "+66.7 points", "p = 0.5"]
    with pytest.raises(ValueError, match="no arm"):
        blocks.success({"base": [1]}, "bse")
    text = blocks.markdown(blocks.seeds({"0": SUMMARY, "1": {**SUMMARY, "mcnemar_p": 0.3}}))
    assert "Better than base at p < 0.01 on 1 of 2 seeds." in text
    assert text.splitlines()[1].startswith("|---|---:")
    assert blocks.markdown({"columns": ["a|b"], "rows": [["c\nd"]]}) == "| a\\|b |\n|---|\n| c d |"
