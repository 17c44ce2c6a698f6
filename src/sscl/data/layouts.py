"""Folders as they are found: which scans there are, which have a mask, and what the folder says about them."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sscl.core.errors import UserError
from sscl.core.files import read_json
from sscl.data.matching import entries, group, has_channel_suffix, refuse_orphans, some, volumes_in
from sscl.data.promises import check_pairs
from sscl.data.published_layouts import MASKS_OF_FOLDERS, SCANS_OF_FOLDERS, folders_with, published
from sscl.data.source import Case, Source
from sscl.volumes.files import case_stem, is_volume

log = logging.getLogger("sscl")
_SCAN_FOLDERS = ("imagesTs", "imagesTr", "images")
_MASK_FOLDERS = ("labels", "masks", "segmentations")


def discover(source: Path, images: Path | None = None, labels: Path | None = None) -> Source:
    """Find the scans and masks of a folder.

    Args:
        source: the folder.
        images, labels: two folders matched by name (inside `source` or by their own path).

    Raises:
        UserError: no known layout, or one with files that contradict each other.
    """
    if not source.is_dir():
        raise UserError(f"{source}: is not a folder. Name the folder that holds the scans.")
    if images is not None or labels is not None:
        if images is None or labels is None:
            raise UserError("--images and --labels belong together. Give both folders.")
        return _two_folders(source, _inside(source, images), _inside(source, labels))
    if (source / "dataset.json").is_file():
        return _nnunet(source)
    if known := published(source):
        return known
    if (source / "images").is_dir():
        masks = [source / name for name in _MASK_FOLDERS if (source / name).is_dir()]
        if len(masks) == 1:
            return _two_folders(source, source / "images", masks[0])
        found = "none" if not masks else " and ".join(folder.name for folder in masks)
        raise UserError(
            f"{source}: expected one of labels, masks, segmentations beside images, found {found}. Use --labels."
        )
    raise UserError(
        f"{source}: no known layout. Expected dataset.json with imagesTr and labelsTr, images and labels, folders with "
        f"{', '.join(SCANS_OF_FOLDERS)}, or PANCREAS_0001, ...; or name two folders with --images and --labels."
    )


def scans_in(path: Path, num_channels: int) -> dict[str, tuple[Path, ...]]:
    """The scans of a file or folder, to predict on: case name to its files, in the order of the channels.

    Args:
        path: a volume, the folder of a DICOM series, or a folder of volumes, DICOM folders, or folders named by their
            case as LA and KiTS19 have them, or one of these.

    Raises:
        UserError: nothing there, channels missing, or the folder of a data set that holds its scans deeper.
    """
    if not path.exists():
        raise UserError(f"{path}: does not exist. Name a scan or a folder of scans.")
    for name in SCANS_OF_FOLDERS:
        if patients := folders_with(path, (name,)):
            return {patient.name: (patient / name,) for patient in patients}
    if patient_scan := _patient_scan(path):
        folder = Path(os.path.abspath(patient_scan)).parent  # noqa: PTH100 - a link's own folder, as if all were read
        return {folder.name: (patient_scan,)}
    if deeper := [path / name for name in _SCAN_FOLDERS if (path / name).is_dir()]:
        raise UserError(f"{path}: is a whole data set. Name a folder of scans in it: {' or '.join(map(str, deeper))}.")
    scans = volumes_in(path) if path.is_dir() and not _holds_slices(path) else {case_stem(path): path}
    if not scans:
        raise UserError(f"{path}: no scan found. Name a scan, or the folder that holds the scans themselves.")
    single = num_channels == 1
    channels = has_channel_suffix(scans, ())
    suffixed = all(stem.endswith("_0000") for stem in scans) if single else channels
    if channels and not suffixed:  # `patient_0000`, `patient_0001` may as well be scans of their own
        log.warning("%s: numbers like _0001 are taken for scans, not for channels, of which the model has one.", path)
    return group(scans, suffixed, num_channels)


def _patient_scan(path: Path) -> Path | None:
    """The scan in a folder that is named by its case, where the folder or the file is given and holds no other one."""
    there = [path] if path.is_file() else [entry for entry in entries(path) if is_volume(entry)]
    scans = [scan for scan in there if scan.name not in MASKS_OF_FOLDERS]
    return scans[0] if len(scans) == 1 and scans[0].name in SCANS_OF_FOLDERS else None


# nnU-Net v2 and Medical Segmentation Decathlon


def _nnunet(source: Path) -> Source:
    path = source / "dataset.json"
    declared = read_json(path)
    if not isinstance(declared, dict):
        raise UserError(f"{path}: expected an object with channel_names and labels.")
    channels = _channels(declared, path)
    labels, ignore = declared_labels(declared, path)
    if not (source / "imagesTr").is_dir():
        raise UserError(f"{source / 'imagesTr'}: is missing, but {path.name} promises it. Put the scans there.")
    masks = volumes_in(source / "labelsTr")
    scans = volumes_in(source / "imagesTr")
    if not scans:
        raise UserError(f"{source / 'imagesTr'}: the folder is empty: no scan found. Put the scans there.")
    suffixed = has_channel_suffix(scans, masks)
    images = group(scans, suffixed, len(channels))
    refuse_orphans(masks, images)
    later = group(volumes_in(source / "imagesTs"), suffixed, len(channels))
    if twice := sorted(images.keys() & later.keys()):
        raise UserError(f"{source}: case '{twice[0]}' is in both imagesTr and imagesTs: a leak. Remove or rename one.")
    later_masks = volumes_in(source / "labelsTs")
    if orphans := sorted(later_masks.keys() - later.keys()):
        log.warning("%s: masks without a scan in imagesTs are not used: %s.", source / "labelsTs", some(orphans))
    cases = {name: Case(files, masks.get(name)) for name, files in images.items()}
    cases |= {name: Case(files, later_masks.get(name)) for name, files in later.items()}
    split_file = source / "splits_final.json"
    found = Source(
        name=str(declared.get("name") or source.resolve().name),
        root=source,
        layout="nnunet",
        channels=channels,
        labels=labels,
        cases=cases,
        order=tuple(sorted(images)),
        split_file=split_file if split_file.is_file() else None,
        images_ts=tuple(sorted(later)),
        ignore_label=ignore,
        num_training=_num_training(declared, path),
        files=(path,),
    )
    check_pairs(declared, path, found)
    return found


def _channels(declared: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """`{"0": "MRI"}` under nnU-Net's or the Decathlon's key, to names in order."""
    names = declared.get("channel_names", declared.get("modality"))
    if isinstance(names, list):
        names = {str(index): name for index, name in enumerate(names)}
    if not isinstance(names, dict) or not names:
        raise UserError(f'{path}: channel_names is missing. Add, for instance, "channel_names": {{"0": "MRI"}}.')
    if sorted(names) != sorted(str(index) for index in range(len(names))):
        raise UserError(
            f"{path}: channel_names must be numbered 0 to {len(names) - 1}, found {', '.join(map(str, names))}."
        )
    return tuple(str(names[str(index)]) for index in range(len(names)))


def declared_labels(declared: Mapping[str, Any], path: Path) -> tuple[tuple[str, ...], int | None]:
    """Class names by value, and the value of `ignore`, of a dataset.json; names and values may stand in either order.

    Raises:
        UserError: no labels, two of one name, or values with a gap.
    """
    entries = declared.get("labels")
    if not isinstance(entries, dict) or not entries:
        raise UserError(f'{path}: labels is missing. Add, for instance, "labels": {{"background": 0, "organ": 1}}.')
    values: dict[int, str] = {}
    turned = all(_number(key) is not None for key in entries)
    if turned and "channel_names" in declared:
        log.warning("%s: labels are written value to name, as the Decathlon does; read all the same.", path)
    for key, entry in entries.items():
        name, value = (entry, key) if turned else (key, entry)
        if isinstance(value, list):
            raise UserError(
                f"{path}: label '{name}' is {value}: regions are not supported. Give every class one value of its own."
            )
        number = _number(value)
        if number is None:
            raise UserError(f"{path}: label '{name}' is {value!r}, expected a whole number from 0.")
        if number in values:
            raise UserError(
                f"{path}: labels '{values[number]}' and '{name}' have one value, {value}. Give each its own."
            )
        if str(name) in values.values():
            raise UserError(f"{path}: two labels are called '{name}'. Give each a name of its own.")
        if str(name).lower() == "background" and number:
            raise UserError(f"{path}: label '{name}' is {value}, but the background is always 0. Correct the values.")
        values[number] = str(name)
    ignore = next((value for value, name in values.items() if name == "ignore"), None)
    if ignore is not None:
        del values[ignore]
    if sorted(values) != list(range(len(values))) or len(values) < 2:
        raise UserError(
            f"{path}: label values must be 0 (background), 1, 2, ... without a gap, found {sorted(values)}."
        )
    if len(values) > 127:
        raise UserError(f"{path}: {len(values)} labels; at most 127 are supported, because masks are kept in 8 bits.")
    return tuple(values[value] for value in sorted(values)), ignore


def _number(value: object) -> int | None:
    """A small whole number, which JSON may hold as text; None for anything else."""
    text = "" if isinstance(value, bool) else str(value)
    return int(text) if text.isdecimal() and len(text) < 10 else None


def _num_training(declared: Mapping[str, Any], path: Path) -> int | None:
    number = declared.get("numTraining")
    if number is not None and (not isinstance(number, int) or isinstance(number, bool)):
        raise UserError(f"{path}: numTraining is {number!r}, expected a whole number.")
    return number


# Two folders matched by name


def _two_folders(source: Path, images: Path, labels: Path) -> Source:
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(f"{folder}: is not a folder. Name the folders of the scans and of the masks.")
    scans, masks = volumes_in(images), volumes_in(labels)
    for folder, found in ((images, scans), (labels, masks)):
        if not found:
            raise UserError(f"{folder}: no volume found. Put the scans in one folder and the masks in the other.")
    if images.samefile(labels) and any(path.suffix.lower() != ".h5" for path in masks.values()):  # .h5 holds both
        raise UserError(f"{labels}: holds both scans and masks: every scan would be its own mask. Name two folders.")
    grouped = group(scans, has_channel_suffix(scans, masks), None)
    refuse_orphans(masks, grouped)
    if (folds := source / "splits_final.json").is_file():
        log.info("%s is used only where --split names it.", folds)
    number = max(len(files) for files in grouped.values())
    for name, files in grouped.items():
        if len(files) != number:
            raise UserError(
                f"{files[0]}: case '{name}' has {len(files)} channel files, others have {number}. Add or remove some."
            )
    return Source(
        name=source.resolve().name,
        root=source,
        layout="folders",
        channels=("image",) if number == 1 else tuple(f"image_{index}" for index in range(number)),
        labels=None,
        cases={name: Case(files, masks.get(name)) for name, files in grouped.items()},
        order=tuple(sorted(grouped)),
    )


def _inside(source: Path, folder: Path) -> Path:
    """A folder in `source`, or, where there is none, by its own path."""
    return source / folder if (source / folder).is_dir() else folder


def _holds_slices(folder: Path) -> bool:
    """Whether a DICOM series lies in the folder itself, not in folders below."""
    return is_volume(folder) and not any(is_volume(entry) for entry in entries(folder) if entry.is_dir())
