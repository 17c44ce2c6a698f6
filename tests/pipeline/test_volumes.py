"""Volumes: where voxels lie, from every format and back, and what is refused."""

import gzip
import itertools
import logging
import os
import struct
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless

from sscl.core.errors import UserError
from sscl.volumes.dicom import patient_of
from sscl.volumes.files import case_stem, is_volume, read_image, read_label, write_label
from sscl.volumes.geometry import from_ras, same_grid, to_ras
from sscl.volumes.volume import Volume

SHAPE = (5, 6, 7)
SPACING = (0.5, 2.0, 3.0)
AFFINE = np.array([[0.5, 0, 0, -10], [0, 2, 0, 20], [0, 0, 3, -30], [0, 0, 0, 1.0]])
ORDERS = list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


def turn(degrees: tuple[float, float, float]) -> NDArray[np.float64]:
    """A rotation about x, then y, then z."""
    total = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, j = [k for k in range(3) if k != axis]
        one = np.eye(3)
        one[i, i] = one[j, j] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        total = one @ total
    return total


def affine_of(
    axes: tuple[int, ...], signs: tuple[int, ...], oblique: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Array axis i runs along world axis axes[i], forwards or backwards, then the whole scan is turned."""
    affine = np.eye(4)
    affine[:3, :3] = turn(oblique) @ (np.eye(3)[:, axes] * signs) @ np.diag(SPACING)
    affine[:3, 3] = (-10, 20, -30)
    return affine


def noise(shape: tuple[int, ...] = SHAPE, dtype: type = np.int16) -> NDArray[np.generic]:
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def save(path: Path, data: NDArray[np.generic], affine: NDArray[np.float64] = AFFINE) -> Path:
    image = nibabel.Nifti1Image(data, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    image.header.set_xyzt_units("mm")
    path.write_bytes(
        gzip.compress(image.to_bytes(), mtime=0) if path.name.lower().endswith(".gz") else image.to_bytes()
    )
    return path


def edit(path: Path, offset: int, fmt: str, *values: float) -> Path:
    """Overwrite header bytes of a compressed NIfTI-1."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(fmt, raw, offset, *values)
    path.write_bytes(gzip.compress(bytes(raw), mtime=0))
    return path


def world(volume: Volume) -> dict[tuple[float, ...], float]:
    """World position, to a micrometre, of every voxel's value: what must survive any change of axes."""
    index = np.indices(volume.shape).reshape(3, -1)
    places = (volume.affine[:3, :3] @ index + volume.affine[:3, 3:]).T.round(3) + 0.0
    return dict(zip(map(tuple, places.tolist()), volume.array[0].ravel().tolist(), strict=True))


# Axis order


@pytest.mark.parametrize("oblique", [(0.0, 0.0, 0.0), (20.0, -10.0, 15.0)])
@pytest.mark.parametrize(("axes", "signs"), ORDERS)
def test_to_ras_keeps_every_voxel_in_its_place_and_from_ras_undoes_it(axes, signs, oblique):
    scan = Volume(noise()[None], affine_of(axes, signs, oblique))
    ras = to_ras(scan)
    assert world(ras) == world(scan)
    assert nibabel.aff2axcodes(ras.affine) == ("R", "A", "S")
    np.testing.assert_array_equal(from_ras(ras.array[0], scan), scan.array[0])
    probabilities = np.stack([ras.array[0], 2 * ras.array[0]])
    np.testing.assert_array_equal(from_ras(probabilities, scan)[1], 2 * scan.array[0])


@pytest.mark.parametrize(("axes", "signs"), ORDERS)
def test_a_mask_of_the_ras_scan_comes_back_in_the_files_own_order(tmp_path, axes, signs):
    scan = read_image([save(tmp_path / "a.nii.gz", noise(), affine_of(axes, signs, (0, 0, 0)))], 1)
    bright = (to_ras(scan).array[0] > 50).astype(np.int64)
    write_label(tmp_path / "mask.nii.gz", from_ras(bright, scan), scan)
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(mask.dataobj), noise() > 50)
    np.testing.assert_array_equal(mask.affine, nibabel.load(tmp_path / "a.nii.gz").affine)


def test_same_grid_looks_at_the_corners():
    a = Volume(np.zeros((1, 101, 2, 2)), np.eye(4))
    tilted = np.eye(4)
    tilted[1, 0] = 2e-5  # 2 micrometres after 100 voxels
    assert same_grid(a, Volume(a.array, np.eye(4) + 1e-6 * np.eye(4, k=3)))
    assert not same_grid(a, Volume(a.array, tilted))
    assert not same_grid(a, Volume(a.array[:, :100], np.eye(4)))


# NIfTI


