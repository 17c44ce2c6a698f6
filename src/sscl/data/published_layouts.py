"""The data sets of the literature as they are published: left atrium, NIH Pancreas-CT, KiTS19. See docs/data.md."""

import logging
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from sscl.core.errors import UserError
from sscl.core.files import read_text
from sscl.data.matching import entries, some
from sscl.data.source import Case, Source
from sscl.volumes.files import is_volume

_H5 = "mri_norm2.h5"
_NRRD = ("lgemri.nrrd", "laendo.nrrd")
_KITS = ("imaging.nii.gz", "segmentation.nii.gz")
_PANCREAS = re.compile(r"PANCREAS_\d{4}")
_PANCREAS_LABEL = re.compile(r"label(\d{4})\.nii(\.gz)?")

SCANS_OF_FOLDERS = (_H5, _NRRD[0], _KITS[0])
"""The file of the scan in a folder that is named by its case."""
MASKS_OF_FOLDERS = (_NRRD[1], _KITS[1])
"""The file of the mask beside it, where it is a file of its own."""

logger = logging.getLogger("sscl")


def published(source: Path) -> Source | None:
    """The folder as one of these data sets; None if it is none of them.

    Raises:
        UserError: it is one, but files are missing or contradict each other.
    """
    return _left_atrium(source) or _pancreas_ct(source) or _kits19(source)


def folders_with(folder: Path, names: Collection[str]) -> list[Path]:
    """The folders in `folder` that hold a file of one of these names. Where there are some, others that hold nothing or
    another volume are told: the file may have another name.
    """
    inside = [entry for entry in entries(folder) if entry.is_dir()] if folder.is_dir() else []
    found = [entry for entry in inside if any((entry / name).is_file() for name in names)]
    others = [entry for entry in inside if entry not in found] if found else []
    if odd := [other.name for other in others if _volumes(other) or not entries(other)]:
        logger.warning(
            "%s: no %s in %s, hence not used. If a scan lies there, give its file that name.",
            folder, " or ".join(names), some(odd),
        )  # fmt: skip
    return found


def _volumes(folder: Path) -> list[str]:
    """The names of the volumes in a folder that are files."""
    return [entry.name for entry in entries(folder) if entry.is_file() and is_volume(entry)]


# Left atrium: the community's HDF5 files, and the challenge's patient folders


def _left_atrium(source: Path) -> Source | None:
    for folder in (source, source / "2018LA_Seg_Training Set"):
        if patients := folders_with(folder, (_H5,)):
            return _la_benchmark(source, folder, patients)
        if patients := folders_with(folder, _NRRD):
            return _la_challenge(source, folder, patients)
    return None


def _la_benchmark(source: Path, folder: Path, patients: Sequence[Path]) -> Source:
    cases = {patient.name: Case((patient / _H5,), patient / _H5) for patient in patients}
    return _with_lists(source, folder, cases, "la_benchmark", {})


def _la_challenge(source: Path, folder: Path, patients: Sequence[Path]) -> Source:
    cases = {patient.name: _pair(patient, _NRRD) for patient in patients}
    return _with_lists(source, folder, cases, "la_challenge", {255: 1})


def _with_lists(
    source: Path, folder: Path, cases: Mapping[str, Case], layout: str, label_map: Mapping[int, int]
) -> Source:
    """With train.list and test.list, where they lie beside the patients' folders or above them."""
    files = [path for name in ("train.list", "test.list") for path in (folder / name, source / name) if path.is_file()]
    lists = {path.stem: _read_list(path, cases) for path in reversed(files)}
    test = {"test": lists["test"]} if "test" in lists else {}
    if both := sorted(set(lists.get("train", ())) & set(test.get("test", ()))):
        raise UserError(f"{files[0]}: case '{both[0]}' is in both train.list and test.list: a leak. List it once.")
    rest = tuple(sorted(cases.keys() - set(test.get("test", ()))))
    return Source(
        name=source.resolve().name,
        root=source,
        layout=layout,
        channels=("MRI",),
        labels=("background", "left_atrium"),
        cases=cases,
        order=lists.get("train", rest),
        lists=test,
        label_map=label_map,
        every_mask_promised=layout == "la_challenge",
        files=tuple(dict.fromkeys(files)),
    )


