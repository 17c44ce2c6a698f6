"""A small sound data set, and 82 that are broken or awkward in one way each: what a user's folder can be.

An entry spoils a copy of the sound set (8 labelled and 4 unlabelled scans of 40 x 40 x 32 voxels, 1 x 1 x 2 mm, in
nnU-Net's layout) or, for the imports, makes a folder from nothing. It says what has to happen: see `Must`.
`python tests/catalogue/bad_inputs.py FOLDER` makes all of them to look at.
"""

import gzip
import io
import json
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import nibabel
import nrrd
import numpy as np
import pydicom
from numpy.typing import NDArray

Array = NDArray[Any]
Must = Literal["refuse", "warn", "work", "same"]
"""refuse: exit code 2, one message with a file of `files` and a word of `words`. warn: go on and say so with one of
`words`, or refuse. work: exit code 0. same: and what training reads is what the sound set gives.
"""

SHAPE, MM, ORIGIN = (40, 40, 32), (1.0, 1.0, 2.0), (-12.0, 7.0, 30.0)
LABELLED, UNLABELLED = [f"scan{k}" for k in range(8)], [f"more{k}" for k in range(4)]
IMAGE, LABEL = "imagesTr/scan3_0000.nii.gz", "labelsTr/scan3.nii.gz"
GRID = np.array([[1.0, 0, 0, ORIGIN[0]], [0, 1, 0, ORIGIN[1]], [0, 0, 2, ORIGIN[2]], [0, 0, 0, 1]])
CANARY = "CANARY"
"""What the hostile files would make, if one of them were run."""


@dataclass(frozen=True)
class Entry:
    """One way to be bad."""

    name: str
    must: Must
    files: tuple[str, ...]
    words: tuple[str, ...]
    make: Callable[[Path], None]
    raw: bool
    """Made from nothing, not from the sound set."""


CATALOGUE: dict[str, Entry] = {}


