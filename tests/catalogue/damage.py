"""Sound small files, and random damage to them that knows their format."""

import copy
import gzip
import hashlib
import io
import json
import math
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import nibabel
import nrrd
import numpy as np
import pydicom
import torch
import yaml

from sscl.core.files import SEAL

SHAPE = (9, 8, 7)
VOXELS = np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16)
MM = (1.0, 1.0, 2.0)


def nrrd_file(folder: Path) -> bytes:
    header = {"space": "LPS", "space directions": np.diag(MM), "encoding": "raw"}
    nrrd.write(str(folder / "a.nrrd"), VOXELS, header)
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


# Damage


def damaged(path: Path, rng: random.Random) -> dict[Path, bytes]:
    """The file with other content, mostly of its own kind; in half of the cases as if no digest told it: those of other
    files fit, and manifests have none, as the first versions wrote them.
    """
    content = path.read_bytes()
    by_kind = _BY_KIND.get("".join(path.suffixes[-2:]), _BY_KIND.get(path.suffix, _bytes))
    damage = by_kind if rng.random() < 0.75 else _bytes
    changed = {path: damage(rng, content)}
    if rng.random() < 0.5:
        return changed
    return untold(path, changed[path])


def untold(path: Path, content: bytes) -> dict[Path, bytes]:
    """The file with this content, and what lies around so changed that no digest tells it."""
    changed = {path: content}
    if holder := digest_of(path):
        file, key = holder
        facts = json.loads(file.read_text()) | {key: hashlib.sha256(content).hexdigest()}
        changed[file] = json.dumps(facts).encode()
    around = {folder / name for folder in list(path.parents)[:3] for name in MANIFESTS}
    for file in sorted(around | {path}):
        try:
            facts = json.loads(changed.get(file) or file.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(facts, dict) and facts.keys() & NOTES:
            changed[file] = json.dumps({key: value for key, value in facts.items() if key not in NOTES}).encode()
    return changed


MANIFESTS = ("stage.json", "record.json", "model.json")
NOTES = {SEAL, "files", "recipe", "weights", "masks"}
"""Keys that hold digests of what was written."""


def digest_of(path: Path) -> tuple[Path, str] | None:
    """The file that holds the digest of this one, and under which key."""
    if path.suffix == ".pt":
        return path.with_suffix(".json"), "sha256"
    return (path.with_name("model.json"), "weights_sha256") if path.suffix == ".safetensors" else None


def _bytes(rng: random.Random, content: bytes) -> bytes:
    """Some bytes overwritten, often by extremes and early ones; at times a part cut off, left out, doubled or added."""
    raw = bytearray(content)
    end = rng.choice((len(raw), len(raw), 400, 40))
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(max(1, min(end, len(raw))))
        raw[at : at + rng.choice((1, 2, 4))] = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))])
    start, stop = sorted(rng.randrange(len(raw) + 1) for _ in range(2))
    match rng.randrange(8):
        case 0:
            del raw[start:]
        case 1:
            del raw[start:stop]
        case 2:
            raw[start:start] = raw[start:stop]
        case 3:
            raw += content[: rng.choice((1, 100, len(content)))]
    return bytes(raw)


_EXTREMES = (0.0, -0.0, 1.0, -1.0, math.nan, math.inf, -math.inf, 1e-45, 1e-20, 1e20, 3e38, 0.5)
_FIELDS = (
    "sizeof_hdr", "dim", "datatype", "bitpix", "pixdim", "vox_offset", "scl_slope", "scl_inter", "xyzt_units",
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "srow_x", "srow_y", "srow_z",
    "magic",
)  # fmt: skip


def _nifti(rng: random.Random, content: bytes) -> bytes:
    """One to three fields of the header with other values, in version 1 or 2 and either byte order; or two files."""
    kind = rng.choice((nibabel.Nifti1Header, nibabel.Nifti1Header, nibabel.Nifti2Header))
    sound = nibabel.Nifti1Header(content[:348], check=False)
    header = kind.from_header(sound, check=False)
    header["sform_code"], header["qform_code"] = rng.randrange(3), rng.randrange(3)
    voxels = content[int(sound["vox_offset"]) :]
    header["vox_offset"], header["magic"] = header.single_vox_offset, header.single_magic
    if rng.random() < 0.2:
        header = header.as_byteswapped()
    for field in rng.sample(_FIELDS, rng.choice((1, 1, 2, 3))):
        value = header[field]
        if value.dtype.kind == "S":
            header[field] = rng.choice((b"", b"ni1", b"n+1", b"n+2", b"n+3"))
            continue
        real = value.dtype.kind == "f"
        limits = np.finfo(value.dtype) if real else np.iinfo(value.dtype)
        one = rng.choice(_EXTREMES if real else (0, 1, -1, 2, 4, 8, 16, 64, 255, 512, 1024))
        one = rng.choice((one, one, one, rng.randrange(64), limits.min, limits.max))
        with np.errstate(over="ignore"):
            one = np.array([one]).astype(value.dtype)[0]
        if value.ndim:
            header[field][rng.randrange(len(value))] = one
        else:
            header[field] = one
    pad = bytes(header.single_vox_offset - len(header.binaryblock))
    return header.binaryblock + pad + (voxels if rng.random() < 0.9 else content)


