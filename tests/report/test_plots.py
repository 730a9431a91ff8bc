"""Figures decode to PNGs that hold what they must: gaps, colours, labels, one and no point."""

import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from lrm_jax.report import plots, style


def pixels(png: bytes) -> np.ndarray:
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def columns_of(image: np.ndarray, colour: str, tolerance: int = 12) -> np.ndarray:
    """Which columns hold a pixel of this colour."""
    near = np.abs(image - np.array(ImageColor.getrgb(colour))).max(axis=-1) <= tolerance
    return near.any(axis=0)


def test_components_draw_gaps_as_gaps():
    values = np.full(60, 0.5)
    whole = pixels(plots.reward_components({"progress": values}))
    values[20:40] = np.nan
    broken = pixels(plots.reward_components({"progress": values}))
    line, holed = (columns_of(i, style.LIGHT.hues["blue"]) for i in (whole, broken))
    edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(int), [0]])))
    start, stop = max(zip(edges[::2], edges[1::2], strict=True), key=lambda e: e[1] - e[0])
    # Of 59 steps between frames, the 21 that touch an invalid frame are missing.
    assert (~holed[start:stop]).sum() == pytest.approx((stop - start) * 21 / 59, rel=0.05)
    missing = np.flatnonzero(~holed[start:stop])
    assert missing[-1] - missing[0] + 1 == missing.size


def test_a_lone_valid_point_is_a_dot():
    values = np.full(30, np.nan)
    values[15] = 0.5
    image = pixels(plots.reward_components({"completion": values}))
    assert columns_of(image, style.LIGHT.hues["vermillion"])[300:].sum() >= 3
    np.testing.assert_array_equal(
        plots.lone_points(np.array([1, np.nan, 2, 3, np.nan, 4])), [1, 0, 0, 0, 0, 1]
    )


@pytest.mark.filterwarnings("ignore:Glyph")  # no font for CJK on this machine
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_figures_draw_in_both_themes(theme):
    rng = np.random.default_rng(0)
    x = np.arange(5)
    runs = rng.random((3, 5))
    made = [
        plots.learning_curves(
            x,
            {"refined": {"runs": runs, "low": runs.min(0), "high": runs.max(0)},
             "constant": {"mean": [0.5, np.nan, 0.5, np.nan, np.nan]}},
            reference={"base": 0.4}, title="größer $x^$ 推", theme=theme,
        ),
        plots.proxy_and_oracle(
            x, runs, 1 - runs, apart=[np.nan, np.nan, 1.0, -0.5, -1.0], title="t", theme=theme
        ),
        plots.reward_components(
            {h: rng.random(9) for h in ("progress", "completion", "contrastive", "tri")},
            seconds_per_frame=0.1, target=rng.random(9), events={"success": 7}, theme=theme,
        ),
        plots.reliability(rng.random(50), rng.random(50) < 0.5, theme=theme),
        plots.success_bars({"base": (1, 2), "none": (0, 0), "all": (7, 7)}, theme=theme),
    ]  # fmt: skip
    ground = ImageColor.getrgb(style.theme(theme).ground)
    for png in made:
        image = pixels(png)
        assert tuple(image[0, 0]) == ground
        assert image.shape[0] > 200 and image.shape[1] > 500
        assert np.abs(image - np.array(ground)).max() > 100


def test_one_frame_one_iteration_nothing():
    pixels(plots.reward_components({"progress": [0.3], "contrastive": [np.nan]}, target=[0.0]))
    pixels(plots.learning_curves([0], {"a": {"mean": [0.2]}}))
    pixels(plots.learning_curves([0, 1], {"a": {"mean": [np.nan, np.nan]}}, percent=False))
    pixels(plots.reliability([], []))


def test_the_same_figure_gives_the_same_bytes():
    make = [plots.success_bars({"base": (3, 10), "refined": (9, 10)}) for _ in range(2)]
    assert make[0] == make[1]


def test_users_matplotlib_settings_stay_and_do_not_matter():
    import matplotlib

    before = plots.success_bars({"base": (3, 10)})
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red"}):
        assert plots.success_bars({"base": (3, 10)}) == before
        assert matplotlib.rcParams["font.size"] == 30


