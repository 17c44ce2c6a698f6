"""Sliding-window prediction with whole-number strides."""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

Size = tuple[int, int, int]


def window_starts(length: int, patch: int, stride: int) -> list[int]:
    """Where windows start along an axis: every `stride` voxels, the last one flush with the end.

    ceil((length - patch) / stride) + 1 windows, as in the literature's code; one if the axis is not longer.
    """
    count = math.ceil(max(0, length - patch) / stride) + 1
    return [min(index * stride, max(0, length - patch)) for index in range(count)]


@torch.no_grad()
def sliding_window(
    predict: Callable[[Tensor], Tensor],
    image: Float[Tensor, "c x y z"],
    patch: Size,
    stride: Size,
    weighting: Literal["average", "gaussian"] = "average",
    batch: int = 4,
    device: torch.device | None = None,
) -> Float[Tensor, "classes x y z"]:
    """Probabilities of the whole image, float32 on the CPU: the weighted mean over all windows at each voxel.

    predict: "b c x y z" to probabilities "b classes x y z". An image smaller than the window is padded with zeros on
    both sides, the extra voxel at the end, and the result cut back. batch: windows a call.
    """
    device = device or image.device
    pads = [max(0, p - n) for p, n in zip(patch, image.shape[1:], strict=True)]
    before = [pad // 2 for pad in pads]
    padded = functional.pad(
        image, [side for pad, b in zip(reversed(pads), reversed(before), strict=True) for side in (b, pad - b)]
    )
    starts = list(product(*(map(window_starts, padded.shape[1:], patch, stride))))
    weight = _weight(patch, weighting)
    total = torch.zeros(())
    seen = torch.zeros(padded.shape[1:])
    for first in range(0, len(starts), batch):
        boxes = [_box(start, patch) for start in starts[first : first + batch]]
        windows = torch.stack([padded[(slice(None), *box)] for box in boxes])
        windows = windows.to(device, memory_format=torch.channels_last_3d)
        probabilities = predict(windows).float().cpu()
        if total.ndim == 0:
            total = torch.zeros(probabilities.shape[1], *padded.shape[1:])
        for box, p in zip(boxes, probabilities, strict=True):
            total[(slice(None), *box)] += p * weight
            seen[box] += weight
    inside = tuple(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True))
    return (total / seen)[(slice(None), *inside)]


def _box(start: Sequence[int], patch: Size) -> tuple[slice, ...]:
    return tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))


def _weight(patch: Size, weighting: str) -> Float[Tensor, "x y z"]:
    """Ones, or a Gaussian of an eighth of the window, never zero."""
    if weighting == "average":
        return torch.ones(patch)
    axes = [torch.exp(-0.5 * ((torch.arange(n) - (n - 1) / 2) / (n / 8)) ** 2) for n in patch]
    gaussian = axes[0][:, None, None] * axes[1][:, None] * axes[2]
    return gaussian.clamp(min=1e-3)