def test_the_header_of_the_scan_is_kept(tmp_path):
    image = nibabel.Nifti1Image(noise(), AFFINE)
    image.set_qform(AFFINE, code=1)
    image.set_sform(AFFINE, code=4)
    image.header.set_xyzt_units("mm", "sec")
    for field in ("descrip", "aux_file", "db_name", "data_type", "intent_name"):
        image.header[field] = b"Doe^Jane"
    image.header.set_slope_inter(2, -5)
    image.header["cal_max"] = 90
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(image.to_bytes(), mtime=0))
    scan = read_image([tmp_path / "a.nii.gz"], 1)
    np.testing.assert_array_equal(scan.array[0], noise() * 2 - 5)
    label = (noise() > 50) * 255
    write_label(tmp_path / "m.nii.gz", label, scan)
    mask = nibabel.load(tmp_path / "m.nii.gz")
    header = mask.header
    assert (int(header["qform_code"]), int(header["sform_code"])) == (1, 4)
    assert header.get_xyzt_units() == ("mm", "sec")
    assert b"Doe" not in gzip.decompress((tmp_path / "m.nii.gz").read_bytes())  # whoever it is, the mask does not tell
    assert header["cal_max"] == 0
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(mask.get_fdata(), label)  # scl_slope and scl_inter do not act on the mask
    np.testing.assert_array_equal(mask.affine, image.affine)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.nii.gz", "m.nii.gz"]


def test_labels_above_255_are_kept_and_two_writes_give_equal_bytes(tmp_path):
    scan = read_image([save(tmp_path / "a.nii", noise())], 1)
    for name in ("m.nii.gz", "n.nii.gz"):
        write_label(tmp_path / name, noise() * 3, scan)
    np.testing.assert_array_equal(read_label(tmp_path / "m.nii.gz").array[0], noise() * 3)
    assert (tmp_path / "m.nii.gz").read_bytes() == (tmp_path / "n.nii.gz").read_bytes()


def test_big_endian_and_nifti2_are_read_and_keep_their_kind(tmp_path):
    big = nibabel.Nifti1Image(noise(), AFFINE, nibabel.Nifti1Header(endianness=">"))
    for image in (big, nibabel.Nifti2Image(noise(), AFFINE)):
        (tmp_path / "a.nii.gz").write_bytes(gzip.compress(image.to_bytes(), mtime=0))
        scan = read_image([tmp_path / "a.nii.gz"], 1)
        np.testing.assert_array_equal(scan.array[0], noise())
        write_label(tmp_path / "m.nii.gz", noise(), scan)
        mask = nibabel.load(tmp_path / "m.nii.gz")
        assert type(mask) is type(image)
        np.testing.assert_array_equal(mask.get_fdata(), noise())


