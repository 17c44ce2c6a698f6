"""Embedded virtual patients: a small segmentation task that needs no download. numpy and scipy only.

Every patient has one organ (a deformed ellipsoid with a lobe) among neighbours of like brightness, so that no threshold
finds it: shape, place and surroundings must be learnt. Contrast, size, position, bias field, noise and the scanner's
scale vary between patients. Drawn once, looked at, and frozen by DIGEST before any method was compared on it; it is
never tuned on a method's score. The best threshold of each scan, chosen with its mask in hand, has a mean Dice of 0.34
(at most 0.45); the best pair of a lower and an upper one at most 0.51.
"""

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, label

from sscl.core.files import write_atomic, write_json

SHAPE = (56, 56, 40)
"""Voxels along x, y, z."""
SPACING_MM = 1.5
NUM_PATIENTS = 24
NUM_LABELLED = 4
NUM_TEST = 8
DIGEST = "05d5eb3182a034bfeaf6ac30b5241593372dfd6c4d2663f81449616978df5eaf"
"""`digest()` of all patients: a change of any voxel changes it, and makes earlier results incomparable."""

_SEED = 20250
_ORGAN = 400.0
"""Brightness of an average organ before the scanner's own scale."""

Field = NDArray[np.float64]
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Patient:
    """image: (x, y, z) int16; mask: (x, y, z) uint8, 1 = organ; affine: 4x4, RAS+, millimetres."""

    image: NDArray[np.int16]
    mask: NDArray[np.uint8]
    affine: Field


def case_name(number: int) -> str:
    """`patient_01` for 1."""
    return f"patient_{number:02d}"


def split() -> dict[str, list[str]]:
    """4 labelled, 12 unlabelled, 8 test patients, in the format of `split.json`."""
    names = [case_name(number) for number in range(1, NUM_PATIENTS + 1)]
    first_test = NUM_PATIENTS - NUM_TEST
    return {
        "labelled": names[:NUM_LABELLED],
        "unlabelled": names[NUM_LABELLED:first_test],
        "development": [],
        "test": names[first_test:],
    }


