"""One row per case and class, a summary per class, and what an empty mask scores.

**A missed case must never improve a figure.** The rule, for each case and class:

- both masks empty: *not applicable*. Every measure is an empty cell, no mean contains it, the summary counts it;
- one mask empty: *failed*. Dice, Jaccard and NSD are 0, every distance is inf;
- a prediction without any class, of a reference that has one: *failed* in every class, also in those that the reference
  lacks. Otherwise a mask that found nothing would be right about all of these, and score better than a poor one;
- no prediction at all: *missing*. Scored as failed even where the reference is empty: silence is not a correct answer;
- the summary's mean and median contain every applicable row, also the failed ones: one failed row makes the mean
  distance inf. A mean over the finite distances alone is given nowhere: it falls when a difficult case is missed;
- so that failures can still be compared, `mean_failed_as_diagonal` sets each failed distance to the diagonal of the
  case's volume, which no real distance exceeds. Where the reference is empty it takes the largest diagonal of all
  cases: a missing case in a small volume would otherwise pull the mean down.

So if a prediction is removed, or is emptied where the reference is not, no mean or median can get better and no count
of failures can fall. An empty prediction of a scan without any class is right, and may score better than a false one.
"""

import csv
import io
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sscl.core.errors import UserError
from sscl.metrics import surface
from sscl.metrics.overlap import Mask, dice, jaccard, volume_ml

Status = Literal["ok", "failed", "not_applicable", "missing"]

OVERLAPS: dict[str, Callable[[Mask, Mask], float | None]] = {"dice": dice, "jaccard": jaccard}
VOXEL_DISTANCES = {"hd95_medpy_voxel": surface.hd95_pooled, "asd_medpy_voxel": surface.asd_directed}
MM_DISTANCES = {"hd95_standard_mm": surface.hd95_max, "assd_standard_mm": surface.assd}
TOLERANCE_MM = 2.0


@dataclass(frozen=True)
class Score:
    """One case and class. In `values`: a number from 0 to 1, or a distance (inf: failed), or None: not applicable."""

    case: str
    label: str
    status: Status
    values: Mapping[str, float | None]
    volume_prediction_ml: float | None
    volume_reference_ml: float
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]


@dataclass(frozen=True)
class Summary:
    """One class and measure over all cases. `failed` contains the `missing` ones. None: there is no such number."""

    label: str
    measure: str
    n: int
    mean: float | None
    std: float | None
    median: float | None
    mean_failed_as_diagonal: float | None
    failed: int
    missing: int
    not_applicable: int


def measures(tolerance_mm: float = TOLERANCE_MM) -> tuple[str, ...]:
    """The names of the measures: convention and unit are part of the name of every distance."""
    return (*OVERLAPS, *VOXEL_DISTANCES, *MM_DISTANCES, nsd_name(tolerance_mm))


def nsd_name(tolerance_mm: float) -> str:
    """`nsd_2mm`."""
    return f"nsd_{tolerance_mm:g}mm"


def is_distance(measure: str) -> bool:
    """Whether less is better, and a failure is inf."""
    return measure in VOXEL_DISTANCES or measure in MM_DISTANCES


def score_case(
    case: str,
    prediction: NDArray[Any] | None,
    reference: NDArray[Any],
    spacing_mm: Sequence[float],
    classes: Mapping[int, str],
    *,
    ignore_label: int | None = None,
    tolerance_mm: float = TOLERANCE_MM,
) -> list[Score]:
    """Compare two label arrays of equal shape, class by class; `prediction` None: missing.

    classes: label value to name, without the background. Voxels where the reference has `ignore_label` are left out of
    both masks, also of the volumes.

    Raises:
        UserError: shapes differ.
    """
    if prediction is not None:
        _require_shape(case, prediction, reference)
    counted = reference != ignore_label if ignore_label is not None else np.ones(reference.shape, bool)
    spacing_mm = tuple(float(step) for step in spacing_mm)
    silent = prediction is not None and _silent(prediction, reference, counted, classes)
    scores = []
    for value, label in classes.items():
        mask_r = (reference == value) & counted
        if prediction is None:
            status: Status = "missing"
            values = _worst(tolerance_mm)
            volume = None
        else:
            mask_p = (prediction == value) & counted
            status = "failed" if silent else _status(mask_p, mask_r)
            values = _values(status, mask_p, mask_r, spacing_mm, tolerance_mm)
            volume = volume_ml(mask_p, spacing_mm)
        scores.append(
            Score(case, label, status, values, volume, volume_ml(mask_r, spacing_mm), reference.shape, spacing_mm)
        )
    return scores


