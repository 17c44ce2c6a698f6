"""Folders as they are found: which scans there are, which have a mask, and what the folder says about them."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sscl.core.errors import UserError
from sscl.core.files import read_json
from sscl.data.matching import entries, group, has_channel_suffix, refuse_orphans, volumes_in
from sscl.data.split import Lists
from sscl.volumes.files import case_stem, is_volume

_MASK_FOLDERS = ("labels", "masks", "segmentations")
_H5 = "mri_norm2.h5"
_NRRD = ("lgemri.nrrd", "laendo.nrrd")


@dataclass(frozen=True)
class Case:
    """The files of one scan: its image (one file a channel, one file with all, or a DICOM folder) and its mask."""

    images: tuple[Path, ...]
    label: Path | None


@dataclass(frozen=True)
class Source:
    """What a folder holds."""

    name: str
    root: Path
    layout: str
    channels: tuple[str, ...]
    labels: tuple[str, ...] | None
    """Class names by value, background first; None where nothing declares them."""
    cases: Mapping[str, Case]
    order: tuple[str, ...]
    """The cases that positions count: sorted names, or the order of the LA benchmark's train.list."""
    lists: Lists = field(default_factory=dict)
    """Lists that belong to the layout: the LA benchmark's test.list."""
    split_file: Path | None = None
    """nnU-Net's `splits_final.json`, where it lies beside the scans."""
    images_ts: tuple[str, ...] = ()
    """Scans in `imagesTs`: never trained on unless the user says so."""
    ignore_label: int | None = None
    label_map: Mapping[int, int] = field(default_factory=dict)
    """Stored mask value to class (the LA challenge's 255 is 1)."""
    num_training: int | None = None
    """How many masks `dataset.json` promises."""
    every_mask_promised: bool = False
    """Patient folders of the LA challenge hold a mask each."""
    files: tuple[Path, ...] = ()
    """The files that describe the set."""

    @property
    def masked(self) -> frozenset[str]:
        """Cases with a mask file."""
        return frozenset(name for name, case in self.cases.items() if case.label is not None)


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
    for folder in (source, source / "2018LA_Seg_Training Set"):
        if patients := _folders_with(folder, (_H5,)):
            return _la_benchmark(source, folder, patients)
        if patients := _folders_with(folder, _NRRD):
            return _la_challenge(source, patients)
    if (source / "images").is_dir():
        masks = [source / name for name in _MASK_FOLDERS if (source / name).is_dir()]
        if len(masks) == 1:
            return _two_folders(source, source / "images", masks[0])
        found = "none" if not masks else " and ".join(folder.name for folder in masks)
        raise UserError(
            f"{source}: expected one of labels, masks, segmentations beside images, found {found}. Use --labels."
        )
    raise UserError(
        f"{source}: no known layout. Expected dataset.json with imagesTr and labelsTr, images and labels, or patient "
        f"folders with {_H5} or {_NRRD[0]}; or name two folders with --images and --labels."
    )


def scans_in(path: Path, num_channels: int) -> dict[str, tuple[Path, ...]]:
    """The scans of a file or folder, to predict on: case name to its files, in the order of the channels.

    Args:
        path: a volume, the folder of a DICOM series, or a folder of volumes, DICOM folders or LA patient folders.

    Raises:
        UserError: nothing there, or channels missing.
    """
    if not path.exists():
        raise UserError(f"{path}: does not exist. Name a scan or a folder of scans.")
    for name in (_H5, _NRRD[0]):
        if patients := _folders_with(path, (name,)):
            return {patient.name: (patient / name,) for patient in patients}
    if path.is_file() and path.name in (_H5, _NRRD[0]):
        return {path.resolve().parent.name: (path,)}
    scans = volumes_in(path) if path.is_dir() and not _holds_slices(path) else {case_stem(path): path}
    if not scans:
        raise UserError(f"{path}: no scan found. Name a scan, or the folder that holds the scans themselves.")
    single = num_channels == 1
    suffixed = all(stem.endswith("_0000") for stem in scans) if single else has_channel_suffix(scans, ())
    return group(scans, suffixed, num_channels)


# nnU-Net v2 and Medical Segmentation Decathlon


