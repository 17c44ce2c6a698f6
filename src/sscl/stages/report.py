"""`report`: run folders to one HTML file. Reads what train, predict and evaluate left; what is not there, it names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sscl.core.errors import UserError
from sscl.core.files import read_object, write_text
from sscl.engine.run import FREE, METRICS, RECIPE, Recipe, read_recipe
from sscl.metrics.table import definitions
from sscl.report import figures, html, statistics, tables
from sscl.volumes.files import case_stem, read_image, read_label
from sscl.volumes.geometry import on_grid_of, same_grid, to_ras
from sscl.volumes.volume import Volume

MAX_PICTURED = 24
"""Cases with pictures, the worst ones; the table has all."""


@dataclass(frozen=True)
class _Run:
    """A run folder as read. dice: case to mean over classes, empty where nothing was evaluated."""

    path: Path
    name: str
    recipe: Recipe
    records: Sequence[Mapping[str, Any]]
    summary: Sequence[tables.Row]
    dice: Mapping[str, float]
    definitions: str
    references: Mapping[str, Path] = field(repr=False)
    """Masks that `evaluate` read, by file name without ending."""

    @property
    def predictions(self) -> Path:
        return self.path / "predictions"

    @property
    def variant(self) -> str:
        """All of the recipe that makes it another experiment; equal for runs that differ in their seed only."""
        return self.recipe.model_dump_json(exclude={"seed", *FREE})


def report(runs: Sequence[Path], out: Path) -> Path:
    """Write one offline HTML file about `runs`: scores, differences, curves, pictures of the wrong voxels, recipes.

    Masks are opened only for cases that `evaluate` has scored. What is missing is said in the page.

    Raises:
        UserError: no run, the same twice, a folder that is no run, a damaged file in it, or `out` is a folder.
    """
    if out.is_dir():
        raise UserError(f"{out} is a folder. Give the name of the report's file, for instance {out / 'report.html'}.")
    read = [_read_run(path, name) for path, name in _names(runs).items()]
    notes = [note for run in read for note in _missing(run)]
    groups = _groups(read, notes)
    page = html.Page(
        version=version("sscl"),
        runs=[_shown(run) for run in read],
        measures=tuple(tables.SHOWN.values()),
        definitions=list(dict.fromkeys(run.definitions for run in read if run.definitions)) or [definitions(())],
        comparisons=_comparisons(groups, notes),
        cases=_cases(read, [next(iter(group.values())) for group in groups.values()], notes),
        notes=notes,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, html.render(page))
    return out


def _names(runs: Sequence[Path]) -> dict[Path, str]:
    """Each folder with its shortest name that no other one has."""
    paths = [path.resolve() for path in runs]
    if not paths or len(set(paths)) < len(paths):
        raise UserError("report: give one or more run folders, each of them once.")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return {path: "/".join(path.parts[-depth:]) for path in paths}


def _read_run(path: Path, name: str) -> _Run:
    scores = path / "predictions" / "scores"
    files = {file: scores / file for file in ("scores.csv", "summary.csv", "definitions.txt", "stage.json")}
    text = {file: place.read_text(encoding="utf-8") if place.is_file() else "" for file, place in files.items()}
    evaluated = bool(text["scores.csv"] and text["summary.csv"])
    rows = tables.read_scores(text["scores.csv"], str(files["scores.csv"])) if evaluated else []
    inputs = read_object(files["stage.json"], "inputs")["inputs"] if text["stage.json"] else {}
    metrics = path / METRICS
    return _Run(
        path=path,
        name=name,
        recipe=read_recipe(path),
        records=tables.read_metrics(metrics.read_text(encoding="utf-8"), str(metrics)) if metrics.is_file() else [],
        summary=tables.read_summary(text["summary.csv"], str(files["summary.csv"])) if evaluated else [],
        dice=tables.dice_by_case(rows),
        definitions=text["definitions.txt"].rstrip(),
        references={case_stem(Path(p)): Path(p) for p in inputs if Path(p).parent.resolve() != path / "predictions"},
    )


def _missing(run: _Run) -> list[str]:
    if not run.predictions.is_dir():
        return [f"{run.name}: no predictions yet (`sscl predict`), hence no scores and no pictures."]
    return [] if run.dice else [f"{run.name}: predicted, but not evaluated (`sscl evaluate`), hence no scores."]


def _shown(run: _Run) -> html.Run:
    return html.Run(
        name=run.name,
        method=run.recipe.method,
        seed=str(run.recipe.seed),
        lines=tables.score_lines(run.summary),
        curves=figures.curves(run.records) if run.records else "",
        recipe=(run.path / RECIPE).read_text(encoding="utf-8"),
    )


def _groups(runs: Sequence[_Run], notes: list[str]) -> dict[str, dict[int, _Run]]:
    """Evaluated runs by experiment and seed. An experiment is named by its method, where that says which it is."""
    variants: dict[str, dict[int, _Run]] = {}
    for run in runs:
        if run.dice:
            seeds = variants.setdefault(run.variant, {})
            if seeds.setdefault(run.recipe.seed, run) is not run:
                notes.append(f"{run.name}: same recipe and seed as another run; left out of comparison and pictures.")
    methods = [next(iter(seeds.values())).recipe.method for seeds in variants.values()]
    return {
        method if methods.count(method) == 1 else f"{method} ({next(iter(seeds.values())).name})": seeds
        for method, seeds in zip(methods, variants.values(), strict=True)
    }


def _comparisons(groups: Mapping[str, Mapping[int, _Run]], notes: list[str]) -> list[html.Comparison]:
    """Every experiment against the baseline: the first `vnet`, or else the first."""
    dice = {name: {seed: run.dice for seed, run in seeds.items()} for name, seeds in groups.items()}
    baseline = next((name for name in groups if name.split(" ")[0] == "vnet"), next(iter(groups), ""))
    found = []
    for name in groups:
        if name != baseline:
            try:
                interval = statistics.paired_difference(dice[name], dice[baseline])
                found.append(html.Comparison(name, baseline, interval))
            except UserError as error:
                notes.append(f"{name} and {baseline} are not compared. {error}")
    return found


def _cases(runs: Sequence[_Run], pictured: Sequence[_Run], notes: list[str]) -> list[html.Case]:
    """All scored cases, worst first; pictures from the first seed of every experiment."""
    dice = {case: [run.dice.get(case) for run in runs] for run in runs for case in run.dice}
    order = sorted(dice, key=lambda case: (_mean(dice[case]), case))
    if len(order) > MAX_PICTURED:
        notes.append(f"Pictures of the {MAX_PICTURED} worst of {len(order)} cases; the table below them has all.")
    if len(pictured) < sum(bool(run.dice) for run in runs):
        notes.append(f"Pictures of one run of each experiment: {', '.join(run.name for run in pictured)}.")
    views: dict[str, list[html.View]] = {}
    failures = []
    for case in order[:MAX_PICTURED]:
        try:
            views[case] = _views(case, [run for run in pictured if case in run.dice])
        except UserError as error:
            failures.append(f"{case}: {error}")
    if failures:
        notes.append(f"{len(failures)} of {len(order)} cases have no picture. {failures[0]}")
    return [html.Case(case, dice[case], views.get(case, ())) for case in order]


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known)


def _views(case: str, runs: Sequence[_Run]) -> list[html.View]:
    """Pictures of one case by each run that has a prediction of it; all in the same slices."""
    masks = {run.name: run.predictions / f"{case}.nii.gz" for run in runs}
    present = [run for run in runs if masks[run.name].is_file()]
    if not present:
        return []
    image, reference, ignore = _scan(case, present[0])
    wrong = [
        figures.wrong_voxels(_on_grid(read_label(masks[run.name]), image, masks[run.name]), reference, ignore)
        for run in present
    ]
    organ = (reference != 0) & (reference != ignore)
    point = figures.view_point(wrong, organ)
    box = figures.view_box(organ | sum(wrong[1:], start=wrong[0]), image.spacing_mm)
    return [
        html.View(
            run=run.name,
            dice=run.dice[case],
            wrong=int(mask.sum()),
            pictures=figures.three_planes(image.array[0], reference, mask, point, box, image.spacing_mm),
        )
        for run, mask in zip(present, wrong, strict=True)
    ]


def _scan(case: str, run: _Run) -> tuple[Volume, Any, int | None]:
    """Image in RAS+, reference labels on its grid (x, y, z), and the label that no score counts."""
    facts = read_object(Path(run.recipe.dataset) / "dataset.json", "source", "channels", "cases", "ignore_label")
    if case not in facts["cases"]:
        raise UserError(f"the case is not in {run.recipe.dataset}: its scan is unknown.")
    source, files = Path(run.recipe.dataset) / facts["source"], facts["cases"][case]
    own = source / files["label"] if files["label"] else None
    label = run.references.get(case) or own
    if label is None:
        raise UserError(f"the reference mask is neither in {run.recipe.dataset} nor noted by `sscl evaluate`.")
    spacing = run.recipe.plan.spacing_if_missing_mm
    image = to_ras(read_image([source / path for path in files["image"]], len(facts["channels"]), spacing))
    if own is None or label.resolve() != own.resolve():
        return image, _on_grid(read_label(label, spacing), image, label), facts["ignore_label"]
    mask = read_label(label, spacing, {int(stored): value for stored, value in facts.get("label_map", {}).items()})
    axes = facts.get("mask_axes")
    return image, _on_grid(on_grid_of(image, mask, axes, label) if axes else mask, image, label), facts["ignore_label"]


def _on_grid(mask: Volume, image: Volume, path: Path) -> Any:
    turned = to_ras(mask)
    if not same_grid(turned, image, tolerance_mm=1e-2):
        raise UserError(f"{path}: not on the grid of its scan.")
    return turned.array[0]
