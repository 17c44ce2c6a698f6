"""The paper's figures as bytes: wrong voxels by method (Fig. 1), methods side by side (Fig. 5), thresholds (Fig. 6);
and one that it lacks: how often voxels near the border are wrong, and how often the others are.

Arrays are (x, y, z) in RAS+; labels are integers, 0 the background. Planes hang as in `sscl.report.figures`. Equal
arguments give equal bytes.
"""

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sscl.metrics.border import REACH, near_border, wrong_voxels
from sscl.metrics.overlap import Mask
from sscl.metrics.surface import bounding_box
from sscl.metrics.table import is_distance
from sscl.report.border import Rate, RateRow
from sscl.report.figures import COLOURS, INK, STYLE, Slices, as_svg, axial_slice, view_box, view_point
from sscl.report.statistics import Interval
from sscl.report.surface_view import surface_view
from sscl.report.tables import SHOWN

Labels = NDArray[Any]
Form = Literal["png", "svg"]

TRUTH = "ground truth"
THRESHOLD_MEASURES = ("dice", "jaccard", "hd95_medpy_voxel", "asd_medpy_voxel")
"""The four of Figure 6, in the literature's convention."""

_DPI = 150
_SIDE, _GAP, _TEXT = 240, 12, 17  # pixels of a panel, between panels, of a line of text
_COLUMNS = 7
_PAPER = {"figure.facecolor": "white", "text.color": "#202020"}  # pictures of scans carry their own ground
_BONE = np.array([255.0, 214.0, 170.0])
"""Colour of a surface in full light."""


def error_maps(
    image: NDArray[Any],
    reference: Labels,
    predictions: Mapping[str, Labels],
    spacing_mm: Sequence[float],
    ignore_label: int | None = None,
    form: Form = "png",
) -> bytes:
    """Figure 1: a panel per method, all of one axial slice, wrong voxels red; their number below, in slice and scan.

    The slice is the one through the organ where all methods together have most wrong voxels, and is named.
    """
    wrong = {name: wrong_voxels(labels, reference, ignore_label) for name, labels in predictions.items()}
    near, organ = near_border(reference, ignore_label), _organ(reference, ignore_label)
    box, index = _view(list(wrong.values()), organ, spacing_mm)
    slices = [axial_slice(image, reference, mask, index, box, spacing_mm, _SIDE) for mask in wrong.values()]
    captions = [_counts(mask, near, index) for mask in wrong.values()]
    footer = (
        f"Axial slice {index}, that with most wrong voxels of all methods together. Line: reference. "
        f"Near: within {REACH:g} voxels of its border."
    )
    return _written(_page(list(wrong), [slices], captions, footer), form)


def side_by_side(
    image: NDArray[Any],
    reference: Labels,
    predictions: Mapping[str, Labels],
    spacing_mm: Sequence[float],
    ignore_label: int | None = None,
    form: Form = "png",
) -> bytes:
    """Figure 5: for each method and the ground truth the outline of its mask on one axial slice (that of
    `error_maps`), and below it its surface, all from one side and in one scale."""
    wrong = [wrong_voxels(labels, reference, ignore_label) for labels in predictions.values()]
    box, index = _view(wrong, _organ(reference, ignore_label), spacing_mm)
    masks = {
        name: np.where(_organ(labels, ignore_label), labels, 0)
        for name, labels in {**predictions, TRUTH: reference}.items()
    }
    nothing = np.zeros(reference.shape, bool)
    slices = [axial_slice(image, mask, nothing, index, box, spacing_mm, _SIDE) for mask in masks.values()]
    surfaces = _surfaces([mask != 0 for mask in masks.values()], spacing_mm)
    return _written(_page(list(masks), [slices, surfaces]), form)