def summarise(scores: Sequence[Score]) -> list[Summary]:
    """One line per class and measure, in the order in which they appear; the rule is in the head of this file."""
    largest = {
        measure: max((_diagonal(score, measure) for score in scores), default=0.0)
        for measure in (*VOXEL_DISTANCES, *MM_DISTANCES)
    }
    labels = dict.fromkeys(score.label for score in scores)
    return [
        _summary(label, measure, [score for score in scores if score.label == label], largest.get(measure, 0.0))
        for label in labels
        for measure in scores[0].values
    ]


def definitions(scores: Sequence[Score], tolerance_mm: float = TOLERANCE_MM) -> str:
    """What the columns mean: convention, unit and spacing. To be shown wherever a score is shown."""
    return (
        "Border: voxels that a 6-neighbour erosion removes; outside the volume is background. Each weighs 1.\n"
        "Convention medpy (the literature's; unit voxel, spacing taken as 1): hd95 = 95th percentile of both directed\n"
        "  distance lists pooled; asd = mean distance of the prediction's border to the reference's, one way only.\n"
        "Convention standard (unit mm, spacing of each scan): hd95 = the larger of the two directed 95th percentiles;\n"
        "  assd = mean of both lists pooled.\n"
        f"nsd: share of the border voxels of both masks within {tolerance_mm:g} mm of the other border.\n"
        f"Spacing: {_spacings(scores)}.\n"
        "Failed (one mask empty, the prediction missing, or of no class at all where the reference has one): dice,\n"
        "  jaccard, nsd 0, distances inf; mean and median contain them. mean_failed_as_diagonal: failed distances set\n"
        "  to the diagonal of the volume (reference empty: the largest of all). Not applicable (both masks empty): in\n"
        "  no mean. std: sample standard deviation over cases. One-slice volumes: distances in the plane."
    )


def scores_csv(scores: Sequence[Score]) -> str:
    """The text of scores.csv: inf is "inf", not applicable an empty cell; decimal points whatever the locale."""
    names = tuple(scores[0].values) if scores else measures()
    volumes = ("volume_prediction_ml", "volume_reference_ml")
    rows = [
        (
            *(score.case, score.label, score.status),
            *(score.values[name] for name in names),
            *(score.volume_prediction_ml, score.volume_reference_ml),
            *(_times(score.shape), _times(score.spacing_mm)),
        )
        for score in scores
    ]
    return csv_rows([("case", "class", "status", *names, *volumes, "shape_voxel", "spacing_mm"), *rows])


def summary_csv(summaries: Sequence[Summary]) -> str:
    """The text of summary.csv: one row per class and measure."""
    return csv_rows([_SUMMARY_COLUMNS, *(_cells(summary) for summary in summaries)])


def summary_table(summaries: Sequence[Summary]) -> list[list[str]]:
    """The summary as rows of text for a terminal, the head first: four decimals, "-" where there is no number."""
    return [list(_SUMMARY_COLUMNS), *([_shown(cell) for cell in _cells(summary)] for summary in summaries)]


_SUMMARY_COLUMNS = (
    *("class", "measure", "n", "mean", "std", "median", "mean_failed_as_diagonal"),
    *("failed", "missing", "not_applicable"),
)


def _silent(prediction: NDArray[Any], reference: NDArray[Any], counted: Mask, classes: Iterable[int]) -> bool:
    """Whether the prediction has no voxel of any class, and the reference has some."""
    found, present = (np.isin(labels, list(classes)) & counted for labels in (prediction, reference))
    return bool(present.any() and not found.any())


def _status(prediction: Mask, reference: Mask) -> Status:
    found, present = bool(prediction.any()), bool(reference.any())
    if not found and not present:
        return "not_applicable"
    return "ok" if found and present else "failed"


