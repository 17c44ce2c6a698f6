"""Pictures as bytes: three planes of a case with the wrong voxels in red, and a run's training curves.

Arrays are (x, y, z) in RAS+. Planes are drawn as radiologists hang them: the patient's right on the left, front or head
on top, in the sagittal plane the front on the left.
"""

import io
import itertools
import re
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sscl.metrics.overlap import Mask

Slices = tuple[slice, slice, slice]

PLANES = {"axial": 2, "coronal": 1, "sagittal": 0}
"""Plane and the axis it is perpendicular to."""

_RED, _OUTLINE = np.array([190.0, 12.0, 24.0]), np.array([255.0, 222.0, 130.0])
_LARGEST_SIDE = 220  # pixels; keeps 20 cases x 2 runs well under 5 MB
_GREYS = 48  # noise in more levels cannot be seen, but fills the file
_MARGIN_MM = 12.0
_POINTS = 250  # of a curve
COLOURS = ("#3f78b5", "#c2703d", "#4d9a6a", "#8a67b0", "#b0903a", "#b5577f", "#5a9aa8", "#8c6d5a")
INK = "#808080"  # readable on white and on black


@dataclass(frozen=True)
class Picture:
    """One plane. wrong: number of wrong voxels in this slice."""

    plane: str
    png: bytes
    wrong: int
    width: int
    height: int


def view_point(wrong: Sequence[Mask], reference: Mask) -> tuple[int, int, int]:
    """Slice numbers along x, y, z: of the slices that cross the organ, those where all runs together have most wrong
    voxels; without any error there, the middle one. Without an organ, of all slices."""
    x, y, z = (_worst_slice(wrong, reference, axis) for axis in range(3))
    return x, y, z