def test_channels_come_from_the_fourth_axis_or_from_files(tmp_path):
    two = noise((*SHAPE, 2))
    save(tmp_path / "two.nii.gz", two)
    files = [save(tmp_path / f"c{k}.nii.gz", two[..., k]) for k in range(2)]
    one_file, two_files = read_image([tmp_path / "two.nii.gz"], 2), read_image(files, 2)
    np.testing.assert_array_equal(one_file.array, np.moveaxis(two, 3, 0))
    np.testing.assert_array_equal(two_files.array, one_file.array)
    assert one_file.array.dtype == np.float32
    assert read_image([save(tmp_path / "one.nii.gz", noise((*SHAPE, 1)))], 1).array.shape == (1, *SHAPE)
    with pytest.raises(UserError, match=r"two\.nii\.gz.*2 channels.*4-D.*declares 1"):
        read_image([tmp_path / "two.nii.gz"], 1)
    with pytest.raises(UserError, match=r"c1\.nii\.gz.*another grid"):
        read_image([files[0], save(files[1], two[..., 1], np.diag([1, 1, 1, 1.0]))], 2)
    flipped = AFFINE @ np.array([[-1, 0, 0, SHAPE[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(UserError, match=r"c1\.nii\.gz.*axes LAS, .*axes RAS, .*axes in one order"):
        read_image([files[0], save(files[1], two[::-1, :, :, 1], flipped)], 2)


def test_a_mask_that_cannot_be_written_is_told_by_name_and_leaves_nothing(tmp_path):
    header = nibabel.Nifti1Header()
    header["magic"] = b"none"
    with pytest.raises(UserError, match=r"m\.nii\.gz: cannot be written.*magic"):
        write_label(tmp_path / "m.nii.gz", noise(), Volume(noise()[None], AFFINE, header))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("unit", "factor"), [(0, 1), (1, 1000), (2, 1), (3, 0.001)])
def test_units_become_millimetres(tmp_path, unit, factor):
    scan = read_image([edit(save(tmp_path / "a.nii.gz", noise()), 123, "B", unit)], 1)
    np.testing.assert_allclose(scan.spacing_mm, np.array(SPACING) * factor)
    write_label(tmp_path / "m.nii.gz", noise(), scan)
    assert same_grid(scan, read_label(tmp_path / "m.nii.gz"))


def test_the_qform_counts_where_the_sform_is_not_coded(tmp_path):
    path = edit(save(tmp_path / "a.nii.gz", noise()), 254, "<h", 0)
    np.testing.assert_allclose(read_image([edit(path, 280, "<f", 99)], 1).affine, AFFINE)


@pytest.mark.parametrize(("qform", "sform"), [(0, 1), (0, 5), (1, 0), (9, 1), (-1, 2), (0, 0)])
def test_a_mask_lies_on_its_scan_whichever_codes_are_set(tmp_path, qform, sform):
    scan = read_image([edit(save(tmp_path / "a.nii.gz", noise()), 252, "<2h", qform, sform)], 1)
    write_label(tmp_path / "m.nii.gz", noise(), scan)
    assert same_grid(scan, read_label(tmp_path / "m.nii.gz"))


def test_a_few_bytes_after_the_last_voxel_are_told(tmp_path, caplog):
    repacked(path := save(tmp_path / "a.nii.gz", noise()), lambda raw: raw + b"more")
    np.testing.assert_array_equal(read_image([path], 1).array[0], noise())
    assert "a.nii.gz: 4 bytes after its last voxel" in caplog.text


def test_an_sform_of_other_voxel_sizes_than_the_header_is_told(tmp_path, caplog):
    """An identity that a program left there; with a qform the file is refused."""
    path = edit(save(tmp_path / "a.nii.gz", noise(), np.eye(4)), 252, "<h", 0)
    read_image([path], 1)
    assert caplog.text == ""
    assert read_image([edit(path, 80, "<3f", *SPACING)], 1).spacing_mm == (1, 1, 1)
    assert "a.nii.gz: voxels of 1 x 1 x 1 by its sform, which is taken, but of 0.5 x 2 x 3 by" in caplog.text


def test_a_scan_without_orientation_is_read_with_a_warning(tmp_path, caplog):
    path = edit(save(tmp_path / "a.nii.gz", noise()), 252, "<2h", 0, 0)
    assert read_image([path], 1).spacing_mm == SPACING
    assert "a.nii.gz" in caplog.text
    assert "orientation unknown" in caplog.text


def test_rounding_of_the_quaternion_is_no_disagreement_of_qform_and_sform(tmp_path):
    """Near a half turn the qform's float32 quaternion is off by more than 1e-3 mm, though both say the same."""
    rng, worst = np.random.default_rng(1), 0.0
    for _ in range(40):
        affine = np.eye(4)
        affine[:3, :3] = turn(tuple(rng.uniform(-0.3, 0.3, 3))) @ np.diag([-1, -1, 1])
        path = save(tmp_path / "a.nii.gz", noise((300, 3, 2)), affine)
        header = nibabel.load(path).header
        worst = max(worst, np.abs((header.get_qform() - header.get_sform())[:3, 0] * 299).max())
        read_image([path], 1)
    assert worst > 1e-3  # or the test tests nothing


@pytest.mark.parametrize("name", ["a.NII.GZ", "a.Nii", "plain.nii.gz"])
def test_odd_endings_are_read_with_a_warning(tmp_path, caplog, name):
    path = save(tmp_path / name, noise())
    if name == "plain.nii.gz":
        path.write_bytes(gzip.decompress(path.read_bytes()))
    caplog.set_level(logging.WARNING, "sscl")
    np.testing.assert_array_equal(read_image([path], 1).array[0], noise())
    assert name in caplog.text


def test_names(tmp_path):
    (tmp_path / "folder").mkdir()
    assert [case_stem(Path(name)) for name in ("a.b.nii.gz", "A.NII", "c.nrrd", "d.h5")] == ["a.b", "A", "c", "d"]
    volumes = {"a.nii.gz": True, "._a.nii.gz": False, "dataset.json": False, "folder": False}
    assert {name: is_volume(tmp_path / name) for name in volumes} == volumes


# Refusals: each names the file


def garble(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def checksum(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-8] ^= 1
    path.write_bytes(bytes(raw))


def repacked(path: Path, change) -> None:
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


def flipped_sform(path: Path) -> None:
    edit(path, 280, "<f", -0.5)


def sheared(path: Path) -> None:
    edit(path, 252, "<h", 0)
    edit(path, 284, "<f", 0.3)


def no_spacing(path: Path) -> None:
    edit(path, 252, "<h", 0)
    edit(path, 280 + 32, "<4f", 0, 0, 0, 0)


def line_ends(path: Path) -> None:
    """As a transfer as text leaves them."""
    raw = nibabel.Nifti2Image(noise(), AFFINE).to_bytes()
    path.write_bytes(gzip.compress(raw.replace(b"\r\n\x1a\n", b"\n\x1a\n\0")))


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("gone.nii.gz")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def floats(*values: float):
    def write(path: Path) -> None:
        data = noise().astype(np.float64)
        data.ravel()[: len(values)] = values
        save(path, data)

    return write


COLOUR = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
BROKEN = {
    "truncated gzip": (lambda p: garble(p, p.read_bytes()[:-40]), "truncated or corrupt"),
    "wrong checksum": (checksum, "CRC"),
    "short inside": (lambda p: repacked(p, lambda raw: raw[:-10]), "truncated.*expects 772 bytes.*762"),
    "long inside": (lambda p: repacked(p, lambda raw: raw + bytes(100_000)), "more data than its header's shape"),
    "a slice fewer": (lambda p: edit(p, 46, "<h", 6), "more data than its header's shape"),
    "a column fewer": (lambda p: edit(p, 42, "<h", 4), "more data than its header's shape"),
    "bytes by its header": (lambda p: edit(p, 70, "<2h", 2, 8), "more data than its header's shape"),
    "web page": (lambda p: garble(p, b"<!DOCTYPE html><title>Quota exceeded</title>"), "not a .*NIfTI.*web page"),
    "empty": (lambda p: garble(p, b""), "empty"),
    "other bytes": (lambda p: garble(p, bytes(1000)), "not a .*NIfTI"),
    "folder": (folder, "folder"),
    "dangling": (dangling, r"link to gone\.nii\.gz"),
    "absent": (Path.unlink, "not found"),
    "pipe": (pipe, "pipe"),
    "twin": (lambda p: save(p.with_name("bad.nii"), noise()), r"both bad\.nii\.gz and bad\.nii\b"),
    "terabytes": (lambda p: edit(p, 40, "<4h", 3, 30000, 30000, 3000), "expects 5400000000352 bytes"),
    "negative size": (lambda p: edit(p, 40, "<4h", 3, 5, -6, 7), "shape"),
    "unknown type": (lambda p: edit(p, 70, "<h", 999), "damaged NIfTI header"),
    "voxels in the header": (lambda p: edit(p, 108, "<f", 348), "damaged NIfTI header: vox offset 348"),
    "voxels before the file": (lambda p: edit(p, 108, "<f", -5), "damaged NIfTI header: vox offset -5"),
    "magic": (lambda p: edit(p, 344, "4s", b"n+1x"), "damaged NIfTI header: magic"),
    "line ends": (line_ends, "damaged NIfTI header: EOL"),
    "infinite slope": (lambda p: edit(p, 112, "<f", np.inf), "scl_slope is infinite"),
    "vox_offset": (lambda p: edit(p, 108, "<f", np.nan), "damaged NIfTI header"),
    "colour": (lambda p: save(p, np.zeros(SHAPE, COLOUR)), "colour"),
    "complex": (lambda p: save(p, np.zeros(SHAPE, np.complex64)), "complex"),
    "2-D": (lambda p: save(p, noise((5, 6))), "2-D"),
    "single slice": (lambda p: save(p, noise((5, 6, 1))), "single slice"),
    "two more axes": (lambda p: save(p, noise((5, 6, 7, 2, 3))), "5-D"),
    "NaN": (floats(np.nan, np.nan, np.inf), "3 voxels.*NaN"),
    "too large": (floats(1e300), "1 voxels.*infinite"),
    "constant": (lambda p: save(p, np.full(SHAPE, 137, np.int16)), "constant.*137"),
    "NaN in affine": (lambda p: edit(p, 280, "<f", np.nan), "affine.*NaN"),
    "qform against sform": (flipped_sform, "qform and sform"),
    "qform shifted": (
        lambda p: edit(save(p, noise(), affine_of((0, 1, 2), (-1, -1, 1), (0, 0, 0))), 268, "<f", -9.99),
        "qform",
    ),
    "sheared": (sheared, "orthogonal"),
    "no spacing": (no_spacing, "spacing"),
    "unit": (lambda p: edit(p, 123, "B", 7), "unit"),
    "sform_code": (lambda p: edit(p, 252, "<2h", 0, 9), "sform_code is 9"),
    "sform_code below 0": (lambda p: edit(p, 252, "<2h", 0, -3), "sform_code is -3"),
    "qform_code": (lambda p: edit(p, 252, "<2h", 6, 0), "qform_code is 6"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_image_is_refused_by_name_and_cause(tmp_path, how):
    path = save(tmp_path / "bad.nii.gz", noise())
    damage, cause = BROKEN[how]
    damage(path)
    with pytest.raises(UserError, match=rf"(?s)bad\.nii\.gz: .*{cause}"):
        read_image([path], 1)


def test_a_truncated_plain_file_is_refused_with_both_sizes(tmp_path):
    path = save(tmp_path / "bad.nii", noise())
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(UserError, match=r"bad\.nii: truncated.*772 bytes.*700 bytes"):
        read_image([path], 1)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file_is_refused(tmp_path):
    path = save(tmp_path / "bad.nii.gz", noise())
    path.chmod(0)
    with pytest.raises(UserError, match=r"bad\.nii\.gz.*[Pp]ermission"):
        read_image([path], 1)


def test_an_operating_system_error_is_told_with_the_files_name(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    path = save(tmp_path / "bad.nii.gz", noise())
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UserError, match=r"bad\.nii\.gz.*Permission denied"):
        read_image([path], 1)


# Masks


def test_whole_numbers_are_labels_whatever_their_type(tmp_path):
    for dtype in (np.uint8, np.int32, np.float32, np.float64):
        label = read_label(save(tmp_path / "m.nii.gz", noise(dtype=dtype)))
        assert label.array.dtype == np.int16
        np.testing.assert_array_equal(label.array[0], noise())
    assert read_label(save(tmp_path / "m.nii.gz", noise(dtype=np.int32) * 1000)).array.dtype == np.int32


@pytest.mark.parametrize(
    ("value", "cause"), [(0.5, "1 voxels.*not integers.*0.5"), (np.nan, "1 voxels.*NaN"), (1e20, "no labels")]
)
def test_other_numbers_are_not(tmp_path, value, cause):
    path = tmp_path / "bad.nii.gz"
    floats(value)(path)
    with pytest.raises(UserError, match=rf"bad\.nii\.gz.*{cause}"):
        read_label(path)


def test_a_one_hot_mask_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"bad\.nii\.gz: a 4-D mask of 2 channels"):
        read_label(save(tmp_path / "bad.nii.gz", noise((*SHAPE, 2))))


# NRRD

SIMPLE_NRRD = """NRRD0004
type: short
dimension: 3
space: left-posterior-superior
sizes: 5 6 7
space directions: (0.5,0,0) (0,2,0) (0,0,3)
endian: little
encoding: raw
space origin: (10,-20,-30)

"""


def nrrd(path: Path, *changes: tuple[str, str], data: bytes | None = None) -> Path:
    text = SIMPLE_NRRD
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    voxels = np.ascontiguousarray(noise().T).astype("<i2").tobytes()
    path.write_bytes(text.encode() + (voxels if data is None else data))
    return path


@pytest.mark.parametrize(
    ("space", "signs"),
    [
        ("left-posterior-superior", (-1, -1, 1)),
        ("LPS", (-1, -1, 1)),
        ("left-anterior-superior", (-1, 1, 1)),
        ("LAS", (-1, 1, 1)),
        ("right-anterior-superior", (1, 1, 1)),
        ("RAS", (1, 1, 1)),
    ],
)
def test_nrrd_axes_become_ras(tmp_path, space, signs):
    scan = read_image([nrrd(tmp_path / "a.nrrd", ("left-posterior-superior", space))], 1)
    np.testing.assert_array_equal(scan.array[0], noise())
    origin = np.array([10, -20, -30])
    np.testing.assert_array_equal(scan.affine[:3], np.diag(signs) @ np.c_[np.diag(SPACING), origin])


def test_nrrd_channels_come_from_the_axis_without_direction(tmp_path):
    two = noise((2, *SHAPE))
    changes = (("dimension: 3", "dimension: 4"), ("5 6 7", "2 5 6 7"), ("directions: ", "directions: none "))
    path = nrrd(tmp_path / "a.nrrd", *changes, data=np.ascontiguousarray(two.T).tobytes())
    np.testing.assert_array_equal(read_image([path], 2).array, two)


@pytest.mark.parametrize(
    ("changes", "data", "cause"),
    [
        ([("encoding: raw", "encoding: raw\ndata file: /etc/passwd")], None, "not attached"),
        ([("left-posterior-superior", "scanner-xyz")], None, "orientation unknown.*scanner-xyz"),
        ([("space: left-posterior-superior\n", "")], None, "orientation unknown"),
        ([], bytes(300), "truncated or damaged"),
        ([], bytes(500), "truncated or damaged"),
        ([("5 6 7", "5000 6000 70000")], None, "2100000000000 voxels"),
        ([("encoding: raw", "encoding: gzip")], gzip.compress(bytes(420), mtime=0)[:-4], "truncated or damaged"),
        ([("encoding: raw", "encoding: gzip")], gzip.compress(bytes(420_000), mtime=0), "truncated or damaged"),
        ([("encoding: raw", "encoding: hex")], None, "encoding 'hex'"),
        ([("NRRD0004", "<!DOCTYPE html>")], None, "truncated or damaged"),
        ([("(0,0,3)", "(0,nan,3)")], None, "affine"),
        ([("dimension: 3", "dimension: 2"), ("5 6 7", "5 42"), (" (0,0,3)", "")], None, "3-D"),
    ],
)
def test_a_broken_nrrd_is_refused(tmp_path, changes, data, cause):
    with pytest.raises(UserError, match=rf"bad\.nrrd: .*{cause}"):
        read_image([nrrd(tmp_path / "bad.nrrd", *changes, data=data)], 1)


def test_nrrd_and_nifti_of_itk_are_one_scan(tmp_path):
    """An independent writer puts one oblique scan into both formats."""
    itk = pytest.importorskip("SimpleITK")
    image = itk.GetImageFromArray(np.ascontiguousarray(noise().T))
    image.SetSpacing(SPACING)
    image.SetOrigin((10, -20, 30))
    image.SetDirection(turn((20, 10, 5)).ravel().tolist())
    for name in ("a.nrrd", "a.nii.gz"):
        itk.WriteImage(image, str(tmp_path / name), name == "a.nrrd")
    one, other = read_image([tmp_path / "a.nrrd"], 1), read_image([tmp_path / "a.nii.gz"], 1)
    assert same_grid(one, other)
    np.testing.assert_array_equal(one.array, other.array)
    left, posterior, superior = image.TransformIndexToPhysicalPoint((4, 3, 2))
    np.testing.assert_allclose(one.affine @ (4, 3, 2, 1), (-left, -posterior, superior, 1))
    write_label(tmp_path / "m.nii.gz", noise(), one)
    mask = itk.ReadImage(str(tmp_path / "m.nii.gz"))
    np.testing.assert_allclose(mask.TransformIndexToPhysicalPoint((4, 3, 2)), (left, posterior, superior), atol=1e-4)


# DICOM


def series(
    folder: Path, directions: NDArray[np.float64], uid: str = "1.2.3", syntax: str = ExplicitVRLittleEndian
) -> Path:
    """One CT series of `noise()`: columns run along directions[:, 0], rows along [:, 1], slices along [:, 2]."""
    folder.mkdir(exist_ok=True)
    numbers = np.random.default_rng(2).permutation(SHAPE[2])
    for k in range(SHAPE[2]):
        item = pydicom.Dataset()
        item.file_meta = FileMetaDataset()
        item.file_meta.TransferSyntaxUID = syntax
        item.file_meta.MediaStorageSOPClassUID = item.SOPClassUID = CTImageStorage
        item.file_meta.MediaStorageSOPInstanceUID = item.SOPInstanceUID = f"{uid}.{k + 1}"
        item.SeriesInstanceUID, item.Modality, item.InstanceNumber = uid, "CT", int(numbers[k])
        item.ImagePositionPatient = [round(float(v), 6) for v in directions[:, 2] * k * SPACING[2] + (10, -20, -30)]
        item.ImageOrientationPatient = [round(float(v), 9) for v in (*directions[:, 0], *directions[:, 1])]
        item.PixelSpacing = [SPACING[1], SPACING[0]]
        item.Columns, item.Rows, item.SamplesPerPixel = SHAPE[0], SHAPE[1], 1
        item.PhotometricInterpretation, item.PixelRepresentation = "MONOCHROME2", 1
        item.BitsAllocated, item.BitsStored, item.HighBit = 16, 16, 15
        item.RescaleSlope, item.RescaleIntercept = k + 1, -1000 - k
        pixels = np.ascontiguousarray(noise()[:, :, k].T).astype("<i2").tobytes()
        compressed = pydicom.uid.UID(syntax).is_compressed
        item.PixelData = pydicom.encaps.encapsulate([b"\0" * 64]) if compressed else pixels
        item["PixelData"].VR = "OB" if compressed else "OW"
        item.save_as(folder / f"{uid}-{k:02d}.dcm", enforce_file_format=True)
    return folder


@pytest.mark.parametrize("degrees", [(0.0, 0.0, 0.0), (25.0, -15.0, 10.0), (90.0, 0.0, 0.0)])
def test_a_series_is_ordered_by_position_and_each_slice_has_its_own_scale(tmp_path, degrees):
    directions = turn(degrees)
    folder = series(tmp_path / "ct", directions)
    for name in ("DICOMDIR", "readme.txt", "preview.jpg"):
        (folder / name).write_bytes(b"\xff\xd8 no slice")
    scan = read_image([folder], 1)
    k = np.arange(SHAPE[2])
    np.testing.assert_array_equal(scan.array[0], noise() * (k + 1) - 1000 - k)
    place = directions @ np.diag(SPACING) @ (1, 2, 3) + (10, -20, -30)
    np.testing.assert_allclose(scan.affine @ (1, 2, 3, 1), (-place[0], -place[1], place[2], 1), atol=1e-5)
    assert is_volume(folder)
    assert case_stem(folder) == "ct"
    write_label(tmp_path / "m.nii.gz", noise(), scan)
    assert same_grid(read_label(tmp_path / "m.nii.gz"), scan)


def test_sitk_reads_the_same_series_alike(tmp_path):
    itk = pytest.importorskip("SimpleITK")
    folder = series(tmp_path / "ct", turn((25, -15, 10)))
    names = itk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder))
    image = itk.ReadImage(names)
    scan = read_image([folder], 1)
    left, posterior, superior = image.TransformIndexToPhysicalPoint((4, 3, 2))
    np.testing.assert_allclose(scan.affine @ (4, 3, 2, 1), (-left, -posterior, superior, 1), atol=1e-3)


def test_a_missing_slice_is_refused_with_its_gap(tmp_path):
    folder = series(tmp_path / "ct", np.eye(3))
    (folder / "1.2.3-03.dcm").unlink()
    with pytest.raises(UserError, match=r"1\.2\.3-02\.dcm.*1\.2\.3-04\.dcm.* 6\.000 mm.* 3\.000 mm.*missing"):
        read_image([folder], 1)


@pytest.mark.parametrize("spacing", [3.0, 0.1, 0.02])
@pytest.mark.parametrize("how", [Path.unlink, lambda path: path.with_name("copy.dcm").write_bytes(path.read_bytes())])
def test_a_missing_and_a_doubled_slice_are_refused_however_close_slices_are(tmp_path, spacing, how):
    folder = series(tmp_path / "ct", np.eye(3))
    for k, path in enumerate(sorted(folder.iterdir())):
        edited(path, ImagePositionPatient=[0, 0, k * spacing], PixelSpacing=[spacing, spacing])
    assert read_image([folder], 1).spacing_mm == pytest.approx((spacing,) * 3)
    how(folder / "1.2.3-03.dcm")
    with pytest.raises(UserError, match="missing, doubled or displaced"):
        read_image([folder], 1)


def test_two_series_are_refused_and_listed(tmp_path):
    folder = series(tmp_path / "ct", np.eye(3))
    series(folder, np.eye(3), uid="4.5.6")
    with pytest.raises(UserError, match=r"ct: more than one DICOM series \(1\.2\.3, 4\.5\.6\)"):
        read_image([folder], 1)


def test_undecodable_pixels_are_refused_with_a_remedy(tmp_path):
    folder = series(tmp_path / "ct", np.eye(3), syntax=JPEG2000Lossless)
    with pytest.raises(UserError, match=r"(?s)1\.2\.3-00\.dcm.*JPEG 2000.*decompress"):
        read_image([folder], 1)


@pytest.mark.filterwarnings("ignore:End of file reached")
@pytest.mark.parametrize("content", [b"", b"no slice", bytes(128) + b"DICM" + b"\xff" * 40])
def test_a_broken_slice_is_refused_not_left_out(tmp_path, content):
    folder = series(tmp_path / "ct", np.eye(3))
    (folder / "1.2.3-06.dcm").write_bytes(content)
    with pytest.raises(UserError, match=r"1\.2\.3-06\.dcm"):
        read_image([folder], 1)


def edited(path: Path, **values: object) -> None:
    item = pydicom.dcmread(path)
    for name, value in values.items():
        setattr(item, name, value)
    item.save_as(path)


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"RescaleSlope": 0}, "rescaling"),
        ({"PixelSpacing": [-2, 0.5]}, "spacing"),
        ({"ImageOrientationPatient": [0.5, 0, 0, 0, 1, 0]}, "direction"),
        ({"ImagePositionPatient": [13, -20, -21]}, "3.000 mm beside the line"),
        ({"Rows": 7}, "Rows is"),
        ({"RescaleSlope": None}, "lacks a value of RescaleSlope"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "MONOCHROME1 with .* MONOCHROME2 with"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "kind 'PALETTE COLOR'"),
        ({"ModalityLUTSequence": [pydicom.Dataset()]}, "ModalityLUTSequence"),
    ],
)
def test_a_slice_that_does_not_fit_is_refused(tmp_path, values, cause):
    folder = series(tmp_path / "ct", np.eye(3))
    edited(folder / "1.2.3-03.dcm", **values)
    with pytest.raises(UserError, match=rf"1\.2\.3-03\.dcm: .*{cause}"):
        read_image([folder], 1)