def entry(
    name: str, must: Must, files: str | Sequence[str] = (), words: str = "", raw: bool = False
) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Put a function that spoils a folder into the catalogue; `words` apart by spaces, _ for a space within one."""
    files = (files,) if isinstance(files, str) else tuple(files)

    def put(make: Callable[[Path], None]) -> Callable[[Path], None]:
        assert name not in CATALOGUE
        CATALOGUE[name] = Entry(name, must, files, tuple(w.replace("_", " ") for w in words.split()), make, raw)
        return make

    return put


# The sound set


@cache
def volume(seed: int) -> tuple[Array, Array]:
    """Read only: a body, in it the organ (an egg) and something as bright that is none; noise. int16 and uint8."""
    rng = np.random.default_rng(seed)
    x, y, z = np.indices(SHAPE)
    cx, cy, cz = np.array([24, 17, 14]) + rng.uniform(-2, 2, 3)
    rx, ry, rz = np.array([7, 10, 6]) * rng.uniform(0.9, 1.1, 3)
    organ = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 < 1
    body = ((x - 20) / 19) ** 2 + ((y - 20) / 19) ** 2 + ((z - 16) / 15) ** 2 < 1
    other = (abs(x - 9) < 3) & (abs(y - 28) < 3) & (abs(z - 20) < 4)
    values = 200 + 120 * body + 300 * (organ | other) + rng.normal(0, 60, SHAPE)
    image, label = values.astype(np.int16), organ.astype(np.uint8)
    image.flags.writeable = label.flags.writeable = False
    return image, label


def nifti(array: Array, affine: Array = GRID, codes: tuple[int, int] = (1, 1)) -> nibabel.Nifti1Image:
    image = nibabel.Nifti1Image(array, affine)
    image.set_qform(affine if codes[0] else None, codes[0])
    image.set_sform(affine if codes[1] else None, codes[1])
    image.header.set_xyzt_units("mm")
    return image


def put(path: Path, content: nibabel.Nifti1Image | bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content.encode() if isinstance(content, str) else content
    path.write_bytes(raw if isinstance(raw, bytes) else packed(raw, path.suffix))


def packed(image: nibabel.Nifti1Image, suffix: str = ".gz") -> bytes:
    raw: bytes = image.to_bytes()
    return raw if suffix == ".nii" else gzip.compress(raw, 6, mtime=0)


def describe(root: Path, **changes: Any) -> None:
    facts = {
        "name": "eggs",
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "egg": 1},
        "numTraining": len(LABELLED),
        "file_ending": ".nii.gz",
    }
    put(root / "dataset.json", json.dumps(facts | changes, indent=2))


def divide(root: Path, train: Sequence[str] = LABELLED[:6], unlabelled: Sequence[str] = UNLABELLED) -> None:
    fold = {"train": list(train), "val": LABELLED[6:], "unlabelled": list(unlabelled)}
    put(root / "splits_final.json", json.dumps([fold], indent=2))


@cache
def sound_files() -> dict[str, bytes]:
    files = {}
    for seed, case in enumerate((*LABELLED, *UNLABELLED)):
        image, label = volume(seed)
        files[f"{'imagesTr' if case in LABELLED else 'imagesTs'}/{case}_0000.nii.gz"] = packed(nifti(image))
        if case in LABELLED:
            files[f"labelsTr/{case}.nii.gz"] = packed(nifti(label))
    return files


def sound(root: Path) -> None:
    for name, content in sound_files().items():
        put(root / name, content)
    describe(root)
    divide(root)


IMAGE_3, LABEL_3 = volume(3)


def turned(degrees: float, axis: int = 2, shear: float = 0.0) -> Array:
    """The grid with its axes turned, and leaning."""
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    first, second = (k for k in range(3) if k != axis)
    turn, lean = np.eye(4), np.eye(4)
    turn[first, first] = turn[second, second] = cosine
    turn[first, second], turn[second, first] = -sine, sine
    lean[0, 1] = shear
    affine = turn @ lean @ np.diag([*MM, 1.0])
    affine[:3, 3] = ORIGIN
    return affine


def in_order(array: Array, codes: str) -> nibabel.Nifti1Image:
    """The same voxels in the same places, in another order of the axes."""
    now, wanted = nibabel.io_orientation(GRID), nibabel.orientations.axcodes2ornt(codes)
    image = nifti(array).as_reoriented(nibabel.orientations.ornt_transform(now, wanted))
    return nifti(np.asarray(image.dataobj), image.affine)


def with_header(array: Array, *edits: tuple[int, str, Any]) -> bytes:
    """A NIfTI with values packed over bytes of its header: (offset, struct format, value or values)."""
    raw = bytearray(nifti(array).to_bytes())
    for offset, form, values in edits:
        struct.pack_into(form, raw, offset, *(values if isinstance(values, tuple) else (values,)))
    return gzip.compress(bytes(raw), 6, mtime=0)


def hostile(target: Path) -> Any:
    """An object that makes the folder `target` when it is unpickled."""

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(target),)

    return Hostile()


# D: data sets as they are published


def challenge(root: Path) -> None:
    """Left atrium: a folder a patient, with 0 and 255 in the mask."""
    header = {"space": "left-posterior-superior", "space directions": np.diag([0.625] * 3), "space origin": [0, 0, 0]}
    for seed in range(3):
        image, label = volume(seed)
        folder = root / f"PAT{seed}"
        folder.mkdir(parents=True)
        nrrd.write(str(folder / "lgemri.nrrd"), np.clip(image // 4, 0, 255).astype(np.uint8), header)
        nrrd.write(str(folder / "laendo.nrrd"), label * np.uint8(255), header)


def kidneys(root: Path, wider: int | None = None) -> None:
    """KiTS19: slices are the first axis; 1 kidney, 2 tumour."""
    affine = np.array([[0, 0, -0.78, 0], [0, -0.78, 0, 0], [-3.0, 0, 0, 0], [0, 0, 0, 1]])
    for seed in range(3):
        image, label = (array.T for array in volume(seed))
        label = np.where((label > 0) & (np.indices(label.shape)[0] > 15), 2, label).astype(np.uint8)
        extra = [(0, 0), (0, 4 if seed == wider else 0), (0, 0)]
        put(root / f"case_{seed:05d}/imaging.nii.gz", nifti(np.pad(image.astype(np.float32) - 1200, extra), affine))
        put(root / f"case_{seed:05d}/segmentation.nii.gz", nifti(np.pad(label, extra), affine))


def slices(folder: Path, array: Array, uid: str, leave_out: int | None = None, backwards: bool = False) -> None:
    """A CT series, a file a slice."""
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(array.shape[2]):
        if k == leave_out:
            continue
        item = pydicom.Dataset()
        item.file_meta = pydicom.dataset.FileMetaDataset()
        item.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        item.file_meta.MediaStorageSOPClassUID = item.SOPClassUID = pydicom.uid.CTImageStorage
        item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID = f"{uid}.{k + 1}"
        item.SeriesInstanceUID, item.Modality, item.PatientID = uid, "CT", f"patient of {uid}"
        item.InstanceNumber = array.shape[2] - k if backwards else k + 1
        item.ImagePositionPatient, item.ImageOrientationPatient = [0, 0, 2 * k], [1, 0, 0, 0, 1, 0]
        item.PixelSpacing, item.Columns, item.Rows = [1, 1], array.shape[0], array.shape[1]
        item.SamplesPerPixel, item.PhotometricInterpretation, item.PixelRepresentation = 1, "MONOCHROME2", 1
        item.BitsAllocated, item.BitsStored, item.HighBit = 16, 16, 15
        item.RescaleSlope, item.RescaleIntercept = 1, -1024
        item.PixelData = np.ascontiguousarray(array[:, :, k].T).astype("<i2").tobytes()
        item["PixelData"].VR = "OW"
        item.save_as(folder / f"{uid}-{k:03d}.dcm", enforce_file_format=True)


def pancreas(root: Path, patients: int = 1, **how: Any) -> Path:
    """Pancreas-CT: a series and a mask a patient; the path of the first series."""
    for k in range(1, patients + 1):
        image, label = volume(k)
        slices(root / f"PANCREAS_{k:04d}/study/series", image, f"1.2.{k}", **how)
        put(root / f"labels/label{k:04d}.nii.gz", nifti(label, np.diag([-1.0, -1.0, 2.0, 1.0])))
    return root / "PANCREAS_0001/study/series"


entry("D00", "work", raw=True)(challenge)
entry("D00k", "work", raw=True)(kidneys)
entry("D18", "warn", "case_00001", "shape size", raw=True)(lambda root: kidneys(root, wider=1))
entry("D04", "work", raw=True)(lambda root: void(pancreas(root, backwards=True)))
entry("D01", "refuse", "PANCREAS_0001", "missing gap", raw=True)(lambda root: void(pancreas(root, leave_out=12)))
entry("D00p", "work", raw=True)(lambda root: void(pancreas(root, patients=2)))


def void(_: object) -> None:
    """For functions of which only what they do is wanted."""


@entry("D03", "refuse", "PANCREAS_0001", "series", raw=True)
def two_series_in_one_folder(root: Path) -> None:
    slices(pancreas(root), volume(60)[0][:, :, :20], "1.2.60")


@entry("D09", "work", raw=True)
def other_files_among_the_slices(root: Path) -> None:
    folder = pancreas(root)
    put(folder / "readme.txt", "about the scan")
    put(folder / "preview.jpg", b"\xff\xd8\xff\xe0 a picture")
    put(folder / "DICOMDIR", bytes(200))


@entry("D14", "refuse", "PAT1", "laendo label missing", raw=True)
def a_patient_without_a_mask(root: Path) -> None:
    challenge(root)
    (root / "PAT1/laendo.nrrd").unlink()


# F: files


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    put(path, content[: int(share * len(content))])


entry("F01", "refuse", IMAGE, "truncated corrupt")(lambda root: cut(root / IMAGE, 0.6))
entry("F06", "refuse", IMAGE, "empty")(lambda root: put(root / IMAGE, b""))
entry("F07", "refuse", IMAGE, "NIfTI web_page")(
    lambda root: put(root / IMAGE, "<!DOCTYPE html><title>Quota exceeded</title>")
)
entry("F04", "warn", IMAGE, "gzip")(lambda root: put(root / IMAGE, nifti(IMAGE_3).to_bytes()))
entry("F14", "refuse", "imagesTr/scan8_0000.nii.gz", "folder")(
    lambda root: (root / "imagesTr/scan8_0000.nii.gz").mkdir()
)
entry("F19", "refuse", IMAGE, "ermission")(lambda root: (root / IMAGE).chmod(0))
entry("F09", "refuse", IMAGE, "bytes memory truncated")(
    lambda root: put(root / IMAGE, with_header(np.ones((8, 8, 8), np.int16), (40, "<4h", (3, 30000, 30000, 3000))))
)


@entry("F02", "refuse", IMAGE, "corrupt CRC")
def bytes_in_the_middle_changed(root: Path) -> None:
    content = bytearray((root / IMAGE).read_bytes())
    middle = slice(len(content) // 2, len(content) // 2 + 64)
    content[middle] = bytes(byte ^ 0xA5 for byte in content[middle])
    put(root / IMAGE, bytes(content))


@entry("F05", "refuse", "imagesTr/scan3_0000.nii", "truncated bytes")
def a_plain_file_cut_off(root: Path) -> None:
    for path in sorted(root.rglob("*.nii.gz")):
        put(path.with_suffix(""), gzip.decompress(path.read_bytes()))
        path.unlink()
    describe(root, file_ending=".nii")
    cut(root / "imagesTr/scan3_0000.nii", 0.7)


@entry("F10", "refuse", IMAGE, "size memory shape")
def a_small_file_that_unpacks_to_256_mb(root: Path) -> None:
    header = gzip.decompress(with_header(np.zeros((1, 1, 1), np.int16), (40, "<4h", (3, 1024, 1024, 128))))[:352]
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:
        file.write(header)
        for _ in range(256):
            file.write(bytes(1 << 20))
    put(root / IMAGE, packed.getvalue())


@entry("F17", "same")
def every_image_is_a_link(root: Path) -> None:
    (root / "elsewhere").mkdir()
    for path in sorted(root.rglob("*.nii.gz")):
        path.rename(root / "elsewhere" / path.name)
        path.symlink_to(Path("..") / "elsewhere" / path.name)


@entry("F18", "refuse", IMAGE, "link")
def a_link_to_nothing(root: Path) -> None:
    (root / IMAGE).unlink()
    (root / IMAGE).symlink_to("nothing.nii.gz")


# G: geometry


def both(root: Path, change: Callable[[Array], nibabel.Nifti1Image]) -> None:
    put(root / IMAGE, change(IMAGE_3))
    put(root / LABEL, change(LABEL_3))


def moved(by: Sequence[float]) -> Array:
    affine = GRID.copy()
    affine[:3, 3] += by
    return affine


def noisy() -> Array:
    affine = GRID.copy()
    affine[:3] += np.random.default_rng(0).uniform(-1e-5, 1e-5, (3, 4))
    return affine


AROUND = tuple(
    slice(int(middle) - half, int(middle) + half) for middle, half in zip((24, 17, 14), (7, 6, 4), strict=True)
)

entry("G01", "refuse", LABEL, "origin")(lambda root: put(root / LABEL, nifti(LABEL_3, moved((10, 0, 0)))))
entry("G03", "same")(lambda root: put(root / LABEL, in_order(LABEL_3, "LPS")))
entry("G04", "refuse", LABEL, "direction geometry")(lambda root: put(root / LABEL, nifti(LABEL_3, turned(90))))
entry("G05", "refuse", LABEL, "spacing")(lambda root: put(root / LABEL, nifti(LABEL_3, GRID @ np.diag([1, 1, 0.5, 1]))))
entry("G06", "refuse", LABEL, "shape")(lambda root: put(root / LABEL, nifti(LABEL_3[:, :, :-1])))
entry("G09", "warn", IMAGE, "orientation")(lambda root: both(root, lambda array: nifti(array, GRID, (0, 0))))
entry("G10", "work")(lambda root: both(root, lambda array: nifti(array, turned(20, axis=0))))
entry("G11", "refuse", IMAGE, "sheared orthogonal")(
    lambda root: both(root, lambda array: nifti(array, turned(10, shear=0.15), (0, 1)))
)
entry("G12", "refuse", IMAGE, "spacing")(
    lambda root: put(root / IMAGE, with_header(IMAGE_3, (88, "<f", 0.0), (312, "<4f", (0.0, 0.0, 0.0, 0.0))))
)
entry("G13", "refuse", IMAGE, "NaN")(lambda root: put(root / IMAGE, with_header(IMAGE_3, (280, "<f", np.nan))))
entry("G17", "same")(lambda root: put(root / LABEL, nifti(LABEL_3, noisy())))
entry("G18", "refuse", IMAGE, "slice 2-D")(lambda root: both(root, lambda array: nifti(array[:, :, 14:15])))
entry("G19", "work")(
    lambda root: both(root, lambda array: nifti(array[AROUND], moved(MM * np.array([part.start for part in AROUND]))))
)
entry("G21", "same")(lambda root: put(root / IMAGE, nifti(IMAGE_3[..., None])))
entry("G22", "refuse", IMAGE, "4-D channels")(
    lambda root: put(root / IMAGE, nifti(np.stack([IMAGE_3, IMAGE_3 + 2, IMAGE_3 + 4], -1)))
)
entry("G26", "refuse", IMAGE, "2-D")(lambda root: put(root / IMAGE, nifti(IMAGE_3[:, :, 14])))


@entry("G07", "refuse", IMAGE, "qform sform")
def qform_and_sform_disagree(root: Path) -> None:
    image = nifti(IMAGE_3)
    image.set_sform(GRID @ np.diag([-1, 1, 1, 1]), 2)
    put(root / IMAGE, image)


@entry("G15", "work")
def thick_slices_everywhere(root: Path) -> None:
    for path in sorted(root.rglob("*.nii.gz")):
        put(path, nifti(np.asarray(nibabel.load(path).dataobj), np.diag([0.5, 0.5, 6, 1])))


@entry("G27", "same")
def axes_in_several_orders(root: Path) -> None:
    for seed, codes in ((1, "LPS"), (2, "PIR"), (3, "ASL")):
        for name, array in zip(("imagesTr/scan{}_0000", "labelsTr/scan{}"), volume(seed), strict=True):
            put(root / f"{name.format(seed)}.nii.gz", in_order(array, codes))


# L: masks


def masks(root: Path, change: Callable[[Array], Array]) -> None:
    for seed, case in enumerate(LABELLED):
        put(root / f"labelsTr/{case}.nii.gz", nifti(change(volume(seed)[1])))


def mask(root: Path, change: Callable[[Array], Array]) -> None:
    put(root / LABEL, nifti(change(LABEL_3.copy())))


def at(array: Array, voxel: tuple[int, int, int], value: float) -> Array:
    array[voxel] = value
    return array


entry("L02", "refuse", LABEL, "not_integers")(
    lambda root: mask(root, lambda label: (label + np.roll(label, 1, 0)).astype(np.float32) / 2)
)
entry("L03", "refuse", LABEL, "value_4")(lambda root: mask(root, lambda label: at(label, (24, 17, 14), 4)))
entry("L04", "refuse", "labelsTr/scan0.nii.gz", "255")(lambda root: masks(root, lambda label: label * np.uint8(255)))
entry("L06", "warn", LABEL, "empty")(lambda root: mask(root, np.zeros_like))
entry("L07", "refuse", "labelsTr", "no_foreground")(lambda root: masks(root, np.zeros_like))
entry("L08", "warn", LABEL, "no_background")(lambda root: mask(root, np.ones_like))
entry("L10", "refuse", LABEL, "NaN")(
    lambda root: mask(root, lambda label: at(label.astype(np.float32), (0, 0, 0), np.nan))
)
entry("L13", "refuse", LABEL, "4-D one-hot")(lambda root: mask(root, lambda label: np.stack([1 - label, label], -1)))
entry("L15", "work")(lambda root: mask(root, lambda label: at(label * np.uint8(0), (24, 17, 14), 1)))
entry("L17", "refuse", LABEL, "label_value")(lambda root: put(root / LABEL, (root / IMAGE).read_bytes()))


# N: names


def renamed(root: Path, case: str, to: str) -> None:
    (root / IMAGE).rename(root / f"imagesTr/{to}_0000.nii.gz")
    (root / LABEL).rename(root / f"labelsTr/{to}.nii.gz")
    divide(root, [to if name == case else name for name in LABELLED[:6]])


entry("N01", "refuse", "scan3", "mask")(lambda root: (root / LABEL).unlink())
entry("N02", "refuse", "labelsTr/scan99.nii.gz", "without_an_image")(
    lambda root: put(root / "labelsTr/scan99.nii.gz", nifti(LABEL_3))
)
entry("N04", "refuse", "scan3", "duplicate ambiguous")(
    lambda root: put(root / "imagesTr/scan3_0000.nii", nifti(IMAGE_3 + np.int16(9)))
)
entry("N05", "same")(lambda root: renamed(root, "scan3", "scan 3 again"))
entry("X06", "same")(lambda root: renamed(root, "scan3", "scan<img src=x onerror=alert(1)>"))
entry("N07", "refuse", "imagesTr/scan3.nii.gz", "_0000 channel")(
    lambda root: void((root / IMAGE).rename(root / "imagesTr/scan3.nii.gz"))
)
entry("N10", "refuse", "dataset.json", "JSON line")(
    lambda root: put(root / "dataset.json", (root / "dataset.json").read_text().rstrip()[:-2] + ",\n}")
)
entry("N12", "refuse", "dataset.json", "numTraining")(lambda root: describe(root, numTraining=9))
entry("N15", "warn", "dataset.json", "labels")(lambda root: describe(root, labels={"0": "background", "1": "egg"}))
entry("N18", "warn", "imagesTr/scan3_0000.NII.GZ", "ending")(
    lambda root: void((root / IMAGE).rename(root / "imagesTr/scan3_0000.NII.GZ"))
)


@entry("N03", "warn", ("scan3", "SCAN3"), "differ")
def names_that_differ_in_case(root: Path) -> None:
    image, label = volume(20)
    put(root / "imagesTr/SCAN3_0000.nii.gz", nifti(image))
    put(root / "labelsTr/SCAN3.nii.gz", nifti(label))
    describe(root, numTraining=9)


@entry("N08", "refuse", "scan3", "channels")
def a_gap_in_the_channels(root: Path) -> None:
    for path in sorted(root.glob("images*/*_0000.nii.gz")):
        second = np.asarray(nibabel.load(path).dataobj) // 2
        number = "0002" if "scan3" in path.name else "0001"
        put(path.with_name(path.name.replace("_0000", f"_{number}")), nifti(second.astype(np.int16)))
    describe(root, channel_names={"0": "T1", "1": "T2"})


@entry("N09", "same")
def litter_of_other_systems(root: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        put(root / folder / ".DS_Store", b"\0\0\0\1Bud1")
        put(root / folder / "Thumbs.db", b"\xd0\xcf\x11\xe0")
    put(root / "imagesTr/._scan3_0000.nii.gz", b"\0\5\x16\7 Mac OS X")
    put(root / "labelsTr/._scan3.nii.gz", b"\0\5\x16\7 Mac OS X")


@entry("N16", "refuse", "imagesTr", "empty")
def folders_without_files(root: Path) -> None:
    for path in sorted(root.glob("*Tr/*")):
        path.unlink()
    describe(root, numTraining=0)


@entry("N22", "same")
def nothing_may_be_written(root: Path) -> None:
    for path in sorted((root, *root.rglob("*")), reverse=True):
        path.chmod(0o555 if path.is_dir() else 0o444)


# S: splits and leaks


entry("S03", "refuse", ("more2", "scan6"), "leak")(
    lambda root: put(root / "imagesTs/more2_0000.nii.gz", (root / "imagesTr/scan6_0000.nii.gz").read_bytes())
)
entry("S05", "refuse", ("splits_final.json",), "unknown")(lambda root: divide(root, [*LABELLED[:6], "scan55"]))
entry("S06", "refuse", ("splits_final.json", "scan6"), "both leak")(lambda root: divide(root, LABELLED[:7]))


@entry("S01", "refuse", ("scan1", "scan7"), "leak")
def one_scan_in_train_and_val(root: Path) -> None:
    for name in ("imagesTr/scan{}_0000.nii.gz", "labelsTr/scan{}.nii.gz"):
        put(root / name.format(7), (root / name.format(1)).read_bytes())


@entry("S08", "same")
def json_as_windows_writes_it(root: Path) -> None:
    for name in ("dataset.json", "splits_final.json"):
        text = (root / name).read_text()
        put(root / name, b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())


@entry("S10", "warn", "imagesTs", "no_unlabelled")
def nothing_unlabelled(root: Path) -> None:
    for path in sorted((root / "imagesTs").iterdir()):
        path.unlink()
    divide(root, unlabelled=())


# V: intensities


def image(root: Path, change: Callable[[Array], Array], path: str = IMAGE, seed: int = 3) -> None:
    put(root / path, nifti(change(volume(seed)[0].astype(np.float32))))


def fifty(array: Array) -> Array:
    array.reshape(-1)[:: array.size // 50] = np.nan
    return array


entry("V01", "refuse", IMAGE, "NaN")(lambda root: image(root, fifty))
entry("V02", "refuse", IMAGE, "infinite")(lambda root: image(root, lambda array: at(array, (3, 3, 3), np.inf)))
entry("V03", "refuse", IMAGE, "constant")(lambda root: image(root, lambda array: np.full_like(array, 137)))
entry("V04", "refuse", IMAGE, "constant zero")(lambda root: image(root, np.zeros_like))
entry("V05", "warn", IMAGE, "outlier")(lambda root: image(root, lambda array: at(array, (1, 1, 1), 1e30)))
entry("V12", "refuse", "imagesTs/more1_0000.nii.gz", "NaN")(
    lambda root: image(root, fifty, "imagesTs/more1_0000.nii.gz", seed=9)
)


@entry("V10", "same")
def bytes_in_the_other_order(root: Path) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">i2"))
    big = nibabel.Nifti1Image(IMAGE_3, GRID, header)
    big.set_qform(GRID, 1)
    big.set_sform(GRID, 1)
    put(root / IMAGE, big)


# X: hostile files; each makes CANARY beside the folder if it is run


@entry("X01", "refuse", "model.pt", "unsafe", raw=True)
def a_checkpoint_that_runs_code(root: Path) -> None:
    root.mkdir()
    with zipfile.ZipFile(root / "model.pt", "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(hostile(root.parent / CANARY), protocol=2))
        file.writestr("archive/byteorder", "little")
        file.writestr("archive/version", "3\n")


@entry("X02", "refuse", "model.zip", "unsafe outside", raw=True)
def an_archive_that_leads_outside(root: Path) -> None:
    root.mkdir()
    with zipfile.ZipFile(root / "model.zip", "w") as file:
        file.writestr("model/model.json", "{}")
        file.writestr(f"../{CANARY}", "written outside")
        file.writestr(str(root.parent.absolute() / CANARY), "written outside")


@entry("X04", "refuse", "config.yaml", "YAML", raw=True)
def settings_that_run_code(root: Path) -> None:
    put(root / "config.yaml", f"title: a\nrows: !!python/object/apply:os.mkdir ['{root.parent / CANARY}']\n")


@entry("X05", "refuse", "scan3.npy", "unsafe", raw=True)
def an_array_of_objects(root: Path) -> None:
    root.mkdir()
    array = np.empty(1, object)
    array[0] = hostile(root.parent / CANARY)
    np.save(root / "scan3.npy", array, allow_pickle=True)


def make(entry: Entry, folder: Path) -> Path:
    """The folder, made."""
    if not entry.raw:
        sound(folder)
    entry.make(folder)
    return folder


if __name__ == "__main__":
    for one in CATALOGUE.values():
        print(make(one, Path(sys.argv[1]) / one.name))
