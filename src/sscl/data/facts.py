"""What is remembered of a case: small enough to be kept for thousands, enough to compare them all with each other."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sscl.data.check import Pair
from sscl.data.placement import Place, place
from sscl.volumes.volume import Volume

_SAMPLE = 1024


@dataclass(frozen=True)
class MaskFacts:
    """Of a mask."""

    values: tuple[int, ...]
    """The values that it holds, without `ignore`."""
    voxels: str
    """Digest of the values."""
    place: Place | None


@dataclass(frozen=True)
class Facts:
    """Of a scan and, where it was opened, its mask; of voxels in RAS+, so that a copy in another format, compression,
    number type or axis order has the same.
    """

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    lowest: float
    """Smallest intensity."""
    channels: tuple[str, ...]
    """Digest of each channel's intensities as float32."""
    sample: NDArray[np.float16]
    """Some evenly spaced intensities, mean 0, length 1: the product of two is their correlation."""
    mask: MaskFacts | None

    @property
    def voxels(self) -> str:
        """Digest of the intensities."""
        return " ".join(self.channels)


def facts_of(image: Volume, pair: Pair | None) -> Facts:
    """The facts of a scan, and of its mask where there is one on the same grid."""
    flat = image.array.reshape(-1)
    sample = flat[:: max(1, flat.size // _SAMPLE)].astype(np.float64)
    sample -= sample.mean()
    sample /= max(float(np.linalg.norm(sample)), 1e-12)
    return Facts(
        shape=image.shape,
        spacing_mm=image.spacing_mm,
        lowest=float(image.array.min()),
        channels=tuple(_digest(channel) for channel in image.array),
        sample=sample.astype(np.float16),
        mask=_mask(pair) if pair else None,
    )


def _mask(pair: Pair) -> MaskFacts:
    label = pair.label.array[0]
    foreground = (label > 0) & (label != (pair.ignore_label or 0))
    on_scan = pair.image.shape == pair.label.shape
    return MaskFacts(pair.values, _digest(label), place(pair.image.array[0], foreground) if on_scan else None)


def _digest(array: NDArray[Any]) -> str:
    """Plane by plane, so that no copy of a large scan is made."""
    digest = hashlib.sha256(f"{array.shape} ".encode())
    for plane in array.reshape(-1, *array.shape[-2:]):
        digest.update((np.asarray(plane, dtype=np.float32) + np.float32(0)).tobytes())  # -0 is 0
    return digest.hexdigest()


# As JSON


def to_json(facts: Facts) -> dict[str, Any]:
    """Plain values."""
    mask = facts.mask
    return {
        "shape": list(facts.shape),
        "spacing_mm": list(facts.spacing_mm),
        "lowest": facts.lowest,
        "channels": list(facts.channels),
        "sample": _text(facts.sample),
        "mask": mask and {"values": list(mask.values), "voxels": mask.voxels, "place": _place_to_json(mask.place)},
    }


def from_json(values: Mapping[str, Any]) -> Facts:
    """What `to_json` wrote.

    Raises:
        ValueError, KeyError, TypeError: something else.
    """
    (x, y, z), (dx, dy, dz) = values["shape"], values["spacing_mm"]
    mask = values["mask"]
    if mask is not None:
        mask = MaskFacts(tuple(mask["values"]), mask["voxels"], _place_from_json(mask["place"]))
    sample = _array(values["sample"], np.float16)
    return Facts((x, y, z), (dx, dy, dz), values["lowest"], tuple(values["channels"]), sample, mask)


def _place_to_json(place: Place | None) -> list[str] | None:
    return None if place is None else [_text(place.blocks), _text(place.from_middle), _text(place.from_content)]


def _place_from_json(values: Sequence[str] | None) -> Place | None:
    if values is None:
        return None
    blocks, from_middle, from_content = values
    length = round(len(_array(blocks, np.float32)) ** (1 / 3))
    cube = _array(blocks, np.float32).reshape(length, length, length)
    return Place(cube, _array(from_middle, np.float64), _array(from_content, np.float64))


def _text(array: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def _array(text: str, dtype: type[np.generic]) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype)