def test_a_slice_without_the_rescaling_of_the_others_is_refused(tmp_path):
    folder = series(tmp_path / "ct", np.eye(3))
    item = pydicom.dcmread(folder / "1.2.3-03.dcm")
    del item.RescaleIntercept
    item.save_as(folder / "1.2.3-03.dcm")
    with pytest.raises(UserError, match=r"03\.dcm: its values are MONOCHROME2 with RescaleSlope, .*RescaleIntercept"):
        read_image([folder], 1)


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("gone")])
def test_a_slice_that_is_no_file_is_refused_and_not_waited_for(tmp_path, make):
    folder = series(tmp_path / "ct", np.eye(3))
    make(folder / "x.dcm")
    with pytest.raises(UserError, match=r"x\.dcm: not a file"):
        read_image([folder], 1)


def packed(path: Path) -> None:
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))


def without_preamble(path: Path) -> None:
    path.with_name("IM6").write_bytes(path.read_bytes()[132:])


def in_a_linked_folder(path: Path) -> None:
    (path.parent.parent / "other").mkdir()
    (path.parent / "more").symlink_to("../other")


def in_a_closed_folder(path: Path) -> None:
    (path.parent / "more").mkdir(mode=0)


def by_a_broken_link(path: Path) -> None:
    (path.parent / "IM6").symlink_to("gone")


