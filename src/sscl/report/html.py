"""One HTML file that needs nothing else: no script, no request, every name shown as text."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from sscl.report.figures import Picture
from sscl.report.statistics import Interval


@dataclass(frozen=True)
class Run:
    """What the page says of one run. lines: `tables.score_lines`; curves: an <svg> of ours, put in as
    it is, or empty."""

    name: str
    method: str
    seed: str
    lines: Sequence[Mapping[str, Any]]
    curves: str
    recipe: str


@dataclass(frozen=True)
class Comparison:
    """`ours` minus `baseline`, mean Dice."""

    ours: str
    baseline: str
    interval: Interval


@dataclass(frozen=True)
class View:
    """One case as one run saw it. wrong: all wrong voxels of the case."""

    run: str
    dice: float
    wrong: int
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Case:
    """A row of the per-case table (dice by run, in the order of the runs, None: not scored) and its pictures."""

    name: str
    dice: Sequence[float | None]
    views: Sequence[View] = ()


@dataclass(frozen=True)
class Page:
    """Everything the page shows, in its order."""

    version: str
    runs: Sequence[Run]
    measures: Sequence[str]
    definitions: Sequence[str]
    comparisons: Sequence[Comparison]
    cases: Sequence[Case]
    notes: Sequence[str] = field(default=())


def render(page: Page) -> str:
    """The page's text. Names come from files of any origin: autoescape makes each of them text."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_source),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode("ascii")
    style = _source("page.css")
    # the only style allowed is this one, named by its digest; scripts, frames, forms and requests have no right at all
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    return environment.get_template("page.html.jinja").render(page=page, style=style, policy=policy)


def is_page(path: Path) -> bool:
    """Whether a file begins as our pages do."""
    with path.open("rb") as file:
        return b"<title>sscl report: " in file.read(2048)


def _source(name: str) -> str:
    return files("sscl.report").joinpath(name).read_text(encoding="utf-8")
