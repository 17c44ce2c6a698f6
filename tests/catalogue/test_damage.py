"""Whatever bytes a file holds: it is read, or refused in one message that names it. No other exception gets out."""

import gzip
import random
from collections.abc import Callable
from pathlib import Path

import h5py
import nibabel
import nrrd
import numpy as np
import pydicom
import pytest

from sscl.core.errors import UserError
from sscl.volumes.files import read_image, read_label

SHAPE = (9, 8, 7)
VOXELS = np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16)
MM = (1.0, 1.0, 2.0)
LINES = [b"sizes: 3", b"dimension: 9", b"byte skip: -1", b"data file: /etc/passwd", b"space: none", b"\xff\xfe: x", b""]


def nifti(kind: type = nibabel.Nifti1Image) -> bytes:
    content: bytes = kind(VOXELS, np.diag([*MM, 1])).to_bytes()
    return content


def nrrd_file(folder: Path) -> bytes:
    nrrd.write(str(folder / "a.nrrd"), VOXELS, {"space": "LPS", "space directions": np.diag(MM)})
    return (folder / "a.nrrd").read_bytes()


def h5_file(folder: Path) -> bytes:
    with h5py.File(folder / "a.h5", "w") as file:
        file["image"], file["label"] = VOXELS.astype(np.float32), (VOXELS > 500).astype(np.uint8)
    return (folder / "a.h5").read_bytes()


def dicom_slice(path: Path, k: int) -> None:
    item = pydicom.Dataset()
    item.file_meta = pydicom.dataset.FileMetaDataset()
    item.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    item.file_meta.MediaStorageSOPClassUID = item.SOPClassUID = pydicom.uid.CTImageStorage
    item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID = f"1.2.{k + 1}"
    item.SeriesInstanceUID = "1.2"
    item.ImagePositionPatient, item.ImageOrientationPatient = [0, 0, 2 * k], [1, 0, 0, 0, 1, 0]
    item.PixelSpacing, item.Columns, item.Rows, item.SamplesPerPixel = [1, 1], SHAPE[0], SHAPE[1], 1
    item.PhotometricInterpretation, item.PixelRepresentation = "MONOCHROME2", 1
    item.BitsAllocated, item.BitsStored, item.HighBit, item.RescaleSlope = 16, 16, 15, 2
    item.PixelData = np.ascontiguousarray(VOXELS[:, :, k].T).tobytes()
    item["PixelData"].VR = "OW"
    item.save_as(path, enforce_file_format=True)


def changed(rng: random.Random, content: bytes, first: int, end: int) -> bytes:
    """Some bytes of content[first:end] overwritten, often by extremes; sometimes the end cut off."""
    raw = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(first, min(end, len(raw)))
        raw[at : at + rng.choice((1, 2, 4))] = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))])
    return bytes(raw[: rng.choice((len(raw), len(raw), len(raw), rng.randrange(len(raw))))])


def lines_changed(rng: random.Random, content: bytes) -> bytes:
    """The text header of an NRRD with a line gone, doubled, emptied or added."""
    header, data = content.split(b"\n\n", 1)
    lines = header.split(b"\n")
    at = rng.randrange(len(lines))
    key = lines[at].split(b":")[0]
    lines[at : at + 1] = rng.choice(
        [[], [lines[at]] * 2, [key + b": " + rng.choice([b"", b"nan", b"-1 5 5", b"none none none"])], LINES[: at + 1]]
    )
    return b"\n".join(lines) + b"\n\n" + data


def refusals(path: Path) -> list[str]:
    """The messages when it is read as a scan and as a mask."""
    messages = []
    readers: list[Callable[[], object]] = [lambda: read_image([path], 1, MM), lambda: read_label(path, MM)]
    for reader in readers:
        try:
            reader()
        except UserError as error:
            messages.append(str(error))
    return messages


@pytest.mark.parametrize("kind", ["nii", "nii2", "nii.gz", "nrrd", "nrrd lines", "h5", "dicom"])
def test_damaged_bytes_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    rng = random.Random(kind)
    path = tmp_path / f"damaged.{kind.split()[0].rstrip('2')}"
    refused = 0
    for _ in range(20 if kind == "dicom" else 60):
        match kind:
            case "nii":
                path.write_bytes(changed(rng, nifti(), 0, 352))
            case "nii2":
                path.write_bytes(changed(rng, nifti(nibabel.Nifti2Image), 0, 544))
            case "nii.gz":
                path.write_bytes(changed(rng, gzip.compress(nifti(), mtime=0), 0, 10**9))
            case "nrrd":
                path.write_bytes(changed(rng, nrrd_file(tmp_path), 0, 400))
            case "nrrd lines":
                path.write_bytes(lines_changed(rng, nrrd_file(tmp_path)))
            case "h5":
                path.write_bytes(changed(rng, h5_file(tmp_path), 0, 3000))
            case _:
                path.mkdir(exist_ok=True)
                for k in range(SHAPE[2]):
                    dicom_slice(path / f"{k}.dcm", k)
                damaged = path / f"{rng.randrange(SHAPE[2])}.dcm"
                damaged.write_bytes(changed(rng, damaged.read_bytes(), 128, 10**9))
        messages = refusals(path)
        assert [message for message in messages if path.name not in message] == []
        refused += bool(messages)
    assert refused > 5  # the damage is not only to where nobody looks