LOST = {
    packed: r"dcm\.gz: .*packed",
    without_preamble: "IM6: .*header",
    in_a_linked_folder: "more: a link to a folder",
    by_a_broken_link: "IM6: not a file",
    in_a_closed_folder: "more: cannot be read: Permission denied",
}


@pytest.mark.parametrize("how", LOST)
def test_the_last_slice_is_not_lost_in_silence(tmp_path, how, monkeypatch):
    """No gap tells of it."""
    folder = series(tmp_path / "ct", np.eye(3))
    how(last := folder / "1.2.3-06.dcm")
    last.unlink()
    if how is in_a_closed_folder:
        monkeypatch.setattr(os, "scandir", as_a_user(os.scandir))
    with pytest.raises(UserError, match=LOST[how]):
        read_image([folder], 1)


def as_a_user(scandir):
    """Root may read what the mode forbids."""

    def scan(path):
        if not Path(path).stat().st_mode & 0o444:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    return scan


def test_a_series_that_may_not_be_read_is_one_and_says_so(tmp_path, monkeypatch):
    folder = series(tmp_path / "ct", np.eye(3))
    folder.chmod(0)
    monkeypatch.setattr(os, "scandir", as_a_user(os.scandir))
    assert is_volume(folder)
    assert patient_of(folder) is None
    with pytest.raises(UserError, match="ct: cannot be read: Permission denied"):
        read_image([folder], 1)
    folder.chmod(0o755)


