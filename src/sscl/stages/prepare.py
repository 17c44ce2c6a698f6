"""`prepare`: a folder of scans and a few masks to DATASET, in which everything is decided, checked and stored."""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sscl.core.errors import UserError
from sscl.core.files import read_object, write_json
from sscl.core.memory import main_memory_bytes
from sscl.core.plan import Plan, Spacing
from sscl.data.check import check_assumed_size, check_masks, labels_from_values
from sscl.data.layouts import discover
from sscl.data.planning import fingerprint, make_plan, read_settings
from sscl.data.preprocess import preprocess, resample_label
from sscl.data.presets import Preset
from sscl.data.presets import preset as find_preset
from sscl.data.promises import check_promises, require_masks
from sscl.data.published_lists import leak, with_published_lists
from sscl.data.source import Source
from sscl.data.split import Split
from sscl.data.store import write_case, write_digests
from sscl.stages.assign import announce, check_copies, choose, digests, is_h5, relative
from sscl.stages.cases import crop_cases, image_of, label_of, pair_of, require_masks_to_crop, warn
from sscl.stages.dataset import open_dataset
from sscl.stages.folder import STAGE, built, collected_warnings, write_stage
from sscl.volumes.h5 import read_h5

logger = logging.getLogger("sscl")


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

    Opened are the scans and masks of the labelled cases and the scans of the unlabelled ones; nothing else, but with a
    preset that is called `-literature`, which crops every scan to its mask.

    Args:
        preset: name of a preset, else the plan is made from the labelled scans.
        split_file, labelled, unlabelled, development, test: see `sscl.data.split`.
        images, labels: two folders matched by name.
        settings: fields of the plan, and `window`, `scaling`, `memory_gb`; they win over everything.

    Raises:
        UserError: anything wrong with the input; `out` is then as it was before.
    """
    config = {
        "source": str(source.resolve()),
        "preset": preset,
        "split_file": str(split_file) if split_file else None,
        "labelled": labelled,
        "unlabelled": unlabelled,
        "development": development,
        "test": test,
        "images": str(images) if images else None,
        "labels": str(labels) if labels else None,
        "settings": dict(settings or {}),
    }
    began = time.monotonic()
    _refuse_nested(source, out)
    fields = read_settings(settings or {})
    known = find_preset(preset) if preset else None
    fixed = _merged(known.plan if known else {}, fields)
    with collected_warnings() as warnings:
        found = _renamed(_relabelled(discover(source, images, labels), known, fields), fixed)
        listed = _listed(found, preset, split_file)
        split, used = choose(listed, split_file, labelled, unlabelled, development, test)
        check_promises(found, explicit=split_file is not None or labelled is not None)
        require_masks(found, split)
        if known and known.mask_crop:
            require_masks_to_crop(found, split, preset or "")
        inputs = _inputs(found, split, [*found.files, *([used] if used else [])], known)
        check_copies(found, split, inputs)
        if out.is_dir() and any(out.iterdir()):
            return _already(out, config, inputs)
        announce(found, split)
        _tell_leak(split, known)
        of_preset = None if "spacing_if_missing_mm" in fields else preset
        _tell_assumed_size(found, split, fixed.get("spacing_if_missing_mm"), of_preset)
        with built(out) as folder:
            plan, names = _plan(found, split.labelled, fixed)
            if known and known.mask_crop:
                found = crop_cases(folder, found, split, plan, known.mask_crop)
            _fill(folder / "store", found, split, plan)
            write_json(folder / "plan.json", plan.model_dump(mode="json"))
            write_json(folder / "split.json", split.lists())
            write_json(folder / "dataset.json", _facts(found, names, folder))
            write_stage(folder, "prepare", config=config, inputs=inputs, began=began, warnings=list(warnings))
    return PrepareResult(out, plan, split, tuple(warnings), skipped=False)


# Reading and storing


def _listed(found: Source, preset: str | None, split_file: Path | None) -> Source:
    """With the preset's lists, unless the user names every case."""
    if preset is None or split_file:
        return found
    return with_published_lists(found, preset, find_preset(preset).order, find_preset(preset).test)


def _inputs(found: Source, split: Split, described: Sequence[Path], known: Preset | None) -> dict[str, str]:
    """Digests of what is read: of all cases' masks only where a preset crops to them."""
    if known and known.mask_crop:
        every = [case for cases in split.lists().values() for case in cases]
        return digests(found, described, every, every)
    return digests(found, described, (*split.labelled, *split.unlabelled), split.labelled)


def _tell_leak(split: Split, known: Preset | None) -> None:
    if known and (message := leak(split, known.duplicates)):
        logger.warning(message)