def _values(
    status: Status, prediction: Mask, reference: Mask, spacing_mm: tuple[float, ...], tolerance_mm: float
) -> dict[str, float | None]:
    if status == "not_applicable":
        return dict.fromkeys(measures(tolerance_mm))
    if status == "failed":
        return _worst(tolerance_mm)
    overlaps = {name: overlap(prediction, reference) for name, overlap in OVERLAPS.items()}
    flat_p, flat_spacing = surface.drop_single_slices(prediction, spacing_mm)
    flat_r, _ = surface.drop_single_slices(reference, spacing_mm)
    voxel = surface.border_distances(flat_p, flat_r, (1.0,) * flat_p.ndim)
    mm = surface.border_distances(flat_p, flat_r, flat_spacing)
    assert voxel is not None, "not_applicable was handled above"
    assert mm is not None, "not_applicable was handled above"
    return {
        **overlaps,
        **{name: read(voxel) for name, read in VOXEL_DISTANCES.items()},
        **{name: read(mm) for name, read in MM_DISTANCES.items()},
        nsd_name(tolerance_mm): surface.nsd(mm, tolerance_mm),
    }


def _worst(tolerance_mm: float) -> dict[str, float | None]:
    return {measure: math.inf if is_distance(measure) else 0.0 for measure in measures(tolerance_mm)}


def _require_shape(case: str, prediction: NDArray[Any], reference: NDArray[Any]) -> None:
    if prediction.shape != reference.shape:
        raise UserError(
            f"case '{case}': the prediction has shape {prediction.shape}, the reference {reference.shape}. "
            "Both must lie on the same grid."
        )


def _summary(label: str, measure: str, scores: Sequence[Score], largest_diagonal: float) -> Summary:
    values = [value for score in scores if (value := score.values[measure]) is not None]
    failed = [score for score in scores if score.status in ("failed", "missing")]
    bounded = [
        value if math.isfinite(value) else _stand_in(score, measure, largest_diagonal)
        for score in scores
        if (value := score.values[measure]) is not None
    ]
    return Summary(
        label=label,
        measure=measure,
        n=len(values),
        mean=statistics.fmean(values) if values else None,
        std=_std(values),
        median=statistics.median(values) if values else None,
        mean_failed_as_diagonal=statistics.fmean(bounded) if bounded else None,
        failed=len(failed),
        missing=sum(score.status == "missing" for score in failed),
        not_applicable=sum(score.status == "not_applicable" for score in scores),
    )


def _stand_in(score: Score, measure: str, largest_diagonal: float) -> float:
    """What a failed distance counts as where inf would leave nothing to compare."""
    return _diagonal(score, measure) if score.volume_reference_ml > 0 else largest_diagonal


def _diagonal(score: Score, measure: str) -> float:
    """Diagonal of the case's volume in the unit of the measure."""
    if measure in VOXEL_DISTANCES:
        return math.hypot(*score.shape)
    return math.hypot(*(length * step for length, step in zip(score.shape, score.spacing_mm, strict=True)))


def _std(values: Sequence[float]) -> float | None:
    """Sample standard deviation; inf beside an infinite mean (it would be NaN), None for fewer than two values."""
    if len(values) < 2:
        return None
    return statistics.stdev(values) if all(math.isfinite(value) for value in values) else math.inf


def _spacings(scores: Sequence[Score]) -> str:
    different = sorted({_times(score.spacing_mm) for score in scores})
    if len(different) > 3:
        return f"{len(different)} different voxel sizes, see column spacing_mm"
    return (" and ".join(different) or "none") + " mm"


def _times(numbers: Iterable[float]) -> str:
    return "x".join(f"{number:g}" for number in numbers)


def _cells(summary: Summary) -> tuple[object, ...]:
    return tuple(vars(summary).values())


def csv_rows(rows: Iterable[Sequence[object]]) -> str:
    """Rows as the text of a CSV file that no spreadsheet takes for formulas; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return text.getvalue()


def is_formula(text: str) -> bool:
    """Whether a spreadsheet takes a cell for a formula, or an apostrophe alone keeps it from that."""
    return text.lstrip("'").lstrip().startswith(("=", "+", "-", "@"))


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        assert not math.isnan(value), "a score is a number, inf or not applicable, never NaN"
        return repr(float(value))
    text = str(value)
    return f"'{text}" if is_formula(text) else text


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