def _worst_slice(wrong: Sequence[Mask], reference: Mask, axis: int) -> int:
    counts = np.zeros(reference.shape[axis], np.int64)
    for mask in wrong:
        counts += mask.sum(axis=_others(axis))
    crossed = reference.any(axis=_others(axis))
    candidates = np.flatnonzero(crossed if crossed.any() else np.ones_like(crossed))
    candidates = np.roll(candidates, -(len(candidates) // 2))  # the middle one first: argmax takes the first of equals
    return int(candidates[counts[candidates].argmax()])


def view_box(marked: Mask, spacing_mm: Sequence[float]) -> Slices:
    """The part to show: what is marked and 12 mm around it; everything where nothing is marked."""
    if not marked.any():
        return (slice(None), slice(None), slice(None))
    sides = []
    for axis, step in enumerate(spacing_mm):
        hit = np.flatnonzero(marked.any(axis=_others(axis)))
        margin = int(np.ceil(_MARGIN_MM / step))
        sides.append(slice(max(0, int(hit[0]) - margin), int(hit[-1]) + 1 + margin))
    return sides[0], sides[1], sides[2]


def three_planes(
    image: NDArray[Any],
    reference: NDArray[Any],
    wrong: Mask,
    point: tuple[int, int, int],
    box: Slices,
    spacing_mm: Sequence[float],
) -> list[Picture]:
    """Axial, coronal and sagittal slice through `point`, cropped to `box`, in one scale: grey image, wrong voxels red,
    the reference's outline as a thin line. `box` holds every wrong voxel, so none is counted that is not shown."""
    drawn = (_shades(image, box), reference, wrong)
    pitch = max(len(range(n)[side]) * step for n, side, step in zip(image.shape, box, spacing_mm, strict=True))
    pictures = []
    for plane, axis in PLANES.items():
        slices = [_cut(array, axis, point[axis], box, spacing_mm, pitch / _LARGEST_SIDE) for array in drawn]
        colours = _paint(*slices)
        count = int(np.take(wrong, point[axis], axis).sum())
        pictures.append(Picture(plane, _png(colours), count, colours.shape[1], colours.shape[0]))
    return pictures


def axial_slice(
    image: NDArray[Any],
    labels: NDArray[Any],
    wrong: Mask,
    index: int,
    box: Slices,
    spacing_mm: Sequence[float],
    largest_side: int,
) -> NDArray[np.uint8]:
    """Rows, columns, RGB of the axial slice `index`, cropped to `box`, its larger side of `largest_side` pixels: as in
    `three_planes`, with the outlines of `labels`."""
    axis = PLANES["axial"]
    pitch = max(len(range(image.shape[i])[box[i]]) * spacing_mm[i] for i in _others(axis)) / largest_side
    slices = [_cut(array, axis, index, box, spacing_mm, pitch) for array in (_shades(image, box), labels, wrong)]
    return _palette()[_paint(*slices)]


def curves(records: Sequence[Mapping[str, Any]]) -> str:
    """SVG of every `<player>/<name>` series over the iterations; losses bold, their terms thin, phases divided.

    No style attribute, script or address remains in it, so it stands in a page of the strictest policy.
    """
    keys = dict.fromkeys(key for record in records for key in record if "/" in key and not key.endswith("/lr"))
    series = {key: _thinned(records, key) for key in keys}
    series = {key: (x, y) for key, (x, y) in series.items() if len(x)}
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.6, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for (key, (x, y)), colour in zip(series.items(), COLOURS * (len(series) // len(COLOURS) + 1), strict=False):
            bold = key.endswith("/loss")
            axes.plot(x, y, color=colour, linewidth=1.8 if bold else 0.9, alpha=1.0 if bold else 0.8, label=key)
        for start in _phase_starts(records):
            axes.axvline(start, color=INK, linewidth=0.8, linestyle=":")
        axes.set_xlabel("iteration")
        if series:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, handlelength=1.2)
    return _inline(as_svg(figure))


STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "sscl",
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}
"""Settings of matplotlib for every figure that has axes."""


def as_svg(figure: Figure) -> str:
    """The figure as an SVG file's text, in STYLE; the same figure gives the same text."""
    text = io.StringIO()
    with matplotlib.rc_context(STYLE):
        FigureCanvasSVG(figure).print_svg(text, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return text.getvalue()


def _thinned(records: Sequence[Mapping[str, Any]], key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Iterations and values of a series, as means over blocks, at most 250 of them."""
    points = np.array([(r["iteration"], r[key]) for r in records if "iteration" in r and r.get(key) is not None], float)
    points = points.reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    blocks = np.array_split(points, min(len(points), _POINTS)) if len(points) else []
    means = np.array([block.mean(axis=0) for block in blocks]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def _phase_starts(records: Sequence[Mapping[str, Any]]) -> list[float]:
    """Iterations at which a record names another phase than the one before it."""
    pairs = itertools.pairwise(records)
    return [float(b["iteration"]) for a, b in pairs if a.get("phase") != b.get("phase")]


def _inline(svg: str) -> str:
    """The <svg> element alone; style attributes as the presentation attributes they stand for."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # nothing refers to them, and two figures would have the same
    return re.sub(r'\sstyle="([^"]*)"', _presentation, svg)


def _presentation(match: re.Match[str]) -> str:
    pairs = (entry.partition(":") for entry in match[1].split(";") if entry.strip())
    values = {name.strip(): value.strip() for name, _, value in pairs}
    if font := values.pop("font", None):  # the shorthand has no attribute; the family is the page's
        size = re.search(r"[\d.]+px", font)
        values["font-size"] = size[0] if size else "9px"
    return "".join(f' {name}="{value}"' for name, value in values.items() if name != "font-family")


def _shades(image: NDArray[Any], box: Slices) -> NDArray[np.uint8]:
    """The image in 48 steps of grey, from the 1st to the 99.5th percentile of the part that is shown."""
    low, high = np.percentile(image[box], (1, 99.5))
    share = np.clip((image.astype(np.float64) - low) / max(float(high - low), 1e-9), 0, 1)
    return np.asarray(np.rint(share * (_GREYS - 1)), dtype=np.uint8)


def _cut(
    array: NDArray[Any], axis: int, index: int, box: Slices, spacing_mm: Sequence[float], pitch: float
) -> NDArray[Any]:
    """One slice of an (x, y, z) array inside `box`, hung, in pixels of `pitch` mm."""
    i, j = _others(axis)
    return _hang(np.take(array, index, axis)[box[i], box[j]], (spacing_mm[i], spacing_mm[j]), pitch)


def _hang(plane: NDArray[Any], steps: tuple[float, float], pitch: float) -> NDArray[Any]:
    """(right or front, front or head) to rows and columns of pixels, `pitch` mm wide, by the nearest voxel."""
    index = [
        np.minimum((np.arange(max(1, round(n * step / pitch))) + 0.5) * pitch / step, n - 1).astype(int)
        for n, step in zip(plane.shape, steps, strict=True)
    ]
    return np.asarray(plane[np.ix_(*index)].T[::-1, ::-1])


def _paint(grey: NDArray[np.uint8], organ: NDArray[Any], red: Mask) -> NDArray[np.uint8]:
    """Numbers of colours in `_palette`."""
    edge = np.zeros(organ.shape, dtype=bool)
    edge[:, 1:] |= organ[:, 1:] != organ[:, :-1]
    edge[1:] |= organ[1:] != organ[:-1]
    return np.asarray(np.where(edge, 2 * _GREYS, grey + _GREYS * red), dtype=np.uint8)


def _palette() -> NDArray[np.uint8]:
    """48 greys, the same under red, and the outline's colour."""
    greys = np.repeat(np.linspace(0, 255, _GREYS)[:, None], 3, axis=1)
    return np.concatenate([greys, 0.2 * greys + 0.8 * _RED, _OUTLINE[None]]).astype(np.uint8)


def _png(colours: NDArray[np.uint8]) -> bytes:
    """A PNG with a palette (ISO/IEC 15948): a third of the size that matplotlib's three bytes a pixel give."""
    height, width = colours.shape
    rows = np.pad(colours, ((0, 0), (1, 0)))  # each row begins with its filter: 0, none
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", _palette().tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _others(axis: int) -> tuple[int, int]:
    """The two axes that remain."""
    first, second = (other for other in range(3) if other != axis)
    return first, second