def test_what_lies_beside_the_slices_is_counted_unless_it_usually_does(tmp_path, caplog):
    folder = series(tmp_path / "ct", np.eye(3))
    for name in (".DS_Store", "._1.2.3-00.dcm", "Thumbs.db", "DICOMDIR", "notes.TXT", "a.xml", "preview.jpg"):
        (folder / name).write_bytes(b"\0 1.2.3")
    (folder / "LICENSE").write_text("of 1.2.3")
    assert read_image([folder], 1).shape == SHAPE
    assert caplog.text == ""
    for name in ("IM7", "plan.mat"):
        (folder / name).write_bytes(b"\0 of another series" * (name != "IM7"))
    assert read_image([folder], 1).shape == SHAPE
    assert "ct: 2 files that are no DICOM slices are passed over, for instance IM7" in caplog.text


def test_the_patient_of_a_series(tmp_path):
    folder = series(tmp_path / "ct", np.eye(3))
    assert patient_of(folder) is None
    for path in folder.iterdir():
        edited(path, PatientID=" 17 ")
    assert patient_of(folder) == "17"
    (folder / "0.dcm").write_bytes(b"no slice")
    assert patient_of(folder) is None


def test_a_folder_without_slices_is_refused(tmp_path):
    (tmp_path / "ct").mkdir()
    with pytest.raises(UserError, match="ct: a folder without DICOM files"):
        read_image([tmp_path / "ct"], 1)