def _nnunet(source: Path) -> Source:
    path = source / "dataset.json"
    declared = read_json(path)
    if not isinstance(declared, dict):
        raise UserError(f"{path}: expected an object with channel_names and labels.")
    channels = _channels(declared, path)
    labels, ignore = _labels(declared, path)
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
    cases = {name: Case(files, masks.get(name)) for name, files in images.items()}
    cases |= {name: Case(files, later_masks.get(name)) for name, files in later.items()}
    split_file = source / "splits_final.json"
    return Source(
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


def _labels(declared: Mapping[str, Any], path: Path) -> tuple[tuple[str, ...], int | None]:
    """Class names by value, and the value of `ignore`; names and values may stand in either order."""
    entries = declared.get("labels")
    if not isinstance(entries, dict) or not entries:
        raise UserError(f'{path}: labels is missing. Add, for instance, "labels": {{"background": 0, "organ": 1}}.')
    values: dict[int, str] = {}
    turned = all(str(key).isdigit() for key in entries)
    for key, entry in entries.items():
        name, value = (entry, key) if turned else (key, entry)
        if isinstance(value, list):
            raise UserError(
                f"{path}: label '{name}' is {value}: regions are not supported. Give every class one value of its own."
            )
        if isinstance(value, bool) or not str(value).isdigit():
            raise UserError(f"{path}: label '{name}' is {value!r}, expected a whole number from 0.")
        if int(value) in values:
            raise UserError(
                f"{path}: labels '{values[int(value)]}' and '{name}' have one value, {value}. Give each its own."
            )
        values[int(value)] = str(name)
    ignore = next((value for value, name in values.items() if name == "ignore"), None)
    if ignore is not None:
        del values[ignore]
    if sorted(values) != list(range(len(values))) or len(values) < 2:
        raise UserError(
            f"{path}: label values must be 0 (background), 1, 2, ... without a gap, found {sorted(values)}."
        )
    return tuple(values[value] for value in sorted(values)), ignore


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
    grouped = group(scans, has_channel_suffix(scans, masks), None)
    refuse_orphans(masks, grouped)
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


# Left atrium: the community's HDF5 files, and the challenge's patient folders


def _la_benchmark(source: Path, folder: Path, patients: Sequence[Path]) -> Source:
    cases = {patient.name: Case((patient / _H5,), patient / _H5) for patient in patients}
    files = [path for name in ("train.list", "test.list") for path in (folder / name, source / name) if path.is_file()]
    lists = {path.stem: _read_list(path, cases) for path in reversed(files)}
    test = {"test": lists["test"]} if "test" in lists else {}
    if both := sorted(set(lists.get("train", ())) & set(test.get("test", ()))):
        raise UserError(f"{files[0]}: case '{both[0]}' is in both train.list and test.list: a leak. List it once.")
    rest = tuple(sorted(cases.keys() - set(test.get("test", ()))))
    return Source(
        name=source.resolve().name,
        root=source,
        layout="la_benchmark",
        channels=("MRI",),
        labels=("background", "left_atrium"),
        cases=cases,
        order=lists.get("train", rest),
        lists=test,
        files=tuple(dict.fromkeys(files)),
    )


def _la_challenge(source: Path, patients: Sequence[Path]) -> Source:
    cases = {}
    for patient in patients:
        image, label = (patient / name for name in _NRRD)
        if not image.is_file():
            raise UserError(f"{image}: is missing beside {label.name}. Restore it, or remove the folder.")
        cases[patient.name] = Case((image,), label if label.is_file() else None)
    return Source(
        name=source.resolve().name,
        root=source,
        layout="la_challenge",
        channels=("MRI",),
        labels=("background", "left_atrium"),
        cases=cases,
        order=tuple(sorted(cases)),
        label_map={255: 1},
        every_mask_promised=True,
    )


def _folders_with(folder: Path, names: Collection[str]) -> list[Path]:
    if not folder.is_dir():
        return []
    return [entry for entry in entries(folder) if entry.is_dir() and any((entry / name).is_file() for name in names)]


def _holds_slices(folder: Path) -> bool:
    """Whether a DICOM series lies in the folder itself, not in folders below."""
    return is_volume(folder) and not any(is_volume(entry) for entry in entries(folder) if entry.is_dir())


def _read_list(path: Path, cases: Collection[str]) -> tuple[str, ...]:
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    names = [name for name in names if name]
    for name, count in Counter(names).items():
        if name not in cases:
            raise UserError(
                f"{path}: case '{name}' is listed, but there is no folder {name} with {_H5}. Restore it or take it out."
            )
        if count > 1:
            raise UserError(f"{path}: case '{name}' is listed {count} times. List it once.")
    return tuple(names)