def _read_list(path: Path, cases: Collection[str]) -> tuple[str, ...]:
    names = [line.strip() for line in read_text(path).splitlines()]
    names = [name for name in names if name]
    for name, count in Counter(names).items():
        if name not in cases:
            raise UserError(
                f"{path}: case '{name}' is listed, but no folder {name} holds a scan. Restore it or take it out."
            )
        if count > 1:
            raise UserError(f"{path}: case '{name}' is listed {count} times. List it once.")
    return tuple(names)


# NIH Pancreas-CT: DICOM series and NIfTI masks, as The Cancer Imaging Archive hands them out


def _pancreas_ct(source: Path) -> Source | None:
    """Folders PANCREAS_0001, ... with one series each, and label0001.nii.gz, ... in the source or in a folder
    of it that has "label" in its name.

    The array of such a mask runs left, posterior, superior, which is the order of its scan's columns, rows and slices,
    whatever its header says: hence `mask_axes`. That is inferred; the evidence is in docs/data.md.
    """
    above = [source, source / "Pancreas-CT", *sorted(source.glob("manifest-*/Pancreas-CT"))]
    folder = next((folder for folder in above if _pancreas_folders(folder)), None)
    if folder is None:
        return None
    scans = {path.name: path for path in _pancreas_folders(folder)}
    alike = [path.name for path in entries(folder) if path.is_dir() and path.name.lower().startswith("pancreas_")]
    if odd := [name for name in alike if name not in scans]:
        logger.warning("%s: not named as PANCREAS_0001, hence not used: %s. Rename them.", folder, some(odd))
    masks = _pancreas_labels(list(dict.fromkeys((source, folder))))
    if not masks:
        raise UserError(
            f"{source}: {len(scans)} folders PANCREAS_..., but no mask. Put the archive's label0001.nii.gz, ... into a "
            "folder 'labels' there."
        )
    if orphans := sorted(masks.keys() - scans.keys()):
        logger.warning("%d masks without a scan are not used: %s", len(orphans), ", ".join(orphans))
    return Source(
        name="Pancreas-CT",
        root=source,
        layout="pancreas_ct",
        channels=("CT",),
        labels=("background", "pancreas"),
        cases={name: Case((path,), masks.get(name)) for name, path in scans.items()},
        order=tuple(sorted(scans)),
        mask_axes="LPS",
    )


def _pancreas_folders(folder: Path) -> list[Path]:
    found = entries(folder) if folder.is_dir() else []
    return [entry for entry in found if entry.is_dir() and _PANCREAS.fullmatch(entry.name)]


def _pancreas_labels(folders: Sequence[Path]) -> dict[str, Path]:
    """Case to mask, of files in these folders and in those folders of them whose name says "label"."""
    named = [entry for folder in folders for entry in entries(folder) if "label" in entry.name.lower()]
    files = [path for entry in named for path in (entries(entry) if entry.is_dir() else [entry])]
    masks: dict[str, Path] = {}
    if odd := [path.name for path in files if is_volume(path) and not _PANCREAS_LABEL.fullmatch(path.name)]:
        logger.warning("masks that are not named as label0001.nii.gz, hence not used: %s. Rename them.", some(odd))
    for path in files:
        if match := _PANCREAS_LABEL.fullmatch(path.name):
            case = f"PANCREAS_{match[1]}"
            if case in masks:
                raise UserError(f"{path}: duplicate: {masks[case]} is a mask of case '{case}' too. Keep one.")
            masks[case] = path
    return masks


# KiTS19: a folder a case


def _kits19(source: Path) -> Source | None:
    """case_00000/imaging.nii.gz and segmentation.nii.gz, which the challenge's test cases lack."""
    for folder in (source, source / "data"):
        if patients := folders_with(folder, _KITS):
            cases = {patient.name: _pair(patient, _KITS) for patient in patients}
            return Source(
                name="KiTS19",
                root=source,
                layout="kits19",
                channels=("CT",),
                labels=("background", "kidney", "tumour"),
                cases=cases,
                order=tuple(sorted(cases)),
            )
    return None


def _pair(patient: Path, names: tuple[str, str]) -> Case:
    """The scan and the mask, which may be missing."""
    image, label = (patient / name for name in names)
    if not image.is_file():
        raise UserError(f"{image}: is missing beside {label.name}. Restore it, or remove the folder.")
    if label.is_file():
        return Case((image,), label)
    if others := [name for name in _volumes(patient) if name != image.name]:
        logger.warning("%s: no %s; not read: %s. Rename it if it is the mask.", patient, label.name, some(others))
    return Case((image,), None)
