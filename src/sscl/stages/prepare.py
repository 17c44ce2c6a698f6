"""`prepare`: a folder of scans and a few masks to DATASET, in which everything is decided, checked and stored."""

import hashlib
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sscl.core.errors import UserError
from sscl.core.files import read_object, write_json
from sscl.core.plan import Plan, Spacing
from sscl.data.check import Pair, check_assumed_size, check_image, check_masks, check_pair, labels_from_values
from sscl.data.layouts import discover
from sscl.data.planning import fingerprint, make_plan, read_settings
from sscl.data.preprocess import preprocess, resample_label
from sscl.data.presets import Preset
from sscl.data.presets import preset as find_preset
from sscl.data.promises import check_promises, require_masks
from sscl.data.source import Source
from sscl.data.split import Split, read_lists, split_from_lists, split_from_options
from sscl.data.store import write_case
from sscl.stages.dataset import open_dataset
from sscl.stages.folder import STAGE, built, collected_warnings, digest, size, write_stage
from sscl.volumes.files import read_image, read_label
from sscl.volumes.geometry import to_ras
from sscl.volumes.h5 import read_h5
from sscl.volumes.volume import Volume

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

    Opened are the scans and masks of the labelled cases and the scans of the unlabelled ones; nothing else.

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
        split, used = _split(found, split_file, labelled, unlabelled, development, test)
        check_promises(found, explicit=split_file is not None or labelled is not None)
        require_masks(found, split)
        inputs = _digests(found, split, [*found.files, *([used] if used else [])])
        _check_copies(found, split, inputs)
        if out.is_dir() and any(out.iterdir()):
            return _already(out, config, inputs)
        _announce(found, split)
        of_preset = None if "spacing_if_missing_mm" in fields else preset
        _tell_assumed_size(found, split, fixed.get("spacing_if_missing_mm"), of_preset)
        with built(out) as folder:
            plan, names = _plan(found, split.labelled, fixed)
            _fill(folder / "store", found, split, plan)
            write_json(folder / "plan.json", plan.model_dump(mode="json"))
            write_json(folder / "split.json", split.lists())
            write_json(folder / "dataset.json", _facts(found, names))
            write_stage(folder, "prepare", config=config, inputs=inputs, began=began, warnings=list(warnings))
    return PrepareResult(out, plan, split, tuple(warnings), skipped=False)


# What is for what


def _split(
    found: Source,
    split_file: Path | None,
    labelled: int | str | None,
    unlabelled: int | str | None,
    development: str | None,
    test: str | None,
) -> tuple[Split, Path | None]:
    """The split, and the file it comes from, if any: the user's file, the user's options, or nnU-Net's own file."""
    options = {"labelled": labelled, "unlabelled": unlabelled, "development": development, "test": test}
    given = ", ".join(f"--{name}" for name, value in options.items() if value is not None)
    if split_file and given:
        raise UserError(f"--split {split_file} names the cases of every list. Leave out {given}.")
    path = split_file or found.split_file
    if path and not given:
        logger.info("split: %s", path)
        lists = {**found.lists, **read_lists(path)}
        return split_from_lists(lists, found.order, found.cases.keys(), found.masked, str(path)), path
    if path:
        logger.warning("%s is not used, because %s was given.", path, given)
    split = split_from_options(
        found.order,
        found.cases.keys(),
        found.masked,
        labelled=labelled,
        unlabelled=unlabelled,
        development=development,
        test=test,
        lists=found.lists,
        images_ts=found.images_ts,
    )
    return split, None


def _check_copies(found: Source, split: Split, inputs: Mapping[str, str]) -> None:
    """One file under two names: a leak where the lists differ. Bytes of files of equal size are compared, no more."""
    listed = [
        (name, case, path)
        for name, cases in split.lists().items()
        for case in cases
        for path in found.cases[case].images
    ]
    sizes = defaultdict(list)
    for name, case, path in listed:
        sizes[size(path)].append((name, case, path))
    for same in sizes.values():
        seen: dict[str, tuple[str, str]] = {}
        for name, case, path in same if len({case for _, case, _ in same}) > 1 else ():
            content = inputs.get(_key(path, "image", found)) or _content(path, "image")
            other_name, other = seen.setdefault(content, (name, case))
            if other_name != name:
                raise UserError(
                    f"{path}: identical to case '{other}': a duplicate in '{name}' and '{other_name}' is a leak. "
                    "Remove one."
                )
            if other != case:
                logger.warning("%s: identical to case '%s': a duplicate within '%s'.", path, other, name)


def _announce(found: Source, split: Split) -> None:
    lists = split.lists()
    unused = len(found.cases) - sum(len(cases) for cases in lists.values())
    logger.info(
        "%s: %d labelled, %d unlabelled (no mask needed), %d development, %d test, %d unused",
        found.layout,
        *(len(cases) for cases in lists.values()),
        unused,
    )
    groups = defaultdict(list)
    for case in found.cases:
        groups[case.casefold()].append(case)
    for names in groups.values():
        if len(names) > 1:
            logger.warning("cases %s differ only in upper and lower case: some disks take them for one.", names)
    if not split.unlabelled:
        ways = (
            "imagesTs has some: --unlabelled imagesTs uses them"
            if found.images_ts
            else "add scans (imagesTs, for instance)"
        )
        logger.warning("no unlabelled scans: semi-supervised methods have nothing to learn from; %s.", ways)


