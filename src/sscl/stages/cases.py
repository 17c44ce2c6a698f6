"""The scans and masks of a source, in RAS+; for a `-literature` preset also cropped to their masks and written anew."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from sscl.core.errors import UserError
from sscl.core.plan import IGNORE, Plan, Spacing
from sscl.data.check import Pair
from sscl.data.mask_crop import MaskCrop, crop_to_mask
from sscl.data.preprocess import resample_label, resampled
from sscl.data.source import Case, Source
from sscl.data.split import Split
from sscl.stages.dataset import read_own_mask
from sscl.volumes.files import read_image, write_label
from sscl.volumes.geometry import to_ras
from sscl.volumes.nifti import write_nifti
from sscl.volumes.volume import Volume

logger = logging.getLogger("sscl")

CROPPED = "cropped"
"""The folder of DATASET that the crops lie in."""


def image_of(found: Source, case: str, spacing: Spacing | None) -> Volume:
    """spacing: the voxel size of files that hold none."""
    return to_ras(read_image(found.cases[case].images, len(found.channels), spacing))


def label_of(found: Source, case: str, image: Volume, spacing: Spacing | None) -> Volume:
    """The mask of a case that has one, on the grid of its scan where the layout says how they lie."""
    path = found.cases[case].label
    assert path is not None
    return to_ras(read_own_mask(path, lambda: image, found.label_map, found.mask_axes, spacing))


def pair_of(found: Source, case: str, image: Volume, spacing: Spacing | None) -> Pair:
    """A scan that has a mask, with the mask."""
    return Pair(image, label_of(found, case, image, spacing), found.labels, found.ignore_label)


def require_masks_to_crop(found: Source, split: Split, preset: str) -> None:
    """What a preset that crops to the mask needs: uncropped scans, and a mask for every one that is used.

    Raises:
        UserError: one of the two is not so.
    """
    if found.layout == "la_benchmark":
        raise UserError(f"{found.root}: mri_norm2.h5 is cropped already, as preset {preset} would. Use --preset la.")
    missing = [case for cases in split.lists().values() for case in cases if case not in found.masked]
    if missing:
        raise UserError(
            f"{found.root}: preset {preset} crops every scan to its mask, unlabelled and test cases too, and "
            f"'{missing[0]}' has none ({len(missing)} in all). Use the preset without -literature."
        )
    logger.warning(
        "preset %s crops every scan to its own mask, as the literature does: it opens the masks of unlabelled and test "
        "cases, and scores are optimistic, because a new scan has no mask to crop to.",
        preset,
    )


def crop_cases(folder: Path, found: Source, split: Split, plan: Plan, crop: MaskCrop) -> Source:
    """Write every case of the split on the plan's grid, cropped, to FOLDER/cropped/images and masks; these as a source.

    Raises:
        UserError: a case that cannot be read, or whose mask is empty.
    """
    root = folder.resolve() / CROPPED
    images, masks = root / "images", root / "masks"
    images.mkdir(parents=True)
    masks.mkdir()
    cases = {}
    for case in (case for listed in split.lists().values() for case in listed):
        scan = image_of(found, case, plan.spacing_if_missing_mm)
        pair = pair_of(found, case, scan, plan.spacing_if_missing_mm)
        try:
            image = resampled(scan, plan)
        except UserError as error:
            raise UserError(f"{found.cases[case].images[0]}: {error}") from None
        classes = resample_label(pair.label, plan).astype(np.int16)
        classes[classes == IGNORE] = plan.ignore_label or 0
        try:
            image, label = crop_to_mask(image, Volume(classes[None], image.affine), crop)
        except UserError as error:
            raise UserError(f"{found.cases[case].label}: {error}") from None
        files = tuple(images / f"{case}_{channel:04d}.nii.gz" for channel in range(len(image.array)))
        for file, channel in zip(files, image.array, strict=True):
            write_nifti(file, channel, Volume(image.array, image.affine))
        write_label(masks / f"{case}.nii.gz", label.array[0], label)
        cases[case] = Case(files, masks / f"{case}.nii.gz")
    logger.info("cropped %d cases to their masks", len(cases))
    return replace(found, root=root, cases=cases, label_map={}, mask_axes=None)