def threshold_curves(points: Mapping[str, Sequence[tuple[float, Mapping[str, float]]]], form: Form = "svg") -> bytes:
    """Figure 6: Dice, Jaccard, 95HD and ASD over the threshold of pseudo-labels, a line for each reading of it.

    points: reading to pairs of threshold and scores by THRESHOLD_MEASURES. An infinite score (a missed case) leaves a
    gap in the line, marked ∞ at the upper edge.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 2.1), layout="constrained")
        for axes, measure in zip(figure.subplots(1, len(THRESHOLD_MEASURES)), THRESHOLD_MEASURES, strict=True):
            for (reading, line), colour, marker in zip(points.items(), COLOURS, "os^Dv<>p", strict=False):
                pairs = sorted((threshold, scores[measure]) for threshold, scores in line)
                axes.plot(*_finite(pairs), color=colour, marker=marker, markersize=3.5, linewidth=1.2, label=reading)
                for threshold, value in pairs:
                    if not math.isfinite(value):
                        axes.text(threshold, 0.92, "∞", transform=axes.get_xaxis_transform(), color=colour, ha="center")
            axes.set_title(f"{SHOWN[measure]} {'↓' if is_distance(measure) else '↑'}", fontsize=8)
            axes.set_xticks(sorted({threshold for line in points.values() for threshold, _ in line}))
            axes.tick_params(labelsize=7)
        figure.supxlabel("threshold", fontsize=8)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
        return _written(figure, form)


def border_rates(rows: Sequence[RateRow], form: Form = "svg") -> bytes:
    """Differences of each method to the baseline in the rate of wrong voxels, near the border and elsewhere: a dot and
    its 95 % interval, in percentage points; left of the line there are fewer wrong voxels than the baseline has."""
    compared = [row for row in rows if row.experiment != row.baseline]
    baseline = rows[0]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 1.1 + 0.28 * max(1, len(compared))), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _intervals(left, [row.near.difference for row in compared], COLOURS[1])
        _intervals(right, [row.elsewhere.difference for row in compared], COLOURS[0])
        for axes, region, rate in ((left, "near the border", baseline.near), (right, "elsewhere", baseline.elsewhere)):
            axes.set_title(f"{region} ({baseline.experiment}: {_percent(rate)})", fontsize=8)
            axes.tick_params(labelsize=7)
        left.set_yticks(range(len(compared)), [row.experiment for row in compared])
        left.set_ylim(len(compared) - 0.5, -0.5) if compared else None
        figure.supxlabel(f"rate of wrong voxels minus that of {baseline.experiment}, percentage points", fontsize=8)
        return _written(figure, form)


def _organ(labels: Labels, ignore_label: int | None) -> Mask:
    organ = np.asarray(labels != 0)
    return organ if ignore_label is None else organ & (labels != ignore_label)


def _view(wrong: Sequence[Mask], organ: Mask, spacing_mm: Sequence[float]) -> tuple[Slices, int]:
    """The part that holds the organ and all errors, and the number of the axial slice."""
    return view_box(np.logical_or.reduce([organ, *wrong]), spacing_mm), view_point(wrong, organ)[2]


def _surfaces(masks: Sequence[Mask], spacing_mm: Sequence[float]) -> list[NDArray[np.uint8]]:
    """The masks' surfaces on white, (rows, columns, RGB), cropped to what any of them reaches."""
    union = np.logical_or.reduce(masks)
    box = bounding_box(union) if union.any() else ()
    views = [surface_view(mask[box], spacing_mm, 3 * _SIDE // 2) for mask in masks]
    hit = np.logical_or.reduce([~np.isnan(view) for view in views])
    frame = bounding_box(hit) if hit.any() else ()
    return [_lit(view[frame]) for view in views]


def _lit(brightness: NDArray[np.float64]) -> NDArray[np.uint8]:
    empty = np.isnan(brightness)[..., None]
    return np.where(empty, 255.0, np.nan_to_num(brightness)[..., None] * _BONE).astype(np.uint8)


def _page(
    names: Sequence[str], parts: Sequence[Sequence[NDArray[np.uint8]]], captions: Sequence[str] = (), footer: str = ""
) -> Figure:
    """Panels in lines of at most seven: name, one picture of each part below the other, caption. Placed by the pixel,
    because a slice that is scaled again has voxels of unequal width."""
    columns = min(len(names), _COLUMNS)
    width = columns * (_SIDE + _GAP) + _GAP
    notes = textwrap.wrap(footer, width // 8)
    heads = ["\n".join(textwrap.wrap(name, _SIDE // 10)) for name in names]
    above = _TEXT * max(head.count("\n") + 1 for head in heads)
    heights = [max(_fitted(picture)[1] for picture in part) for part in parts]
    below = _TEXT * max((caption.count("\n") + 1 for caption in captions), default=0)
    line = 2 * _GAP + above + sum(heights) + _GAP * len(parts) + below
    height = math.ceil(len(names) / columns) * line + _TEXT * len(notes) + _GAP
    with matplotlib.rc_context({**STYLE, **_PAPER}):
        figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
        for number, head in enumerate(heads):
            middle = _GAP + (number % columns) * (_SIDE + _GAP) + _SIDE / 2
            top = _GAP + (number // columns) * float(line)
            _write_at(figure, middle, top, head, 8)
            top += above + _GAP / 2
            for part, room in zip(parts, heights, strict=True):
                _draw_at(figure, middle, top + room / 2, part[number])
                top += room + _GAP
            if captions:
                _write_at(figure, middle, top - _GAP / 2, captions[number], 7)
        _write_at(figure, width / 2, height - _TEXT * len(notes) - _GAP / 2, "\n".join(notes), 7)
    return figure


def _fitted(picture: NDArray[np.uint8]) -> tuple[int, int]:
    """Width and height in a panel of _SIDE pixels."""
    height, width = picture.shape[:2]
    scale = _SIDE / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _draw_at(figure: Figure, x: float, y: float, picture: NDArray[np.uint8]) -> None:
    """A picture around (x, y), in pixels from the upper left."""
    (page_width, page_height), (width, height) = figure.get_size_inches() * _DPI, _fitted(picture)
    left, bottom = round(x - width / 2), round(page_height - y - height / 2)
    axes = figure.add_axes((left / page_width, bottom / page_height, width / page_width, height / page_height))
    axes.imshow(picture, aspect="auto")
    axes.set_axis_off()


def _write_at(figure: Figure, x: float, y: float, text: str, size: float) -> None:
    """Lines of text, centred on x, below y, in pixels from the upper left."""
    width, height = figure.get_size_inches() * _DPI
    figure.text(x / width, 1 - y / height, text, ha="center", va="top", fontsize=size)


def _counts(wrong: Mask, near: Mask, index: int) -> str:
    """How many voxels are wrong in the slice, and in the scan."""
    here, here_near = int(wrong[..., index].sum()), int((wrong & near)[..., index].sum())
    all_, all_near = int(wrong.sum()), int((wrong & near).sum())
    return f"{here} wrong voxels\n({here_near} near the border)\nin the scan {all_} ({all_near})"


def _finite(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """x and y; NaN, a gap, where y is infinite."""
    return [x for x, _ in pairs], [y if math.isfinite(y) else math.nan for _, y in pairs]


def _intervals(axes: Axes, differences: Sequence[Interval | None], colour: str) -> None:
    axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
    for row, found in enumerate(differences):
        if found is None:
            axes.text(0, row, "n/a", ha="center", va="center", fontsize=7)
        else:
            axes.plot([100 * found.low, 100 * found.high], [row, row], color=colour, linewidth=1.6)
            axes.plot([100 * found.mean], [row], color=colour, marker="o", markersize=5)


def _percent(rate: Rate) -> str:
    return "n/a" if rate.mean is None else f"{100 * rate.mean:.3g} %"


def _written(figure: Figure, form: Form) -> bytes:
    if form == "svg":
        return as_svg(figure).encode()
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file, metadata={"Software": None})
    return file.getvalue()