def test_labels_are_pushed_apart():
    places = plots.spread([0.5, 0.5, 0.51, 0.9], 0.05, 0, 1)
    assert (np.diff(places) >= 0.05 - 1e-6).all()
    assert abs(places[:3].mean() - 0.503) < 0.01 and places[3] == pytest.approx(0.9, abs=0.01)
    assert plots.spread([1.0, 1.0], 0.1, 0, 1).max() <= 1.0
    assert plots.spread([], 0.1, 0, 1).size == 0


def test_colours_are_fixed_and_distinct():
    for look in (style.LIGHT, style.DARK):
        names = ["mine", "refined", "base", "oracle", "constant", "time ramp"]
        chosen = style.colours(names, look)
        assert len(set(chosen.values())) == len(names)
        assert chosen["refined"] == style.colours(["refined"], look)["refined"]
        assert len(style.colours([str(i) for i in range(12)], look)) == 12


@pytest.mark.parametrize("look", [style.LIGHT, style.DARK])
def test_text_and_lines_stand_out_from_the_ground(look):
    """WCAG contrast: 4.5 for text, 3 for lines."""

    def luminance(colour):
        channels = np.array(ImageColor.getrgb(colour)) / 255
        linear = np.where(
            channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4
        )
        return linear @ [0.2126, 0.7152, 0.0722]

    def contrast(colour):
        bright, dark = sorted((luminance(colour), luminance(look.ground)), reverse=True)
        return (bright + 0.05) / (dark + 0.05)

    assert contrast(look.ink) > 7 and contrast(look.faint) > 4.5
    for hue in look.hues.values():
        assert contrast(hue) > 3


@pytest.mark.parametrize(
    "call",
    [
        lambda: plots.learning_curves([0], {}),
        lambda: plots.learning_curves([0, 1], {"a": {"mean": [1]}}),
        lambda: plots.learning_curves([0, 1], {"a": {}}),
        lambda: plots.reward_components({}),
        lambda: plots.reward_components({"a": [1], "b": [1, 2]}),
        lambda: plots.success_bars({}),
        lambda: plots.success_bars({"a": (3, 2)}),
        lambda: plots.success_bars({"a": (1, 2)}, theme="sepia"),
    ],
)
def test_wrong_arguments_are_errors(call):
    with pytest.raises(ValueError):
        call()


def test_iterations_where_reward_and_success_part_are_shaded():
    x, up = np.arange(1, 11), np.linspace(0, 1, 10)[None]
    apart = np.where(x > 6, -1.0, 1.0)
    shade = style.LIGHT.grid

    def wide(image):
        """Columns that are shaded from top to bottom, not just crossed by a line of the grid."""
        near = np.abs(image - np.array(ImageColor.getrgb(shade))).max(-1) <= 4
        return near.mean(0) > 0.3

    plain = pixels(plots.proxy_and_oracle(x, up, 1 - up, apart=np.ones(10)))
    shaded = pixels(plots.proxy_and_oracle(x, up, 1 - up, apart=apart))
    new = np.flatnonzero(wide(shaded) & ~wide(plain))
    # Four of ten iterations, at the right end.
    assert new.size > 0.2 * shaded.shape[1] and new.min() > 0.5 * shaded.shape[1]
    assert not wide(plain)[300:-50].any()
    with pytest.raises(ValueError, match="runs"):
        plots.proxy_and_oracle(x, up, up[:, :5])


def test_a_run_that_stopped_early_ends_early():
    x, runs = np.arange(8), np.full((2, 8), 0.5)
    runs[:, 4:] = np.nan
    short = columns_of(pixels(plots.proxy_and_oracle(x, runs, runs)), style.LIGHT.hues["blue"])
    full = columns_of(
        pixels(plots.proxy_and_oracle(x, np.full((2, 8), 0.5), runs)), style.LIGHT.hues["blue"]
    )
    assert short.sum() < 0.6 * full.sum()
