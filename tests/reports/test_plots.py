"""Plots show their numbers, in the colors of the page, and the same bytes each time."""

import pytest
from helpers.page_reading import drawings

from semseg_diffusers.reports.plots import line_plot, training_curve


NAN = float("nan")


def paths(plot, color):
    """The points of a line, for each part of it."""
    (svg,) = drawings(str(plot.svg))
    found = [path.get("d") for path in svg.iter("path") if f"stroke: var(--{color})" in path.get("style", "")]
    parts = [part for path in found for part in path.split("M")[1:]]
    return [[tuple(map(float, point.split())) for point in part.split("L")] for part in parts]


def test_lines_run_through_their_points_and_break_where_there_is_none():
    points = [(0, 0.0), (50, 1.0), (60, None), (70, NAN), (80, 0.5), (100, 0.75)]
    plot = line_plot({"loss": points, "one": [(20, 0.2)]}, "step", "loss")
    first, second = paths(plot, "s0")
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = *first, *second
    scale = (x1 - x0) / 50, (y1 - y0) / 1.0  # units for a step and for a loss of one
    assert scale[0] > 0
    assert scale[1] < 0
    assert (x2, x3) == pytest.approx((x0 + 80 * scale[0], x0 + 100 * scale[0]))
    assert (y2, y3) == pytest.approx((y0 + 0.5 * scale[1], y0 + 0.75 * scale[1]))
    dot = (x0 + 20 * scale[0], y0 + 0.2 * scale[1])  # of a point without neighbours
    assert paths(plot, "s1")[-1] == [pytest.approx(dot)] * 2
    assert "loss from 0 at 0 to 0.750 at 100, least 0, most 1.00; one from 0.200 at 20" in plot.text
    assert [entry.last for entry in plot.legend] == ["0.750 at 100", "0.200 at 20"]


def test_a_plot_has_real_text_and_the_colors_of_the_page():
    plot = line_plot({"$a$": [(0, 1.0), (1000, 2.0)]}, "step $x$", "loss")
    texts = ["".join(text.itertext()) for text in drawings(str(plot.svg))[0].iter("text")]
    assert {"step $x$", "loss", "1,000", "1.5"} <= set(texts)
    assert "#" not in plot.svg
    assert "id=" not in plot.svg
    assert "DejaVu" not in plot.svg


def test_a_seventh_line_differs_by_its_dashes():
    plot = line_plot({f"run {index}": [(0, index), (1, index)] for index in range(7)}, "step", "loss")
    assert len({(entry.color, entry.dash) for entry in plot.legend}) == 7
    assert plot.svg.count("stroke-dasharray") == 1


def test_a_plot_without_a_point_is_refused():
    with pytest.raises(ValueError, match="needs at least one finite point; got none in loss"):
        line_plot({"loss": [(0, NAN), (1, None)]}, "step", "loss")


def test_on_a_logarithmic_axis_equal_ratios_are_equal_steps():
    plot = line_plot({"loss": [(0, 1.0), (50, 0.1), (100, 0.01)]}, "step", "loss", logarithmic=True)
    ((_, high), (_, middle), (_, low)) = paths(plot, "s0")[0]
    assert middle - high == pytest.approx(low - middle, abs=1e-4)
    with pytest.raises(ValueError, match="a logarithmic axis shows values above 0; got 0"):
        line_plot({"loss": [(0, 1.0), (50, 0.0)]}, "step", "loss", logarithmic=True)


@pytest.mark.parametrize(("low", "high"), [(0.013, 0.6), (1, 1), (0.5, 0.5), (1e-6, 3e4), (0.02, 0.09)])
def test_a_logarithmic_axis_is_labelled_with_few_round_numbers(low, high):
    plot = line_plot({"loss": [(0, low), (1, high)]}, "step", "loss", logarithmic=True)
    texts = ["".join(text.itertext()) for text in drawings(str(plot.svg))[0].iter("text")]
    axis = [float(text.replace(",", "")) for text in texts[texts.index("step") + 1 : texts.index("loss")]]
    assert 1 <= len(axis) <= 12
    assert axis == sorted(set(axis))


def test_training_curve_shows_loss_and_score():
    log = [
        {"step": 20, "loss": 2.0},
        {"step": 20, "mean_iou": 0.1},
        {"step": 40, "loss": 1.0},
        {"step": 40, "mean_iou": 0.3},
    ]
    both, loss_only = training_curve(log, 40, "toy"), training_curve([line for line in log if "loss" in line])
    colors = [{color for _, color in picture.getcolors(1 << 20)} for picture in (both, loss_only)]
    assert (214, 84, 20) in colors[0]
    assert (214, 84, 20) not in colors[1]
    assert all((31, 119, 180) in found for found in colors)
    assert training_curve([]).size == both.size


def test_the_same_numbers_give_the_same_plots():
    lines = {"loss": [(0, 1.0), (5, None), (10, 0.5), (11, None), (12, 0.25)]}
    assert line_plot(lines, "step", "loss") == line_plot(lines, "step", "loss")
    log = [{"step": 20, "loss": 2.0}, {"step": 20, "mean_iou": 0.1}]
    assert training_curve(log, 20, "toy").tobytes() == training_curve(log, 20, "toy").tobytes()


def test_matplotlib_is_imported_by_the_first_plot_only(clean_process):
    names = ("reports.plots", "reports.run_page", "masks.statistics.stats", "training.loop")
    imports = ", ".join(f"semseg_diffusers.{name}" for name in names)
    code = f"import sys, {imports}; sys.exit('matplotlib' in sys.modules)"
    assert clean_process(code, check=False).returncode == 0
