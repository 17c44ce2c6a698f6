"""Hard labels from a teacher's probabilities: the two readings of SSCL's "common threshold" (sec. 3.4, Fig. 6)."""

import numpy as np
import torch
from jaxtyping import Float, Int64
from scipy import ndimage
from torch import Tensor

from sscl.core.plan import IGNORE


def foreground_labels(p: Float[Tensor, "b classes x y z"], threshold: float) -> Int64[Tensor, "b x y z"]:
    """Foreground where 1 - p_0 > threshold, labelled with the likeliest organ; everything else is background."""
    return (1 + p[:, 1:].argmax(1)) * (1 - p[:, 0] > threshold)


def confident_labels(p: Float[Tensor, "b classes x y z"], threshold: float) -> Int64[Tensor, "b x y z"]:
    """The likeliest class; voxels whose largest probability is not above the threshold take no part in the loss."""
    confidence, label = p.max(1)
    return label.masked_fill(confidence <= threshold, IGNORE)


def largest_components(label: Int64[Tensor, "b x y z"]) -> Int64[Tensor, "b x y z"]:
    """Of each organ of each crop the largest component, 26-connected; the others become background. On the CPU."""
    crops = label.cpu().numpy()
    kept = np.zeros_like(crops)
    for crop, result in zip(crops, kept, strict=True):
        for organ in np.unique(crop[crop > 0]):
            components, _ = ndimage.label(crop == organ, structure=np.ones((3, 3, 3)))
            result[components == np.bincount(components[components > 0]).argmax()] = organ
    return torch.from_numpy(kept).to(label.device)