def write_phantom(out: Path) -> None:
    """Write `out/images` (24 scans), `out/masks` (4 labelled ones), `out/test_masks` (8) and `out/split.json`.

    The test masks lie apart, where no training finds them; the 12 unlabelled patients have no mask on disk at all.
    """
    groups = split()
    folders = dict.fromkeys(groups["labelled"], "masks") | dict.fromkeys(groups["test"], "test_masks")
    for folder in ("images", "masks", "test_masks"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for number in range(1, NUM_PATIENTS + 1):
        name, patient = case_name(number), draw(number)
        _write(out / "images" / f"{name}.nii.gz", patient.image, patient.affine)
        if name in folders:
            _write(out / folders[name] / f"{name}.nii.gz", patient.mask, patient.affine)
    write_json(out / "split.json", groups)


def digest() -> str:
    """SHA-256 over the voxels of all images and masks, in order, little-endian."""
    total = hashlib.sha256()
    for number in range(1, NUM_PATIENTS + 1):
        patient = draw(number)
        total.update(patient.image.astype("<i2").tobytes())
        total.update(patient.mask.tobytes())
    return total.hexdigest()


def draw(number: int) -> Patient:
    """Patient 1 to 24, the same at every call: float64 throughout, rounded at the very end."""
    if not 1 <= number <= NUM_PATIENTS:
        raise ValueError(f"patient {number}: there are patients 1 to {NUM_PATIENTS}.")
    rng = np.random.Generator(np.random.PCG64([_SEED, number]))
    grid = _grid_mm()
    centre = rng.uniform((-10, -9, -7), (10, 9, 7))
    scale = rng.uniform(0.82, 1.2)
    brightness = _ORGAN * rng.uniform(0.9, 1.1)
    tissue = _body(rng, grid, brightness)
    for neighbour in _neighbours(rng, grid, centre, scale):
        _paint(tissue, neighbour, brightness * rng.uniform(0.88, 1.12))
    organ = _organ(rng, grid, centre, scale)
    _paint(tissue, organ, brightness)
    image = _scan(rng, grid, tissue)
    return Patient(image, _largest(organ < 0), _affine())


def _organ(rng: np.random.Generator, grid: Field, centre: Vector, scale: float) -> Field:
    """Signed distance (mm, roughly; negative inside) of the organ: ellipsoid, lobe, uneven surface."""
    radii = scale * np.array((15.0, 12.0, 11.0)) * rng.uniform(0.87, 1.13, 3)
    body = _ellipsoid(grid, centre, radii, _rotation(rng, 0.35))
    direction = _unit(np.array((0.75, 0.55, 0.35)) + rng.uniform(-0.35, 0.35, 3))
    lobe_radii = scale * np.array((7.0, 6.0, 6.0)) * rng.uniform(0.8, 1.25, 3)
    lobe = _ellipsoid(grid, centre + direction * radii * 1.1, lobe_radii, _rotation(rng, 0.8))
    return _smooth_union(body, lobe, 4.0) + _smooth_noise(rng, 3.5, 1.6) + _smooth_noise(rng, 1.8, 0.5)


def _neighbours(rng: np.random.Generator, grid: Field, centre: Vector, scale: float) -> list[Field]:
    """Signed distances of what lies around: organs of the same kind of tissue that touch or nearly touch."""
    places = {  # offset from the organ's centre and radii, mm
        "behind": ((-6, -25, -4), (17, 9, 14)),
        "beside": ((-27, 4, 3), (9, 13, 12)),
        "above": ((6, 4, 23), (13, 13, 8)),
        "in front": ((12, 25, -6), (13, 9, 11)),
    }
    solids = []
    for offset, radii in places.values():
        place = centre + scale * (np.array(offset, float) + rng.uniform(-3.5, 3.5, 3))
        size = scale * np.array(radii, float) * rng.uniform(0.8, 1.2, 3)
        solids.append(_ellipsoid(grid, place, size, _rotation(rng, 0.5)) + _smooth_noise(rng, 3.0, 1.5))
    return [*solids, _vessel(rng, grid, centre + scale * np.array((24.0, -8.0, 0.0)))]


def _vessel(rng: np.random.Generator, grid: Field, through: Vector) -> Field:
    """Signed distance of a bent tube that runs along z."""
    bend = rng.uniform(-4, 4, 2)
    height = grid[2] / 30.0
    axis_x = through[0] + bend[0] * height**2 + rng.uniform(-2, 2)
    axis_y = through[1] + bend[1] * height + rng.uniform(-2, 2)
    return np.asarray(np.sqrt((grid[0] - axis_x) ** 2 + (grid[1] - axis_y) ** 2) - rng.uniform(4.5, 6.5))


def _body(rng: np.random.Generator, grid: Field, brightness: float) -> Field:
    """Brightness of air, fat and uneven muscle, before any organ is painted."""
    tissue = np.full(SHAPE, 0.04 * brightness)
    outside = _ellipsoid(grid, rng.uniform(-2, 2, 3), np.array([45.0, 42.0, 60.0]), np.eye(3))
    _paint(tissue, outside, 0.72 * brightness)
    texture = 0.5 * brightness + brightness * _smooth_noise(rng, 2.5, 0.09)
    _paint(tissue, outside + 4.0, texture)
    for _ in range(5):
        hole = _ellipsoid(grid, rng.uniform(-28, 28, 3), rng.uniform(3, 6, 3), _rotation(rng, 1.5))
        _paint(tissue, hole, 0.15 * brightness)
    return tissue


def _scan(rng: np.random.Generator, grid: Field, tissue: Field) -> NDArray[np.int16]:
    """What a scanner makes of it: blur, bias field, noise (Rician, as in magnitude images), its own scale."""
    x, y, z = grid / 42.0
    a = rng.uniform(-0.18, 0.18, 6)
    bias = np.exp(a[0] * x + a[1] * y + a[2] * z + a[3] * x * y + a[4] * x * x + a[5] * y * z)
    clean = gaussian_filter(tissue, rng.uniform(0.5, 0.8), mode="nearest") * bias
    sigma = _ORGAN * rng.uniform(0.06, 0.11)
    real = clean + sigma * rng.standard_normal(SHAPE)
    magnitude = np.sqrt(real**2 + (sigma * rng.standard_normal(SHAPE)) ** 2)
    gain = 4.0 ** rng.uniform(-0.5, 1.0)
    return np.asarray(np.rint(gain * magnitude).clip(0, 32767), dtype=np.int16)


def _paint(tissue: Field, distance: Field, brightness: float | Field) -> None:
    """Fill where `distance` is negative; a thin dark wall outside, as fat and vessel walls leave, partly open."""
    wall = (distance >= 0) & (distance < 1.2)
    tissue[wall] *= 0.8
    tissue[:] = np.where(distance < 0, brightness, tissue)


def _ellipsoid(grid: Field, centre: Vector, radii: Vector, rotation: Field) -> Field:
    """(|q| - 1) * smallest radius, q in units of the radii: the sign is exact, the distance approximate."""
    offset = grid - centre[:, None, None, None]
    turned = np.einsum("ij,jxyz->ixyz", rotation, offset) / radii[:, None, None, None]
    return np.asarray((np.sqrt((turned**2).sum(axis=0)) - 1.0) * radii.min())


def _smooth_union(a: Field, b: Field, width: float) -> Field:
    """Union of two solids whose seam is rounded over `width` mm (a polynomial minimum)."""
    h = np.clip(0.5 + 0.5 * (b - a) / width, 0.0, 1.0)
    return np.asarray(b * (1 - h) + a * h - width * h * (1 - h))


def _smooth_noise(rng: np.random.Generator, sigma: float, height: float) -> Field:
    """Gaussian field, correlated over `sigma` voxels, with standard deviation `height`."""
    field = gaussian_filter(rng.standard_normal(SHAPE), sigma, mode="nearest")
    return np.asarray(height * (field - field.mean()) / field.std())


def _rotation(rng: np.random.Generator, largest: float) -> Field:
    """Turns about x, y and z, each at most `largest` radians."""
    matrix = np.eye(3)
    for axis, angle in enumerate(rng.uniform(-largest, largest, 3)):
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def _unit(vector: Vector) -> Vector:
    return np.asarray(vector / np.sqrt((vector**2).sum()))


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """The largest piece: the uneven surface may split off a few voxels."""
    pieces, _ = label(mask)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return np.asarray(pieces == sizes.argmax(), dtype=np.uint8)


def _grid_mm() -> Field:
    """(3, x, y, z): position of every voxel's centre from the middle of the volume, mm."""
    axes = [SPACING_MM * (np.arange(n) - (n - 1) / 2) for n in SHAPE]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _affine() -> Field:
    affine = np.diag((SPACING_MM, SPACING_MM, SPACING_MM, 1.0))
    affine[:3, 3] = [-SPACING_MM * (n - 1) / 2 for n in SHAPE]
    return affine


def _write(path: Path, array: NDArray[np.int16] | NDArray[np.uint8], affine: Field) -> None:
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    data = gzip.compress(image.to_bytes(), compresslevel=6, mtime=0)  # no date inside: equal scans, equal files
    write_atomic(path, lambda file: file.write(data))
