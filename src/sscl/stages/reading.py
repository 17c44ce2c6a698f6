"""What train, predict and evaluate left in a run folder, read for the stages that show it."""

import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sscl.core.errors import UserError
from sscl.core.files import read_text
from sscl.engine.run import FREE, METRICS, RECIPE, Recipe, read_recipe, recipe_digest
from sscl.report import tables
from sscl.stages.dataset import DATASET, read_noted, read_own_mask
from sscl.stages.folder import STAGE, digest, read_stage, require_files, resolved
from sscl.volumes.files import case_stem, is_volume, read_image, read_label
from sscl.volumes.geometry import same_grid, to_ras
from sscl.volumes.volume import Volume


@dataclass(frozen=True)
class RunFolder:
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
    select: str = "last"
    """Which of the run's weights were scored: `last`, or `best` on its validation cases."""
    failed: frozenset[str] = frozenset()
    """Cases with an empty mask where the reference has none, or the other way round, of any class."""
    scored_against: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Case to the digest of its reference."""

    @property
    def predictions(self) -> Path:
        return self.path / "predictions"

    def prediction(self, case: str) -> Path:
        """Where the mask of a case is, if it was predicted."""
        return self.predictions / f"{case}.nii.gz"

    @property
    def variant(self) -> str:
        """All that makes it another experiment; equal for runs that differ in their seed only."""
        return self.recipe.model_dump_json(exclude={"seed", *FREE}) + self.select


def short_names(runs: Sequence[Path]) -> dict[Path, str]:
    """Each folder with its shortest name that no other one has.

    Raises:
        UserError: no folder, or one of them twice.
    """
    paths = [resolved(path) for path in runs]
    if not paths or len(set(paths)) < len(paths):
        raise UserError("give one or more run folders, each of them once.")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return {path: "/".join(path.parts[-depth:]) for path in paths}


def refuse_part(path: Path) -> None:
    """Raises UserError for a folder that lies in a run."""
    run = path.absolute().parent
    if not (path / RECIPE).is_file() and (run / RECIPE).is_file():
        raise UserError(f"{path}: a part of the run {run}. Give the run instead: {run}.")


def selected(scores: Path) -> str:
    """Which of a run's weights were scored: `best` where `evaluate` noted it in its folder, else `last`."""
    return (read_stage(scores).get("select") if (scores / STAGE).is_file() else None) or "last"


def scored_against(scores: Path) -> dict[str, str]:
    """Case to the digest of its reference, as `evaluate` noted it; earlier versions noted none."""
    return read_stage(scores).get("scored_against", {}) if (scores / STAGE).is_file() else {}


def require_same_references(runs: Iterable[tuple[str, Mapping[str, str]]]) -> None:
    """runs: name, and what `scored_against` gives.

    Raises:
        UserError: two of them were scored against different masks of one case.
    """
    known: dict[str, tuple[str, str]] = {}
    for name, digests in runs:
        for case, voxels in digests.items():
            first, expected = known.setdefault(case, (name, voxels))
            if voxels != expected:
                raise UserError(
                    f"{case}: {first} and {name} were scored against different reference masks, so their scores cannot "
                    "be compared. Run `sscl evaluate` for both with the same reference."
                )


def require_as_trained(run: Path) -> None:
    """Raises UserError for a finished run whose recipe or log is not as `train` left it."""
    if (run / STAGE).is_file():
        stage = read_stage(run)
        if stage.get("recipe") not in (None, recipe_digest(run)):
            raise UserError(f"{run / RECIPE}: is not what {run} was trained by: damaged, or changed. Restore it.")
        require_files(run, stage, (METRICS,), "Restore it, or train into another folder.")


def require_as_scored(predictions: Path, run: Path) -> None:
    """Compare the scores of a run's masks with their digests, and what was scored with what is there now. Masks and
    references that are gone are no contradiction.

    Raises:
        UserError: the scores are damaged or cut short, masks were predicted again or changed since, a reference was, or
            the masks are by other weights than the run has now.
    """
    scores = predictions / "scores"
    again = f"Run `sscl evaluate {predictions} REFERENCE` again."
    if not (scores / STAGE).is_file():
        raise UserError(f"{scores / STAGE}: is missing, so the scores may be half written. {again}")
    stage = read_stage(scores, "inputs")
    require_files(scores, stage, ("scores.csv", "summary.csv", "definitions.txt"), again)
    masks = stage.get("masks", {})
    for case, promised in masks.items():
        for mask in predictions.glob(f"{glob.escape(case)}.*"):
            if case_stem(mask) == case and is_volume(mask) and digest(mask) != promised:
                raise UserError(f"{mask}: is not the mask that was scored: predicted again, or changed. {again}")
    for name, promised in stage["inputs"].items() if masks else ():
        path = Path(name)
        if (
            path.is_absolute()
            and masks.get(case_stem(path)) != promised
            and path.is_file()
            and digest(path) != promised
        ):
            raise UserError(f"{path}: was changed since masks were scored against it. {again}")
    if not ((run / STAGE).is_file() and (predictions / STAGE).is_file()):
        return
    config, now = read_stage(predictions).get("config", {}), read_stage(run).get("weights", {})
    if now and config.get("weights") not in (None, *now.values()):
        raise UserError(
            f"{predictions}: its masks are by other weights than {run} has now: it was trained further, or again. "
            "Empty the folder, then predict and evaluate again."
        )


