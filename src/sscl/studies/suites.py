"""What is compared with what, as data: the paper's tables and ablations, and suites of the user's own."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt

from sscl.core.config import Config
from sscl.core.errors import UserError, unknown
from sscl.core.files import read_yaml
from sscl.data.presets import PRESETS
from sscl.methods import METHODS

All = Literal["all"]


class Row(Config):
    """One line of a table: a method with its settings and so many masks."""

    method: str
    masks: PositiveInt | All
    """Labelled scans; `all`: every scan for training, the ceiling."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What departs from the preset's settings of the method."""
    name: str = ""
    """What tables call it, where the paper does not name it; empty: the method and its settings."""
    stands_for: PositiveInt | None = None
    """`all`: the paper's number of masks in the row that it stands beside."""

    @property
    def slug(self) -> str:
        """For folders: the method and its settings."""
        settings = (f"{key}-{str(value).lower()}" for key, value in sorted(self.settings.items()))
        return "_".join([self.method, *settings])


class Suite(Config):
    """Rows, each run with every seed."""

    title: str
    preset: str | None
    """The data set's preset; None: the plan is automatic."""
    rows: tuple[Row, ...]
    seeds: PositiveInt = 1
    """0, 1, 2, ..."""
    table: str | None = None
    """The paper's table that it repeats, a key of `sscl.report.published.TITLES`."""


def _each(methods: Sequence[str], masks: int) -> tuple[Row, ...]:
    return tuple(Row(method=method, masks=masks) for method in methods)


def _sscl(masks: int = 8, name: str = "", **settings: Any) -> Row:
    return Row(method="sscl", masks=masks, name=name, settings=settings)


_TABLE_1 = (
    "ua_mt", "sassnet", "double_ua", "lg_er_mt", "tripled_ua", "urpc", "dtc", "ss_net", "coranet", "gbdl", "ucmt",
    "ac_mt", "sscl", "mean_teacher", "bcp",
)  # fmt: skip
READINGS = ("foreground", "confident")
"""What a threshold of pseudo-labels can be meant to do: settings of sscl's `pseudo`."""
_NEITHER = {"spectral": False, "reconstructor": False}
_CEILING = Row(method="vnet", masks="all", stands_for=80)

SUITES: dict[str, Suite] = {
    "table1": Suite(
        title="LA, every method, 8 and 16 masks",
        preset="la",
        table="table1",
        rows=(*_each(("vnet", *_TABLE_1), 8), *_each(("vnet", *_TABLE_1), 16), _CEILING),
    ),
    "table2": Suite(
        title="Pancreas-CT, 12 masks",
        preset="pancreas",
        table="table2",
        rows=(
            *_each(("vnet", "dan", "advent", "ua_mt", "sassnet", "dtc", "coranet", "comwin", "sscl"), 12),
            Row(method="vnet", masks="all", stands_for=62),
        ),
    ),
    "table3": Suite(
        title="KiTS19, 16 masks",
        preset="kits19",
        table="table3",
        rows=_each(("vnet", "ua_mt", "sassnet", "double_ua", "tripled_ua", "coranet", "gbdl", "sscl"), 16),
    ),
    "table4": Suite(
        title="LA, 8 masks: what each part of SSCL gives",
        preset="la",
        table="table4",
        rows=(
            Row(method="vnet", masks=8),
            _CEILING,
            _sscl(spectral=False),
            _sscl(reconstructor=False),
            _sscl(),
            _sscl(**_NEITHER, name="Baseline + mean teacher, neither module"),
            _sscl(teacher=False, name="SSCL, the student's own pseudo-labels"),
            _sscl(teacher=False, **_NEITHER, name="V-Net, the student's own pseudo-labels"),
            _sscl(unlabelled=False, name="SSCL's network, labelled scans only"),
            _sscl(unlabelled=False, reconstructor=False, name="V-Net + FFC, labelled scans only"),
            _sscl(unlabelled=False, spectral=False, name="V-Net + REC, labelled scans only"),
            _sscl(unlabelled=False, **_NEITHER, name="V-Net in SSCL's schedule, labelled scans only"),
        ),
    ),
    "table5": Suite(
        title="LA, 8 masks: the weight of the unsupervised loss",
        preset="la",
        table="table5",
        rows=tuple(_sscl(lam=lam) for lam in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0)),
    ),
    "table6": Suite(
        title="LA, 8 and 16 masks: the teacher's pace, plain and warmed up",
        preset="la",
        table="table6",
        rows=tuple(
            _sscl(masks, alpha=alpha, ema_warmup=warm)
            for masks in (8, 16)
            for alpha in (0.99, 0.999)
            for warm in (False, True)
        ),
    ),
    "fig6": Suite(
        title="LA, 8 masks: the threshold of pseudo-labels, in both readings",
        preset="la",
        table="fig6",
        rows=tuple(
            _sscl(threshold=threshold, pseudo=pseudo)
            for pseudo in READINGS
            for threshold in (0.5, 0.7, 0.8, 0.9)
            if (threshold, pseudo) != (0.5, "confident")
        ),
    ),
}  # fmt: skip
"""The paper's own, and rows that it lacks. With one organ and 0.5 both readings of Figure 6 are one: one row."""


def find_suite(name: str) -> Suite:
    """One of `SUITES`, or a YAML file: title, preset, seeds, and rows with method, masks, settings, name.

    `masks` of a row in a file may be a list: one row each.

    Raises:
        UserError: no such suite, or a file that is none.
    """
    if name in SUITES:
        return SUITES[name]
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise unknown("suite", name, SUITES)
    if not path.is_file():
        raise UserError(f"{path} does not exist. Name a YAML file, or one of {', '.join(SUITES)}.")
    values = read_yaml(path)
    if not isinstance(values, dict) or not isinstance(values.get("rows"), list):
        raise UserError(f"{path}: expected title, preset and a list of rows, each with method and masks.")
    rows = [row for number, entry in enumerate(values["rows"], 1) for row in _rows(entry, f"{path}, row {number}")]
    suite = Suite.read({"title": path.stem, "preset": None, **values, "rows": rows}, str(path))
    if suite.preset is not None and suite.preset not in PRESETS:
        raise unknown(f"{path}: preset", suite.preset, PRESETS)
    return suite


def _rows(entry: Any, where: str) -> list[Row]:
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {entry!r}, expected method and masks: {{method: vnet, masks: [8, 16]}}.")
    masks = entry.get("masks")
    rows = [Row.read({**entry, "masks": n}, where) for n in (masks if isinstance(masks, list) else [masks])]
    if unlisted := [row.method for row in rows if row.method not in METHODS]:
        raise unknown(f"{where}: method", unlisted[0], METHODS)
    return rows