# mri_norm2.h5


def test_h5_takes_its_spacing_from_the_caller(tmp_path):
    path = tmp_path / "mri_norm2.h5"
    with h5py.File(path, "w") as file:
        file["image"], file["label"] = noise().astype(np.float32), (noise() > 50).astype(np.uint8)
    scan, label = read_image([path], 1, SPACING), read_label(path, SPACING)
    np.testing.assert_array_equal(scan.array[0], noise())
    np.testing.assert_array_equal(label.array[0], noise() > 50)
    np.testing.assert_array_equal(scan.affine, np.diag([*SPACING, 1]))
    write_label(tmp_path / "m.nii.gz", label.array[0], scan)
    assert same_grid(read_label(tmp_path / "m.nii.gz"), scan)
    with pytest.raises(UserError, match=r"mri_norm2\.h5.*preset.*spacing_if_missing_mm"):
        read_image([path], 1)


def test_a_broken_h5_is_refused(tmp_path):
    path, other = tmp_path / "bad.h5", tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["image"] = noise()
    with h5py.File(path, "w") as file:
        file["image"] = h5py.ExternalLink("other.h5", "image")
        file["label"] = noise((5, 6))
    with pytest.raises(UserError, match=r"bad\.h5: no data set 'image' of its own"):
        read_image([path], 1, SPACING)
    with pytest.raises(UserError, match=r"bad\.h5: 'label' has shape \(5, 6\)"):
        read_label(path, SPACING)
    path.write_bytes(other.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"bad\.h5: truncated"):
        read_image([path], 1, SPACING)
