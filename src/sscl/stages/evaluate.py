"""`evaluate`: masks and reference masks to scores.csv and summary.csv. The only stage that opens test masks."""

import hashlib
import json
import logging
import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from sscl.core.errors import UserError, unknown
from sscl.core.files import open_to_append, read_object, write_text
from sscl.core.plan import Plan, Spacing
from sscl.data.layouts import declared_labels
from sscl.data.split import Split
from sscl.engine.run import RECIPE, only_writer
from sscl.metrics import table
from sscl.stages.dataset import DATASET, PLAN, SPLIT, is_dataset, read_noted, read_own_mask, require_crops
from sscl.stages.folder import STAGE, digest, read_stage, refuse_foreign, write_stage
from sscl.volumes.files import case_stem, is_volume, read_image, read_label, unknown_kind
from sscl.volumes.geometry import same_grid, to_ras
from sscl.volumes.volume import Volume

logger = logging.getLogger("sscl")

MAX_CLASSES = 127
"""As in a plan."""
_NOT_READ = (".mha", ".mhd", ".nhdr", ".hdr", ".img", ".mgz", ".gipl", ".dcm")
"""Endings of volumes of other kinds."""


@dataclass(frozen=True)
class EvaluationResult:
    """What was written to `out`, and `definitions`: to be shown with every number."""

    scores: tuple[table.Score, ...]
    summary: tuple[table.Summary, ...]
    definitions: str
    out: Path


@dataclass(frozen=True)
class _Reference:
    """The masks that are due, and what is known about their values. `others`: cases of the data set not due now."""

    masks: Mapping[str, Path]
    labels: Mapping[int, str] | None
    ignore_label: int | None = None
    others: frozenset[str] = frozenset()
    spacing_if_missing_mm: Spacing | None = None
    label_map: Mapping[str, int] = field(default_factory=dict)
    mask_axes: str | None = None
    """As dataset.json notes them; `scans` are the files of each case that is due."""
    scans: Mapping[str, Sequence[Path]] = field(default_factory=dict)


def evaluate(
    prediction: Path,
    reference: Path,
    out: Path | None = None,
    *,
    split: str = "test",
    tolerance_mm: float = table.TOLERANCE_MM,
    spacing_mm: Spacing | None = None,
) -> EvaluationResult:
    """Score every case that is due; write scores.csv, summary.csv, definitions.txt and stage.json.

    prediction: folder of masks named by case. reference: folder of masks, or a prepared data set, of which the cases of
    `split` are due (opening `test` is noted in its openings.jsonl). out: default `prediction`/scores. tolerance_mm: of
    the NSD. spacing_mm: voxel size of files that hold none. A case without a prediction scores as failed.

    Raises:
        UserError: a prediction of an unknown case, a reference as its own prediction, another grid than the
            reference's, a label value that is not declared or means another class, a file that cannot be read.
    """
    began = time.monotonic()
    if spacing_mm is not None and not all(math.isfinite(step) and step > 0 for step in spacing_mm):
        raise UserError(f"spacing {' x '.join(map(str, spacing_mm))} mm: expected three lengths over 0.")
    if not (math.isfinite(tolerance_mm) and tolerance_mm >= 0):
        raise UserError(f"tolerance {tolerance_mm} mm: expected a number of millimetres, 0 or more.")
    made = _stage_of(prediction)
    _require_order(prediction, reference, made)
    if out is None and _is_described(prediction):
        raise UserError(
            f"{prediction}: the masks of a data set; scores are not written among them. If they are the reference, "
            f"they come last: sscl evaluate {reference} {prediction}. Else name a folder with -o."
        )
    out = prediction / "scores" if out is None else out
    refuse_foreign(out, "evaluate")
    due = _read_reference(reference, split)
    predicted = _predicted(prediction, due, reference)
    masks = {case: digest(path) for case, path in predicted.items()}
    _require_as_predicted(prediction, masks, due, made)
    _require_same_classes(prediction, made.get("labels") or [], reference, due.labels or {})
    if is_dataset(reference) and split == "test":
        _log_opening(reference, prediction, due)
    spacing_mm = spacing_mm or due.spacing_if_missing_mm
    labels = due.labels or dict(enumerate(made.get("labels") or ())) or _labels_in(due, spacing_mm)
    truths = {str(path.absolute()): digest(path) for path in due.masks.values()}
    scores: list[table.Score] = []
    scored_against = {}
    for case in sorted(due.masks):
        if case not in predicted:
            logger.warning("%s: no prediction in %s: scored as failed", case, prediction)
        truth = _truth(case, due, labels, spacing_mm)
        scored_against[case] = _voxels(truth)
        scores += _score(case, predicted.get(case), truth, due, labels, spacing_mm, tolerance_mm)
    result = EvaluationResult(
        tuple(scores), tuple(table.summarise(scores)), table.definitions(scores, tolerance_mm), out
    )
    noted = {
        "config": {"split": split, "tolerance_mm": tolerance_mm, "spacing_mm": spacing_mm},
        "inputs": {str(predicted[case].absolute()): masks[case] for case in masks} | truths,
        "masks": masks,
        "scored_against": scored_against,
        "select": made.get("config", {}).get("select"),  # which weights of a run the masks are by; None: not known
    }
    _write(result, noted, began)
    return result