def _tell_assumed_size(found: Source, split: Split, spacing: Spacing | None, preset: str | None) -> None:
    """Where files hold no voxel size: which one is taken, and whether it can be theirs. preset: whose size it is."""
    labelled, other = (
        [path for case in cases for path in found.cases[case].images if _is_h5(path)]
        for cases in (split.labelled, split.unlabelled)
    )
    if spacing is None or not (labelled or other):
        return
    origin = f"preset {preset}" if preset else "--set spacing_if_missing_mm"
    size = " x ".join(f"{length:g}" for length in spacing)
    logger.info("%s holds no voxel size: taken as %s mm (%s)", (labelled + other)[0].name, size, origin)
    if preset and (longest_xy := find_preset(preset).longest_xy):
        shapes = {str(path): read_h5(path, "image", spacing).shape for path in labelled}
        _warn(check_assumed_size(shapes, spacing, longest_xy))


# Reading and storing


def _plan(found: Source, labelled: Sequence[str], fixed: Mapping[str, Any]) -> tuple[Plan, tuple[str, ...]]:
    """Read and check the labelled cases; plan what `fixed` leaves open. Also the class names."""
    spacing = fixed.get("spacing_if_missing_mm")
    cases, values = [], []
    for case in labelled:
        image, path = _image(found, case, spacing), found.cases[case].label
        assert path is not None
        pair = Pair(image, _label(path, found.label_map, spacing), found.labels, found.ignore_label)
        _warn(check_image(image, str(found.cases[case].images[0])))
        _warn(check_pair(pair, str(path)))
        values.append(pair.values)
        cases.append(fingerprint(image, pair.label, found.ignore_label))
    where = os.path.commonpath([path.parent for case in labelled if (path := found.cases[case].label)])
    names = found.labels or labels_from_values(values, where)
    if not found.labels:
        logger.info("labels, from the masks: %s", ", ".join(f"{value} {name}" for value, name in enumerate(names)))
    _warn(check_masks(values, names, where))
    rest = {key: value for key, value in fixed.items() if key != "memory_gb"}
    plan = make_plan(found.channels, names, found.ignore_label, cases, rest, fixed.get("memory_gb") or _memory_gb())
    logger.info("plan: spacing %s mm, patch %s, stride %s", *map(_by, (plan.spacing_mm, plan.patch, plan.stride)))
    return plan, names


def _fill(store: Path, found: Source, split: Split, plan: Plan) -> None:
    """Preprocess and write the labelled and unlabelled cases. The masks of the latter stay closed."""
    store.mkdir()
    labelled = frozenset(split.labelled)
    for case in (*split.labelled, *split.unlabelled):
        where = str(found.cases[case].images[0])
        image, label = _image(found, case, plan.spacing_if_missing_mm), None
        _warn(check_image(image, where))
        if case in labelled:
            path = found.cases[case].label
            assert path is not None
            label = resample_label(_label(path, found.label_map, plan.spacing_if_missing_mm), plan)
        try:
            array = preprocess(image, plan)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        write_case(store, case, array, label)
    logger.info("stored %d cases", len(split.labelled) + len(split.unlabelled))


def _warn(messages: Iterable[str]) -> None:
    for message in messages:
        logger.warning(message)


def _image(found: Source, case: str, spacing: Spacing | None) -> Volume:
    return to_ras(read_image(found.cases[case].images, len(found.channels), spacing))


def _label(path: Path, label_map: Mapping[int, int], spacing: Spacing | None) -> Volume:
    return to_ras(read_label(path, spacing, label_map))


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

    from sscl.stages.device import main_memory_bytes

    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
    else:
        total = main_memory_bytes() or 8_000_000_000
    return min(10.0, total / 2e9)


def _facts(found: Source, names: Sequence[str]) -> dict[str, Any]:
    """`dataset.json`: where the files are, what they mean; `label_map`: stored mask value to class, if not equal."""
    return {
        "name": found.name,
        "source": str(found.root.resolve()),
        "layout": found.layout,
        "channels": list(found.channels),
        "labels": list(names),
        "ignore_label": found.ignore_label,
        "label_map": {str(stored): value for stored, value in found.label_map.items()},
        "cases": {
            name: {
                "image": [_relative(path, found) for path in case.images],
                "label": _relative(case.label, found) if case.label else None,
            }
            for name, case in found.cases.items()
        },
    }


def _digests(found: Source, split: Split, described: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of everything that is read, by its path from the source."""
    images = [path for case in (*split.labelled, *split.unlabelled) for path in found.cases[case].images]
    masks = [path for case in split.labelled if (path := found.cases[case].label)]
    parts = [(path, "image") for path in (*described, *images)] + [(path, "label") for path in masks]
    return {_key(path, part, found): _content(path, part) for path, part in parts}


def _key(path: Path, part: str, found: Source) -> str:
    return _relative(path, found) + (f":{part}" if _is_h5(path) else "")


def _content(path: Path, part: str) -> str:
    """Digest of a file; of an h5 file, which holds the image and the mask, of one of them: the other stays closed."""
    if not _is_h5(path):
        return digest(path)
    array = read_h5(path, part, (1.0, 1.0, 1.0)).array  # the voxel size is no part of it
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()


def _is_h5(path: Path) -> bool:
    return path.suffix.lower() == ".h5"


def _relative(path: Path, found: Source) -> str:
    return Path(os.path.relpath(path.absolute(), found.root.resolve())).as_posix()


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
