"""The SSCL paper's tables in its own layout, the printed number beside ours.

What has no number says so: "not run" of ours, "–" of the paper.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from sscl.report.layout import NOT_RUN, Cell, Table
from sscl.report.published import CAVEATS, OF_TABLE, TITLES, TRAINED, Row, Setting, Settings, departing, published

NOT_PRINTED = Cell("–")
"""In the paper's columns of a row that the paper does not have."""

Key = tuple[str, int, Settings]
"""Method, masks of the paper's row that the run stands for, and what departs from the method's defaults."""


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation over cases. mean None or inf: a missed case made the distance infinite. std None or
    inf: there is none."""

    mean: float | None
    std: float | None


@dataclass(frozen=True)
class Ours:
    """Scores of ours. hd95, asd: voxels, convention `medpy`. failed: cases with an empty or missing mask, all seeds
    together. labelled, unlabelled: the scans that it was trained on, which may be fewer than the paper's. name: what
    its row is called if the paper has none; empty: method and settings.
    """

    dice: Spread
    jaccard: Spread
    hd95: Spread
    asd: Spread
    seeds: int
    failed: int
    labelled: int
    unlabelled: int
    name: str = ""


def paper_table(table: str, ours: Mapping[Key, Ours], setting: str) -> Table:
    """`table1` to `table6` in printed order, then the rows of ours that the paper does not have; `fig6`: ours alone.

    Where the paper prints one run twice (Table 2, V-Net with 12 masks), ours stands beside both.

    Args:
        table: a key of `published.TITLES`.
        ours: naming a setting's default is the same as leaving it out.
        setting: how ours were trained and scored: scans, size, iterations, cases.

    Raises:
        UserError: no such table.
    """
    printed = published(table)
    found = {_same(key): result for key, result in ours.items()}
    assert all(found[_same(key)] == result for key, result in ours.items()), "two results of ours for one row"
    beside = {_same((row.method, row.masks, row.settings)) for row in printed}
    rest = {key: result for key, result in found.items() if key not in beside}
    if printed:
        head = ["Method", "Labeled", "Unlabeled", *(f"{metric} {whose}" for metric in METRICS for whose in WHOSE)]
        rows = [
            *(_printed_row(row, found.get(_same((row.method, row.masks, row.settings)))) for row in printed),
            *(_own_row(key, result, with_paper=[NOT_PRINTED]) for key, result in rest.items()),
        ]
    else:
        head = ["Method", "Labeled", "Unlabeled", *METRICS]
        rows = [_own_row(key, result, with_paper=[]) for key, result in rest.items()]
    title = f"{_NUMBERED[table]}. {TITLES[table]}"
    return Table(title, [*head, "seeds", "failed"], rows, _footnotes(table, setting), CAVEATS)


METRICS = {"Dice": 3, "Jaccard": 3, "95HD": 2, "ASD": 2}
"""The paper's columns and their digits."""
WHOSE = ("paper", "ours")
_NUMBERED = {name: f"Table {name[-1]}" if name.startswith("table") else f"Figure {name[-1]}" for name in TITLES}


def _same(key: Key) -> Key:
    method, masks, settings = key
    return method, masks, departing(settings)


def _printed_row(row: Row, ours: Ours | None) -> list[str | Cell]:
    paper = [f"{value:.{digits}f}" for value, digits in zip(_paper_values(row), METRICS.values(), strict=True)]
    if ours is None:
        mine, scans = [NOT_RUN] * 6, (str(row.masks), str(row.unlabelled))
    else:
        mine = _own_cells(ours)
        scans = (_scans(row.masks, ours.labelled), _scans(row.unlabelled, ours.unlabelled))
    pairs = [cell for pair in zip(paper, mine[:4], strict=True) for cell in pair]
    return [Cell(row.name, row.caveats), *scans, *pairs, *mine[4:]]


def _own_row(key: Key, ours: Ours, with_paper: list[Cell]) -> list[str | Cell]:
    """with_paper: what stands before each metric of ours, in the paper's column if there is one."""
    method, _, settings = key
    name = ours.name or ", ".join([method, *sorted(f"{setting}={_plain(value)}" for setting, value in settings)])
    values = _own_cells(ours)
    metrics = [cell for value in values[:4] for cell in (*with_paper, value)]
    return [name, str(ours.labelled), str(ours.unlabelled), *metrics, *values[4:]]


def _plain(value: Setting) -> str:
    """As it is written after --set."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _paper_values(row: Row) -> tuple[float, float, float, float]:
    return row.dice, row.jaccard, row.hd95, row.asd


def _own_cells(ours: Ours) -> list[Cell]:
    """The four metrics, seeds, failed."""
    spreads = (ours.dice, ours.jaccard, ours.hd95, ours.asd)
    shown = [_spread(spread, digits) for spread, digits in zip(spreads, METRICS.values(), strict=True)]
    return [Cell(text) for text in (*shown, str(ours.seeds), str(ours.failed))]


def _spread(spread: Spread, digits: int) -> str:
    """`0.812 ± 0.041`; `∞` where a missed case leaves no finite mean."""
    assert not any(value is not None and math.isnan(value) for value in (spread.mean, spread.std)), (
        "a score is never NaN"
    )
    if spread.mean is None or math.isinf(spread.mean):
        return "∞"
    mean = f"{spread.mean:.{digits}f}"
    return mean if spread.std is None or math.isinf(spread.std) else f"{mean} ± {spread.std:.{digits}f}"


def _scans(paper: int, ours: int) -> str:
    """The paper's number, and ours where it is another one."""
    return str(paper) if ours == paper else f"{paper}; ours {ours}"


def _footnotes(table: str, setting: str) -> list[str]:
    return [
        f"paper: full-size scans, {TRAINED[table]}; no spread is printed.",
        f"ours: this program, not the paper's authors'; {setting}",
        "Mean ± standard deviation over cases. 95HD and ASD: voxels, convention medpy; that the paper's are, too, is "
        "inferred.",
        "failed: cases with an empty or missing mask, over all seeds; each counts as Dice 0 and makes the mean "
        "distances ∞.",
        *(CAVEATS[key] for key in OF_TABLE[table]),
    ]