def _tell_assumed_size(found: Source, split: Split, spacing: Spacing | None, preset: str | None) -> None:
    """Where files hold no voxel size: which one is taken, and whether it can be theirs. preset: whose size it is."""
    labelled, other = (
        [path for case in cases for path in found.cases[case].images if is_h5(path)]
        for cases in (split.labelled, split.unlabelled)
    )
    if spacing is None or not (labelled or other):
        return
    origin = f"preset {preset}" if preset else "--set spacing_if_missing_mm"
    size = " x ".join(f"{length:g}" for length in spacing)
    logger.info("%s holds no voxel size: taken as %s mm (%s)", (labelled + other)[0].name, size, origin)
    if preset and (longest_xy := find_preset(preset).longest_xy):
        shapes = {str(path): read_h5(path, "image", spacing).shape for path in labelled}
        warn(check_assumed_size(shapes, spacing, longest_xy))


def _plan(found: Source, labelled: Sequence[str], fixed: Mapping[str, Any]) -> tuple[Plan, tuple[str, ...]]:
    """Read and check the labelled cases; plan what `fixed` leaves open. Also the class names."""
    spacing = fixed.get("spacing_if_missing_mm")
    cases, values = [], []
    for case in labelled:
        pair = pair_of(found, case, spacing)
        values.append(pair.values)
        cases.append(fingerprint(pair.image, pair.label, found.ignore_label))
    where = os.path.commonpath([path.parent for case in labelled if (path := found.cases[case].label)])
    names = found.labels or labels_from_values(values, where)
    if not found.labels:
        logger.info("labels, from the masks: %s", ", ".join(f"{value} {name}" for value, name in enumerate(names)))
    warn(check_masks(values, names, where))
    rest = {key: value for key, value in fixed.items() if key != "memory_gb"}
    plan = make_plan(found.channels, names, found.ignore_label, cases, rest, fixed.get("memory_gb") or _memory_gb())
    logger.info("plan: spacing %s mm, patch %s, stride %s", *map(_by, (plan.spacing_mm, plan.patch, plan.stride)))
    return plan, names


def _fill(store: Path, found: Source, split: Split, plan: Plan) -> None:
    """Preprocess and write the labelled and unlabelled cases. The masks of the latter stay closed."""
    store.mkdir()
    labelled = frozenset(split.labelled)
    written: dict[str, str] = {}
    for case in (*split.labelled, *split.unlabelled):
        where = str(found.cases[case].images[0])
        image, label = image_of(found, case, plan.spacing_if_missing_mm), None
        if case in labelled:
            label = resample_label(label_of(found, case, image, plan.spacing_if_missing_mm), plan)
        try:
            written |= write_case(store, case, preprocess(image, plan), label)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    write_digests(store, written)
    logger.info("stored %d cases", len(split.labelled) + len(split.unlabelled))


# Settings, files, folders


def _relabelled(found: Source, known: Preset | None, fields: Mapping[str, Any]) -> Source:
    """With the preset's classes, unless the user names others."""
    if known is None or known.labels is None or "labels" in fields:
        return found
    merged = ", ".join(f"{stored} is read as {value}" for stored, value in known.label_map.items())
    logger.info("labels of the preset: %s; in masks %s (--set labels=... keeps all)", ", ".join(known.labels), merged)
    return replace(found, labels=known.labels, label_map={**found.label_map, **known.label_map})


def _renamed(found: Source, fixed: dict[str, Any]) -> Source:
    """Channels, labels and the ignore label as the user names them; taken out of `fixed`."""
    named = {key: fixed.pop(key) for key in ("channels", "labels", "ignore_label") if key in fixed}
    return replace(found, **named)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """`second` wins; of `intensity`, field by field."""
    merged = {**first, **second}
    if "intensity" in merged:
        merged["intensity"] = {**first.get("intensity", {}), **second.get("intensity", {})}
    return merged


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


def _refuse_nested(source: Path, out: Path) -> None:
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError(
            f"{out}: lies in the source folder {source}, which is left untouched. Choose a folder outside of it."
        )
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file. Choose the name of a new folder.")


def _already(out: Path, config: Mapping[str, Any], inputs: Mapping[str, str]) -> PrepareResult:
    """The result that is there, if it was made from the same inputs with the same settings."""
    stage = read_object(out / STAGE) if (out / STAGE).is_file() else {}
    if stage.get("stage") != "prepare":
        raise UserError(f"{out}: is not empty and not a prepared data set. Choose another folder.")
    now = json.loads(json.dumps(config))
    other = [key for key in now if stage["config"].get(key) != now[key]]
    if other or stage["inputs"] != inputs:
        why = f"other settings ({', '.join(other)})" if other else "other files"
        raise UserError(f"{out}: was prepared from {why}. Choose another folder, or delete this one.")
    data = open_dataset(out)
    for case in (*data.split.labelled, *data.split.unlabelled):
        if not (out / "store" / f"{case}.image.b2nd").is_file():
            raise UserError(f"{out / 'store'}: the file of case '{case}' is gone. Delete {out} and prepare it again.")
    logger.info("%s: already prepared", out)
    return PrepareResult(out, data.plan, data.split, tuple(stage["warnings"]), skipped=True)


def _by(values: Sequence[float]) -> str:
    return "x".join(f"{value:g}" for value in values)
