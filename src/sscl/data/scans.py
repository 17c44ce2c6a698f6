"""Scans to predict: whatever was named on the command line, by case name."""

from pathlib import Path

from sscl.core.errors import UserError
from sscl.data.matching import entries, group, has_channel_suffix, volumes_in
from sscl.volumes.files import case_stem, is_volume

IN_PATIENT_FOLDER = ("mri_norm2.h5", "lgemri.nrrd")
"""Files that every patient folder of a layout has under one name: the case is called like the folder."""


def scans_in(path: Path, num_channels: int) -> dict[str, tuple[Path, ...]]:
    """Case name to its files, one a channel or one with all: from a file, a DICOM folder, or a folder of these.

    Raises:
        UserError: nothing there, or files that do not make cases of `num_channels` channels.
    """
    if not path.exists():
        raise UserError(f"{path}: does not exist. Name a scan or a folder of scans.")
    if path.is_file() and path.name in IN_PATIENT_FOLDER:
        return {path.resolve().parent.name: (path,)}
    if path.is_file() or is_volume(path):
        return {case_stem(path): (path,)}
    for folder in (path, *(entry for entry in entries(path) if entry.is_dir())):
        patients = _patients(folder)
        if patients:
            return patients
    volumes = volumes_in(path)
    if not volumes:
        raise UserError(f"{path}: no scan found. Known kinds: .nii, .nii.gz, .nrrd, .h5, folders of DICOM files.")
    return group(volumes, has_channel_suffix(volumes, ()), num_channels)


def _patients(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Patient folders of the left-atrium layouts."""
    return {
        entry.name: (entry / name,)
        for entry in entries(folder)
        for name in IN_PATIENT_FOLDER
        if entry.is_dir() and (entry / name).is_file()
    }