def _nifti_gz(rng: random.Random, content: bytes) -> bytes:
    """Of a damaged file; or in two parts, of which one may be damaged."""
    raw = gzip.decompress(content)
    if rng.random() < 0.6:
        return gzip.compress(_nifti(rng, raw), 1, mtime=0)
    at = rng.randrange(len(raw))
    parts = [gzip.compress(part, 1, mtime=0) for part in (raw[:at], raw[at:])]
    parts[rng.randrange(2)] = _bytes(rng, parts[rng.randrange(2)])
    return b"".join(parts)


_BOMB = b", ".join(b"&a%d [%s]" % (k, b",".join([b"*a%d" % (k - 1)] * 9)) for k in range(1, 9))
_LINES = (
    b"sizes: 3", b"dimension: 9", b"byte skip: -1", b"data file: /etc/passwd", b"space: none", b"encoding: gzip",
    b"type: double", b"endian: big", b"\xff\xfe: x", b"", b"a,b,c", b"nan,inf,-1,1e999", b'{"iteration": 0}', b"[]",
    b'"', b"- {}", b"<<: 1", b"x: !!python/object/apply:os.system [touch CANARY]", b"x: &a [*a]",
    b"x: [&a0 [1], " + _BOMB + b"]",
)  # fmt: skip
_WORDS = (b"", b"nan", b"inf", b"-1", b"0", b"1e999", b"9" * 5000, b"none", b"\xff", b"\0", b"'=1", b"raw", b"-1 5 5")


def _lines(rng: random.Random, content: bytes) -> bytes:
    """A line gone, doubled, moved, added, or one of its words another; of a NRRD only in its header."""
    header, gap, data = content.partition(b"\n\n")
    lines = header.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines) + 1)
        line = lines[at] if at < len(lines) else b""
        mark = rng.choice((b" ", b",", b": "))
        words = line.split(mark)
        words[rng.randrange(len(words))] = rng.choice(_WORDS)
        lines[at : at + 1] = rng.choice(
            ([], [line] * 2, [rng.choice(lines)], [rng.choice(_LINES), line], [mark.join(words)])
        )
        lines = lines or [b""]
    return b"\n".join(lines) + gap + data


_STRANGE: tuple[Any, ...] = (
    None, True, 0, 1, -1, 0.5, 1e308, 10**30, math.nan, "", "x", "a", "0", "\0", "\ud800", "../../../etc/passwd",
    "é" * 300, [], [[]], {}, {"": None}, ["a", "a"], [0], {"x": {"y": []}}, "=1+1", "/",
)  # fmt: skip


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in it with every one of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _values(rng: random.Random, value: Any) -> Any:
    """With one to three values replaced, taken away, exchanged, put into a list or under another name."""
    whole = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(whole))
        holder, key = rng.choice(places)
        other_holder, other = rng.choice(places)
        match rng.randrange(6):
            case 0 if holder is not whole:
                del holder[key]
            case 1:
                holder[key] = copy.deepcopy(other_holder[other])
            case 2:
                holder[key] = [holder[key]]
            case 3 if isinstance(holder, dict):
                holder[rng.choice(("x", "", str(other), "\0"))] = holder.pop(key)
            case _:
                holder[key] = copy.deepcopy(rng.choice(_STRANGE))
    return whole[0]


def _json(rng: random.Random, content: bytes) -> bytes:
    return json.dumps(_values(rng, json.loads(content))).encode()


def _yaml(rng: random.Random, content: bytes) -> bytes:
    if rng.random() < 0.3:
        return _lines(rng, content)
    return yaml.safe_dump(_values(rng, yaml.safe_load(content)), allow_unicode=True).encode("utf-8", "surrogatepass")


def _dicom(rng: random.Random, content: bytes) -> bytes:
    """One to three elements with another value, written as it stands, or taken away."""
    item = pydicom.dcmread(io.BytesIO(content))
    for _ in range(rng.choice((1, 1, 2, 3))):
        element = rng.choice(list(item))
        tag = struct.pack("<HH", element.tag.group, element.tag.element)
        at = content.find(tag)
        if at < 0:
            continue
        long = content[at + 4 : at + 6] in (b"OW", b"OB", b"UN", b"SQ", b"UT")
        start = at + (12 if long else 8)
        length = int.from_bytes(content[start - 4 : start] if long else content[start - 2 : start], "little")
        value = rng.choice((b"", b"nan", b"0\\0", b"1e999 ", b"-1", b"1\\2\\3", b"\xff\xff", b"\0\0", b"0", bytes(4)))
        size = len(value).to_bytes(4 if long else 2, "little")
        new = content[at : at + 6] + (b"\0\0" if long else b"") + size + value
        content = content[:at] + (b"" if rng.random() < 0.2 else new) + content[start + length :]
    return content


def _checkpoint(rng: random.Random, content: bytes) -> bytes:
    """The state with values of another kind."""
    state = _values(rng, torch.load(io.BytesIO(content), weights_only=True))
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


_BY_KIND: dict[str, Callable[[random.Random, bytes], bytes]] = {
    ".nii": _nifti, ".nii.gz": _nifti_gz, ".nrrd": _lines, ".dcm": _dicom, ".json": _json, ".yaml": _yaml,
    ".csv": _lines, ".jsonl": _lines, ".list": _lines, ".txt": _lines, ".pt": _checkpoint,
}  # fmt: skip
