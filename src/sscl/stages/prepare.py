"""`prepare`: a folder of scans and a few masks to DATASET, in which everything is decided, checked and stored."""

import json
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sscl.core.errors import UserError, refuse
from sscl.core.files import write_json
from sscl.core.memory import main_memory_bytes
from sscl.core.plan import Plan
from sscl.data.check import Finding
from sscl.data.check_set import labels_from_values
from sscl.data.planning import Fingerprint, fingerprint, make_plan, tells_left_from_right
from sscl.data.preprocess import preprocess, resample_label
from sscl.data.source import Source
from sscl.data.split import Split
from sscl.data.store import CaseStore, write_case, write_digests
from sscl.stages.assign import announce, digests, relative
from sscl.stages.cases import CROPPED, crop_cases, image_of, label_of
from sscl.stages.check import judge, look, masks_folder, to_look_at
from sscl.stages.dataset import NOTED, open_dataset
from sscl.stages.folder import STAGE, built, collected_warnings, counted, read_stage, resolved, write_stage
from sscl.stages.request import Opened, Request, assigned, check_assigned, inputs_read, opened
from sscl.volumes.volume import Volume

logger = logging.getLogger("sscl")

CLIPPED = 0.25
"""So much of the organs outside of the window is worth a warning; a planned window leaves out a hundredth."""
KEPT = 0.1
"""So little of a class's volume after resampling is worth a warning."""


@dataclass(frozen=True)
class PrepareResult:
    """The folder, what was decided, and what a report should repeat."""

    out: Path
    plan: Plan
    split: Split
    warnings: tuple[str, ...]
    skipped: bool
    """The folder was there already, from equal inputs and settings."""


