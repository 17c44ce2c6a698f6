"""Noise that a method adds to its inputs."""

import torch
from torch import Tensor


def gaussian_noise(images: Tensor, sigma: float = 0.1, limit: float = 0.2) -> Tensor:
    """images + clip(sigma * N(0, 1), -limit, limit): the noise of UA-MT and its successors."""
    return images + torch.clamp(torch.randn_like(images) * sigma, -limit, limit)


def copy_paste(images: Tensor, label: Tensor, share: float = 2 / 3) -> tuple[Tensor, Tensor]:
    """Each crop keeps its frame and gets the next one's contents in a random box of `share` of each side.

    BCP's mixing of labelled with labelled crops (CVPR 2023). images "b c x y z", label "b x y z".
    """
    sizes = [round(share * n) for n in images.shape[2:]]
    starts = [int(torch.randint(0, n - size + 1, ())) for n, size in zip(images.shape[2:], sizes, strict=True)]
    x, y, z = (slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
    mixed, mixed_label = images.clone(), label.clone()
    mixed[..., x, y, z] = images.roll(1, 0)[..., x, y, z]
    mixed_label[..., x, y, z] = label.roll(1, 0)[..., x, y, z]
    return mixed, mixed_label
