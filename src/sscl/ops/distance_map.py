"""Signed distance maps: the second target of SASSNet, DTC and Tripled-UA, and the way back from them to classes."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from sscl.core.plan import IGNORE
from sscl.ops.losses import masked_mse


def signed_distance(label: Int64[Tensor, "b x y z"], num_classes: int) -> Float[Tensor, "b organs x y z"]:
    """For each organ -1 at its deepest voxel, 0 on its outermost layer, 1 farthest away; IGNORE counts as outside.

    s = out / max(out) - in / max(in) in the crop, and 0 on the organ's boundary voxels (SASSNet's code); distances in
    voxels. An organ that is not in the crop gives 0 everywhere, as there; one that fills it, where that code divides 0
    by 0, -in / max(in), measured to the crop's edge.
    """
    organs = label.cpu().numpy()[:, None] == np.arange(1, num_classes)[:, None, None, None]
    maps = np.zeros(organs.shape, np.float32)
    for place in np.ndindex(organs.shape[:2]):
        maps[place] = _signed_distance(organs[place])
    return torch.from_numpy(maps).to(label.device)


def _signed_distance(organ: NDArray[np.bool_]) -> NDArray[np.float32]:
    if not organ.any():
        return np.zeros(organ.shape, np.float32)
    if organ.all():
        within = ndimage.distance_transform_edt(np.pad(organ, 1))[1:-1, 1:-1, 1:-1]
        return (-within / within.max()).astype(np.float32)
    within = ndimage.distance_transform_edt(organ)
    outside = ndimage.distance_transform_edt(~organ)
    # face neighbours, and nothing beyond the crop counts as outside: skimage's find_boundaries(mode="inner")
    inner = ndimage.binary_erosion(organ, border_value=1)
    signed = outside / outside.max() - within / within.max()
    signed[organ & ~inner] = 0
    return signed.astype(np.float32)


def two_tasks(logits: Float[Tensor, "b two_organs x y z"]) -> tuple[Tensor, Tensor]:
    """Output of a V-Net with two heads, masks before maps: a sigmoid mask and a tanh distance map for each organ."""
    masks, maps = logits.float().chunk(2, 1)
    return masks.sigmoid(), maps.tanh()


def distance_loss(
    maps: Float[Tensor, "b organs x y z"], target: Float[Tensor, "b organs x y z"], label: Int64[Tensor, "b x y z"]
) -> Float[Tensor, ""]:
    """Mean squared error of predicted signed distances over organs and the voxels that are not IGNORE."""
    return masked_mse(maps, target, (label != IGNORE).unsqueeze(1))


def distribution(organs: Float[Tensor, "b organs x y z"]) -> Float[Tensor, "b classes x y z"]:
    """One probability per organ, each of its own sigmoid, to a distribution: p_0 = prod(1 - p_c), then normalised."""
    background = (1 - organs).prod(1, keepdim=True)
    return functional.normalize(torch.cat([background, organs], 1), p=1, dim=1)