def prepare(
    source: Path,
    out: Path,
    *,
    preset: str | None = None,
    split_file: Path | None = None,
    labelled: int | str | None = None,
    unlabelled: int | str | None = None,
    development: str | None = None,
    test: str | None = None,
    images: Path | None = None,
    labels: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> PrepareResult:
    """Find, split, check, plan and store the cases of `source` in the new folder `out`.

    Opened are the masks of the labelled cases alone, but with a preset that is called `-literature`, which crops every
    scan to its mask. Scans of development and test cases are read to find damage and copies; nothing is kept of them.

    Args:
        preset: name of a preset, else the plan is made from the labelled scans.
        split_file, labelled, unlabelled, development, test: see `sscl.data.split`.
        images, labels: two folders matched by name.
        settings: fields of the plan, and `window`, `scaling`, `memory_gb`; they win over everything.

    Raises:
        UserError: anything wrong with the input; `out` is then as it was before.
    """
    request = Request(preset, split_file, labelled, unlabelled, development, test, images, labels, settings or {})
    config = request.config(source)
    began = time.monotonic()
    _refuse_nested(out, source, *(folder for folder in (images, labels) if folder))
    with collected_warnings() as warnings:
        at = opened(source, request)
        split, used = assigned(at)
        check_assigned(at, split)
        described = [*at.found.files, *([used] if used else [])]
        inputs = digests(at.found, described, *inputs_read(at, split))
        if out.is_dir() and any(out.iterdir()):
            return _already(out, config, inputs)
        announce(at.found, split)
        with built(out) as folder:
            cases, values = _checked(at, split)
            plan, names = _plan(at, split, cases, values)
            found = at.found
            if at.preset and at.preset.mask_crop:
                found = crop_cases(folder, found, split, plan, at.preset.mask_crop)
            _fill(folder / "store", found, split, plan)
            write_json(folder / "plan.json", plan.model_dump(mode="json"))
            write_json(folder / "split.json", split.lists())
            write_json(folder / "dataset.json", _facts(found, names, folder))
            crops = [path.relative_to(folder).as_posix() for path in (folder / CROPPED).rglob("*.nii.gz")]
            write_stage(
                folder, "prepare", config=config, inputs=inputs, began=began, files=[*NOTED, *sorted(crops)],
                warnings=list(warnings),
            )  # fmt: skip
    return PrepareResult(out, plan, split, tuple(warnings), skipped=False)


# Reading and storing


def _checked(at: Opened, split: Split) -> tuple[list[Fingerprint], list[tuple[int, ...]]]:
    """Everything that `sscl check` looks at, but the masks of development and test cases; of the labelled cases, what
    the plan is made from.

    Raises:
        UserError: all that is wrong.
    """
    every, labelled = list(split.lists()), frozenset(split.labelled)
    seen, prints, values = {}, [], []
    findings: list[Finding] = []
    for case, with_mask in counted(to_look_at(at.found, split.lists(), every if at.crops else ("labelled",)), "read"):
        seen[case], pair = look(at, case, with_mask)
        findings += seen[case].findings
        if pair and case in labelled and pair.image.shape == pair.label.shape:
            prints.append(fingerprint(pair.image, pair.label, at.found.ignore_label))
            values.append(pair.values)
    findings += judge(at, split.lists(), seen)
    for finding in findings:
        if not finding.fatal:
            logger.warning(finding.message)
    refuse(finding.message for finding in findings if finding.fatal)
    return prints, values


def _plan(
    at: Opened, split: Split, cases: Sequence[Fingerprint], values: Collection[tuple[int, ...]]
) -> tuple[Plan, tuple[str, ...]]:
    """The plan, as far as it is not fixed, from the labelled cases. Also the class names."""
    found = at.found
    names = found.labels or labels_from_values(values, masks_folder(found, split.labelled))
    if not found.labels:
        logger.info("labels, from the masks: %s", ", ".join(f"{value} {name}" for value, name in enumerate(names)))
    rest = {key: value for key, value in at.fixed.items() if key != "memory_gb"}
    memory_gb = at.fixed.get("memory_gb") or _memory_gb()
    plan = make_plan(found.channels, names, found.ignore_label, cases, rest, memory_gb)
    logger.info("plan: spacing %s mm, patch %s, stride %s", *map(_by, (plan.spacing_mm, plan.patch, plan.stride)))
    _tell_mirrored(plan)
    _tell_clipped(plan, cases)
    return plan, names


def _tell_mirrored(plan: Plan) -> None:
    """What becomes of classes that a mirror image along x exchanges, going by their names."""
    if not tells_left_from_right(plan.labels):
        return
    if plan.rotate or plan.flip in (True, "x"):
        logger.warning(
            "crops are turned, or mirrored along x, which exchanges left and right, and class names tell them apart "
            "(%s): they are hard to learn so. Prepare with --set rotate=false --set flip=y.",
            ", ".join(plan.labels[1:]),
        )
    else:
        logger.info("plan: crops are not turned, and not mirrored along x: class names tell left from right")


def _tell_clipped(plan: Plan, cases: Sequence[Fingerprint]) -> None:
    """A window that is made for other intensities, as one in Hounsfield units is for MR."""
    inside = np.concatenate([case.foreground for case in cases])
    if plan.intensity.window is None or not inside.size:
        return
    low, high = plan.intensity.window
    if (share := np.mean((inside < low) | (inside > high))) > CLIPPED:
        logger.warning(
            "the window from %g to %g clips %.0f %% of the voxels in the labelled organs, and their contrast is lost. "
            "Is it made for such scans (%s)? Set another, --set window=LOW,HIGH, or leave the preset out.",
            low, high, 100 * share, ", ".join(plan.channels),
        )  # fmt: skip


def _tell_lost(where: Path | None, mask: Volume, label: NDArray[np.int8], plan: Plan) -> None:
    """Classes of the mask that resampling leaves nothing of, or nearly so."""
    voxels = np.prod(np.divide(plan.spacing_mm, mask.spacing_mm))  # of the mask, in one of the plan's
    for value, name in enumerate(plan.labels[1:], start=1):
        before, after = int((mask.array == value).sum()), int((label == value).sum())
        if after * voxels < KEPT * before:
            logger.warning(
                "%s: class '%s' is too small for the plan's voxel size: its %d voxels of %s mm become %d of %s mm, and "
                "the case is trained on as if it were not there. Set a smaller one, --set spacing_mm=X,Y,Z.",
                where, name, before, _by(mask.spacing_mm), after, _by(plan.spacing_mm),
            )  # fmt: skip


def _fill(store: Path, found: Source, split: Split, plan: Plan) -> None:
    """Preprocess and write the labelled and unlabelled cases. The masks of the latter stay closed."""
    store.mkdir()
    labelled = frozenset(split.labelled)
    written: dict[str, str] = {}
    for case in counted((*split.labelled, *split.unlabelled), "stored"):
        where = str(found.cases[case].images[0])
        image = image_of(found, case, plan.spacing_if_missing_mm)
        mask = label_of(found, case, image, plan.spacing_if_missing_mm) if case in labelled else None
        try:
            label = resample_label(mask, plan) if mask else None
            if mask and label is not None:
                _tell_lost(found.cases[case].label, mask, label, plan)
            written |= write_case(store, case, preprocess(image, plan), label)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    write_digests(store, written)
    logger.info("stored %d cases", len(split.labelled) + len(split.unlabelled))


# Settings, files, folders


def _memory_gb() -> float:
    """Half of the main memory or of the GPU's, but at most 10 GB: the paper's own patch (112x112x80) needs that much,
    and larger machines then plan alike.
    """
    import torch

    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
    else:
        total = main_memory_bytes() or 8_000_000_000
    return min(10.0, total / 2e9)


def _facts(found: Source, names: Sequence[str], folder: Path) -> dict[str, Any]:
    """`dataset.json`: where the files are, what they mean; `label_map`: stored mask value to class, if not equal.

    The source is an absolute path, or, where the scans were cropped into `folder`, relative to it.
    """
    folder = folder.resolve()
    inside = found.root.is_relative_to(folder)
    return {
        "name": found.name,
        "source": found.root.relative_to(folder).as_posix() if inside else str(found.root.resolve()),
        "layout": found.layout,
        "channels": list(found.channels),
        "labels": list(names),
        "ignore_label": found.ignore_label,
        "label_map": {str(stored): value for stored, value in found.label_map.items()},
        "mask_axes": found.mask_axes,
        "cases": {
            name: {
                "image": [relative(path, found) for path in case.images],
                "label": relative(case.label, found) if case.label else None,
            }
            for name, case in found.cases.items()
        },
    }


def _refuse_nested(out: Path, *sources: Path) -> None:
    for source in sources:
        if resolved(out).is_relative_to(resolved(source)):
            raise UserError(
                f"{out}: lies in the source folder {source}, which is left untouched. Choose a folder outside of it."
            )
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file. Choose the name of a new folder.")


def _already(out: Path, config: Mapping[str, Any], inputs: Mapping[str, str]) -> PrepareResult:
    """The result that is there, if it was made from the same inputs with the same settings."""
    stage = read_stage(out) if (out / STAGE).is_file() else {}
    if stage.get("stage") != "prepare":
        raise UserError(f"{out}: is not empty and not a prepared data set. Choose another folder.")
    now = json.loads(json.dumps(config))
    other = [key for key in now if stage.get("config", {}).get(key) != now[key]]
    if other or stage.get("inputs") != inputs:
        why = f"other settings ({', '.join(other)})" if other else "other files"
        raise UserError(f"{out}: was prepared from {why}. Choose another folder, or delete this one.")
    data = open_dataset(out)
    for case in (*data.split.labelled, *data.split.unlabelled):
        if not (out / "store" / f"{case}.image.b2nd").is_file():
            raise UserError(f"{out / 'store'}: the file of case '{case}' is gone. Delete {out} and prepare it again.")
    try:
        CaseStore(out / "store").verify()
    except UserError as error:
        raise UserError(f"{error} Delete {out} before.") from None
    logger.info("%s: already prepared", out)
    return PrepareResult(out, data.plan, data.split, tuple(stage.get("warnings", ())), skipped=True)


def _by(values: Sequence[float]) -> str:
    return "x".join(f"{value:g}" for value in values)