def read_run(path: Path, name: str) -> RunFolder:
    """A run folder, shown as `name`.

    Raises:
        UserError: it is no run folder, or a file in it is damaged.
    """
    refuse_part(path)
    scores = path / "predictions" / "scores"
    files = {file: scores / file for file in ("scores.csv", "summary.csv", "definitions.txt", "stage.json")}
    text = {file: read_text(place) if place.is_file() else "" for file, place in files.items()}
    evaluated = bool(text["scores.csv"] and text["summary.csv"])
    require_as_trained(path)
    if any(text.values()):
        require_as_scored(path / "predictions", path)
    rows = tables.read_scores(text["scores.csv"], str(files["scores.csv"])) if evaluated else []
    inputs = read_stage(scores, "inputs")["inputs"] if text["stage.json"] else {}
    metrics = path / METRICS
    return RunFolder(
        path=path,
        name=name,
        recipe=read_recipe(path),
        records=tables.read_metrics(read_text(metrics), str(metrics)) if metrics.is_file() else [],
        summary=tables.read_summary(text["summary.csv"], str(files["summary.csv"])) if evaluated else [],
        dice=tables.dice_by_case(rows),
        definitions=text["definitions.txt"].rstrip(),
        references={case_stem(Path(p)): Path(p) for p in inputs if Path(p).parent.resolve() != path / "predictions"},
        select=selected(scores),
        failed=tables.failed_cases(rows),
        scored_against=scored_against(scores),
    )


def by_experiment(runs: Sequence[RunFolder], notes: list[str]) -> dict[str, dict[int, RunFolder]]:
    """Evaluated runs by experiment and seed. An experiment is named by its method, where that says which it is.

    notes: gets a line for each run that is left out, or was not scored with its last weights.
    """
    variants: dict[str, dict[int, RunFolder]] = {}
    for run in runs:
        if run.dice:
            if run.select == "best":
                kept = ", ".join(run.recipe.validation)
                notes.append(f"{run.name}: not the last weights, but those best on its validation cases ({kept}).")
            seeds = variants.setdefault(run.variant, {})
            if seeds.setdefault(run.recipe.seed, run) is not run:
                notes.append(f"{run.name}: same recipe and seed as another run; left out of comparison and pictures.")
    methods = [next(iter(seeds.values())).recipe.method for seeds in variants.values()]
    return {
        method if methods.count(method) == 1 else f"{method} ({next(iter(seeds.values())).name})": seeds
        for method, seeds in zip(methods, variants.values(), strict=True)
    }


def read_scan(case: str, run: RunFolder) -> tuple[Volume, Any, int | None]:
    """Image in RAS+, reference labels on its grid (x, y, z), and the label that no score counts.

    Raises:
        UserError: as `read_reference`; or the scan cannot be read, or its mask lies on another grid.
    """
    facts, files = _facts(case, run)
    image = _image(facts, files, run)
    reference, ignore = read_reference(case, run)
    return image, _on_grid(reference, image, f"the reference mask of {case}"), ignore


def read_reference(case: str, run: RunFolder) -> tuple[Volume, int | None]:
    """Reference labels (1, x, y, z) in RAS+ as `evaluate` read them, and the label that no score counts.

    Raises:
        UserError: the case is not in the run's data set, or its mask is unknown or cannot be read.
    """
    facts, files = _facts(case, run)
    own = _source(facts, run) / files["label"] if files["label"] else None
    path = run.references.get(case) or own
    if path is None:
        raise UserError(f"the reference mask is neither in {run.recipe.dataset} nor noted by `sscl evaluate`.")
    spacing = run.recipe.plan.spacing_if_missing_mm
    if own is None or path.resolve() != own.resolve():
        return to_ras(read_label(path, spacing)), facts["ignore_label"]
    mask = read_own_mask(
        path, lambda: _image(facts, files, run), facts.get("label_map", {}), facts.get("mask_axes"), spacing
    )
    return to_ras(mask), facts["ignore_label"]


def _source(facts: Mapping[str, Any], run: RunFolder) -> Path:
    """Where the files lie: elsewhere, or, cropped, in the data set."""
    return Path(run.recipe.dataset) / facts["source"]


def _image(facts: Mapping[str, Any], files: Mapping[str, Any], run: RunFolder) -> Volume:
    paths = [_source(facts, run) / path for path in files["image"]]
    return to_ras(read_image(paths, len(facts["channels"]), run.recipe.plan.spacing_if_missing_mm))


def read_prediction(case: str, run: RunFolder, like: Volume) -> Any:
    """The run's labels of a case, (x, y, z) on the grid of `like`, which is in RAS+.

    Raises:
        UserError: there is no such mask, or it lies on another grid.
    """
    path = run.prediction(case)
    return _on_grid(to_ras(read_label(path)), like, str(path))


def _facts(case: str, run: RunFolder) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the run's data set says of itself, and of the case."""
    facts = read_noted(Path(run.recipe.dataset), DATASET, "ignore_label")
    if case not in facts["cases"]:
        raise UserError(f"the case is not in {run.recipe.dataset}: its scan is unknown.")
    return facts, facts["cases"][case]


def _on_grid(turned: Volume, like: Volume, name: str) -> Any:
    if not same_grid(turned, like, tolerance_mm=1e-2):
        raise UserError(f"{name}: not on the grid of its scan.")
    return turned.array[0]