def _truth(case: str, due: _Reference, labels: Mapping[int, str], spacing_mm: Spacing | None) -> Volume:
    """The reference mask of a case, read and checked."""
    truth = read_own_mask(
        due.masks[case],
        lambda: read_image(due.scans[case], len(due.scans[case]), spacing_mm),
        due.label_map,
        due.mask_axes,
        spacing_mm,
    )
    _require_declared(due.masks[case], truth, {*labels, due.ignore_label})
    return truth


def _voxels(truth: Volume) -> str:
    """Digest of the classes in RAS+: a copy in another format, compression or axis order has the same."""
    classes = np.ascontiguousarray(to_ras(truth).array[0], np.int32)
    return hashlib.sha256(f"{classes.shape} ".encode() + classes.tobytes()).hexdigest()


def _score(
    case: str,
    path: Path | None,
    truth: Volume,
    due: _Reference,
    labels: Mapping[int, str],
    spacing_mm: Spacing | None,
    tolerance_mm: float,
) -> list[table.Score]:
    """One case, its prediction read and checked; `path` None: missing."""
    answer = None
    if path is not None:
        answer = read_label(path, spacing_mm)
        _require_declared(path, answer, set(labels))
        if not same_grid(answer, truth):  # or the same, with its axes in another order
            answer, truth = to_ras(answer), to_ras(truth)
        _require_same_grid(path, answer, due.masks[case], truth)
    return table.score_case(
        case,
        None if answer is None else answer.array[0],
        truth.array[0],
        truth.spacing_mm,
        {value: name for value, name in labels.items() if value != 0},
        ignore_label=due.ignore_label,
        tolerance_mm=tolerance_mm,
    )


def _require_order(prediction: Path, reference: Path, made: Mapping[str, Any]) -> None:
    """Raises UserError if the two seem to be exchanged; warns of a reference that is a prediction itself."""
    predicted = not is_dataset(reference) and _stage_of(reference).get("stage") == "predict"
    if is_dataset(prediction) or (predicted and made.get("stage") != "predict"):
        raise UserError(
            f"{prediction} and {reference} look exchanged: what `sscl predict` wrote comes first, a data set or other "
            f"masks of reference last: sscl evaluate {reference} {prediction}. To take predictions for the reference "
            f"all the same, put them into a folder without {STAGE}."
        )
    if predicted:
        logger.warning("%s: the reference is predicted, too: scores say how alike, not how right, masks are", reference)


def _read_reference(reference: Path, split: str) -> _Reference:
    if is_dataset(reference):
        return _from_dataset(reference, split)
    masks = _masks_in(reference)
    if not masks:
        raise UserError(f"{reference}: no mask files here. Expected a folder of masks or a prepared data set.")
    if split != "test":
        raise UserError(f"--split {split}: {reference} is a folder of masks; only a prepared data set has lists.")
    if _is_described(reference):
        return _Reference(masks, *_declared(reference.parent / "dataset.json"))
    return _Reference(masks, dict(enumerate(_stage_of(reference).get("labels") or ())) or None)


def _is_described(folder: Path) -> bool:
    """Whether it is labelsTr or labelsTs of nnU-Net or the Decathlon."""
    return folder.name.startswith("labels") and (folder.parent / "dataset.json").is_file()


