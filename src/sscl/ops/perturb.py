"""Noise that a method adds to its inputs."""

import math
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

Box: TypeAlias = tuple[slice, slice, slice]


def gaussian_noise(images: Tensor, sigma: float = 0.1, limit: float = 0.2) -> Tensor:
    """images + clip(sigma * N(0, 1), -limit, limit): the noise of UA-MT and its successors."""
    return images + torch.clamp(torch.randn_like(images) * sigma, -limit, limit)


def copy_paste(images: Tensor, label: Tensor, share: float = 2 / 3) -> tuple[Tensor, Tensor]:
    """Each crop keeps its frame and gets the next one's contents in a random box of `share` of each side.

    BCP's mixing of labelled with labelled crops (CVPR 2023). images "b c x y z", label "b x y z".
    """
    box = random_box(images.shape[2:], [round(share * n) for n in images.shape[2:]])
    return pasted(images, images.roll(1, 0), box), pasted(label, label.roll(1, 0), box)


def random_box(shape: Sequence[int], sides: Sequence[int]) -> Box:
    """A box of these sides, every place in a crop of this shape equally likely."""
    starts = [int(torch.randint(0, n - side + 1, ())) for n, side in zip(shape, sides, strict=True)]
    x, y, z = (slice(start, start + side) for start, side in zip(starts, sides, strict=True))
    return x, y, z


def pasted(frame: Tensor, contents: Tensor, box: Box) -> Tensor:
    """A copy of `frame` that is `contents` inside the box: images or labels, "... x y z"."""
    mixed = frame.clone()
    mixed[..., box[0], box[1], box[2]] = contents[..., box[0], box[1], box[2]]
    return mixed


def random_blur(images: Tensor, probability: float, sigmas: tuple[float, float]) -> Tensor:
    """Each image, with this probability, smoothed by a Gaussian of a random width, in voxels: UCMT's views.

    images "b c x y z". Beyond the edge the last voxel goes on; beyond three of the largest widths the Gaussian is cut.
    """
    chosen, where = torch.rand(2, len(images), device=images.device)
    low, high = sigmas
    sigma = low + (high - low) * where
    radius = math.ceil(3 * high)
    offsets = torch.arange(-radius, radius + 1, device=images.device)
    taps = (-0.5 * (offsets / sigma[:, None]).square()).softmax(1)
    blurred = images
    for axis, length in enumerate(images.shape[2:], start=2):
        edge = [0] * 6
        edge[2 * (4 - axis)] = edge[2 * (4 - axis) + 1] = radius
        padded = functional.pad(blurred, edge, mode="replicate")
        blurred = torch.zeros_like(images)
        for start, tap in enumerate(taps.T):
            blurred = blurred + tap.view(-1, 1, 1, 1, 1) * padded.narrow(axis, start, length)
    return torch.where((chosen < probability).view(-1, 1, 1, 1, 1), blurred, images)