def _from_dataset(dataset: Path, split: str) -> _Reference:
    facts = read_noted(dataset, DATASET)
    lists = Split.read(read_noted(dataset, SPLIT), str(dataset / SPLIT)).lists()
    if split not in lists:
        raise unknown(f"{dataset / 'split.json'}: list", split, lists)
    source = dataset / facts["source"]  # which is absolute, unless `prepare` cropped the scans
    masks = {}
    for case in lists[split]:
        if case not in facts["cases"]:
            raise UserError(f"{dataset / SPLIT}: case '{case}' is not in {DATASET}. Prepare the data set again.")
        label = facts["cases"][case]["label"]
        if label is None:
            raise UserError(f"{dataset}: case '{case}' of the list '{split}' has no mask: it cannot be scored.")
        masks[case] = source / label
    if not masks:
        raise UserError(f"{dataset / 'split.json'}: the list '{split}' is empty: nothing to score.")
    plan = Plan.read(read_noted(dataset, PLAN), str(dataset / PLAN))
    require_crops(dataset, facts, [facts["cases"][case]["label"] for case in masks])
    return _Reference(
        masks,
        dict(enumerate(facts["labels"])),
        facts.get("ignore_label"),
        others=frozenset(facts["cases"].keys() - masks.keys()),
        spacing_if_missing_mm=plan.spacing_if_missing_mm,
        label_map=facts.get("label_map", {}),
        mask_axes=facts.get("mask_axes"),
        scans={case: [source / path for path in facts["cases"][case]["image"]] for case in masks},
    )


def _declared(path: Path) -> tuple[dict[int, str] | None, int | None]:
    """Label names by value and the ignore label of nnU-Net's dataset.json or the Decathlon's."""
    facts = read_object(path)
    if "labels" not in facts:
        return None, None
    labels, ignore = declared_labels(facts, path)
    return dict(enumerate(labels)), ignore


def _stage_of(folder: Path) -> dict[str, Any]:
    """What `predict` noted beside its masks, or `evaluate`; empty for those of another program."""
    return read_stage(folder) if (folder / STAGE).is_file() else {}


def _require_as_predicted(prediction: Path, masks: Mapping[str, str], due: _Reference, made: Mapping[str, Any]) -> None:
    """Raises UserError for a mask that is not as `predict` wrote it, or is gone: whose score would that be?"""
    written = made.get("cases")
    if not isinstance(written, dict):
        return
    for case in due.masks:
        if masks.get(case) != written.get(case):
            what = "is gone" if case not in masks else "is not the mask that `sscl predict` wrote: damaged, or changed"
            raise UserError(
                f"{prediction / case}.nii.gz: {what}. Run `sscl predict` again, or, to score masks of another origin, "
                f"put them into a folder without {STAGE}."
            )


def _require_same_classes(prediction: Path, names: Sequence[str], reference: Path, labels: Mapping[int, str]) -> None:
    """Of the classes that `predict` noted and those of the reference, as far as both are known. Another name alone may
    mean the same organ: a warning.

    Raises:
        UserError: a class of one name has another value in the reference.
    """
    ours, theirs = ([name.casefold() for name in listed] for listed in (names, labels.values()))
    if not ours or not theirs or ours == theirs:
        return
    both = f"{prediction} has the classes {', '.join(names)}; {reference} has {', '.join(labels.values())}"
    for value, name in enumerate(ours):
        if name in theirs and theirs[value : value + 1] != [name]:
            raise UserError(
                f"{both}: '{names[value]}' has another value, and would be scored as another class. Give a reference "
                "with the classes in this order, or predict with a model that was trained on those."
            )
    logger.warning("%s. Equal values are compared, whatever their names.", both)


def _labels_in(due: _Reference, spacing_mm: Spacing | None) -> dict[int, str]:
    """Where nothing declares the labels: those that the reference masks contain, named by their value."""
    values: set[int] = {0}
    for path in due.masks.values():
        found = _values(read_label(path, spacing_if_missing_mm=spacing_mm))
        if len(found) > MAX_CLASSES or min(found) < 0:
            raise UserError(
                f"{path}: {len(found)} values from {min(found)} to {max(found)}. Is it a scan? Expected a mask of "
                f"at most {MAX_CLASSES} classes, none below 0."
            )
        values |= found
    if values == {0}:
        raise UserError("the reference masks are all empty and nothing declares labels: there is nothing to score.")
    return {value: str(value) for value in sorted(values)}


def _masks_in(folder: Path) -> dict[str, Path]:
    """By case. Other files may lie there too, unless they can be masks that would be left out."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder.")
    if (folder / RECIPE).is_file():
        masks_of_run = folder / "predictions"
        raise UserError(f"{folder}: a run. `sscl predict` writes its masks to {masks_of_run}: give that folder.")
    masks: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _NOT_READ and not path.name.startswith("."):
            raise UserError(f"{path}: {unknown_kind(path)} Convert it, or move it elsewhere: it would not be scored.")
        if not is_volume(path):
            continue
        if case_stem(path) != path.name and not path.is_file():
            raise UserError(f"{path}: named like a mask, but a folder or a link to nothing. Restore or remove it.")
        case = case_stem(path)
        if case in masks:
            raise UserError(f"{path} and {masks[case].name}: two masks of one case '{case}'. Keep one.")
        masks[case] = path
    return masks


def _predicted(prediction: Path, due: _Reference, reference: Path) -> dict[str, Path]:
    """The predictions of the cases that are due; all others must at least be known."""
    masks = _masks_in(prediction)
    surplus = masks.keys() - due.masks.keys()
    if stray := sorted(surplus - due.others):
        more = f" (and {len(stray) - 1} more)" if len(stray) > 1 else ""
        raise UserError(
            f"{masks[stray[0]]}{more}: a prediction without a reference in {reference}. "
            f"Cases there: {', '.join(sorted(due.masks)[:5])}, ... Rename or remove it."
        )
    if not masks.keys() - surplus:
        another = " Is it of another list? --split says which to score." if surplus else ""
        raise UserError(f"{prediction}: no prediction for any of the {len(due.masks)} cases of {reference}.{another}")
    for case, path in masks.items():
        if case in due.masks and path.resolve() == due.masks[case].resolve():
            raise UserError(f"{path}: is the reference itself, compared with itself. Give the folder of predictions.")
    if surplus:
        logger.info("%d predictions are of cases outside this list: not scored", len(surplus))
    return {case: path for case, path in masks.items() if case in due.masks}


def _require_declared(path: Path, mask: Volume, allowed: set[int | None]) -> None:
    if wrong := _values(mask) - allowed:
        declared = sorted(value for value in allowed if value is not None)
        shown = f"{sorted(wrong)[:5]}" + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise UserError(f"{path}: label values {shown} are not declared. Declared: {declared}.")


def _values(mask: Volume) -> set[int]:
    return set(np.unique(mask.array).tolist())


def _require_same_grid(path: Path, answer: Volume, truth_path: Path, truth: Volume) -> None:
    if answer.shape != truth.shape:
        raise UserError(
            f"{path}: shape {answer.shape}, but the reference {truth_path} has {truth.shape}. "
            "A prediction must lie on its scan's own grid."
        )
    if not same_grid(answer, truth):
        raise UserError(
            f"{path}: equal shape, but another position, orientation or voxel size than the reference {truth_path}. "
            "A prediction must lie on its scan's own grid: check how it was written."
        )


def _log_opening(dataset: Path, prediction: Path, due: _Reference) -> None:
    """Note that the test masks are about to be read: each look at them costs a little of their worth."""
    entry = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "prediction": str(prediction.resolve()),
        "cases": len(due.masks),
        "command": shlex.join(sys.argv),
    }
    with open_to_append(dataset / "openings.jsonl") as file:
        file.write(json.dumps(entry) + "\n")


def _write(result: EvaluationResult, noted: Mapping[str, Any], began: float) -> None:
    files = {
        "scores.csv": table.scores_csv(result.scores),
        "summary.csv": table.summary_csv(result.summary),
        "definitions.txt": result.definitions + "\n",
    }
    result.out.mkdir(parents=True, exist_ok=True)
    with only_writer(result.out):
        for name, text in files.items():
            write_text(result.out / name, text)
        write_stage(result.out, "evaluate", began=began, files=tuple(files), **noted)
