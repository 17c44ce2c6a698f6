"""Losses. Probabilities are "b classes x y z", labels "b x y z" with class 0 the background and IGNORE left out."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from sscl.core.plan import IGNORE

SMOOTH = 1e-5
"""Added above and below in Dice (UA-MT's code and all that came after)."""


def dice_loss(
    probabilities: Float[Tensor, "b classes x y z"], label: Int64[Tensor, "b x y z"], all_classes: bool = False
) -> Float[Tensor, ""]:
    """1 - Dice, one sum over the whole sub-batch, mean over classes.

    Foreground classes with squared denominators, 1 - 2 sum(py) / (sum(p^2) + sum(y^2)): UA-MT's form.
    all_classes: the background as well and plain denominators: BCP's form.
    """
    counted = (label != IGNORE).unsqueeze(1)
    y = functional.one_hot(label.clamp(min=0), probabilities.shape[1]).movedim(-1, 1).to(probabilities.dtype) * counted
    p = probabilities * counted
    if not all_classes:
        p, y = p[:, 1:], y[:, 1:]
    axes = (0, 2, 3, 4)
    power = 1 if all_classes else 2
    overlap = 2 * (p * y).sum(axes) + SMOOTH
    total = p.pow(power).sum(axes) + y.sum(axes) + SMOOTH  # y is 0 or 1: its square is itself
    return (1 - overlap / total).mean()


def cross_entropy(logits: Float[Tensor, "b classes x y z"], label: Int64[Tensor, "b x y z"]) -> Float[Tensor, ""]:
    """Mean over the voxels that count; 0, not NaN, where none does."""
    total = functional.cross_entropy(logits, label, ignore_index=IGNORE, reduction="sum")
    return total / (label != IGNORE).sum().clamp(min=1)


def dice_ce(
    logits: Float[Tensor, "b classes x y z"], label: Int64[Tensor, "b x y z"], all_classes: bool = False
) -> Float[Tensor, ""]:
    """Dice + cross-entropy, the "DICE + CE" of SSCL's equations 7 and 8, in float32."""
    logits = logits.float()
    return dice_loss(logits.softmax(1), label, all_classes) + cross_entropy(logits, label)


def mse(prediction: Tensor, target: Tensor) -> Float[Tensor, ""]:
    """Mean squared error in float32."""
    return functional.mse_loss(prediction.float(), target.float())


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Float[Tensor, ""]:
    """Squared error averaged over the voxels of `mask` ("b 1 x y z") and over the channels; 0 where the mask is empty.

    UA-MT: sum(m (p_s - p_t)^2) / (C sum(m)).
    """
    mask = mask.to(prediction.dtype)
    return ((prediction - target).square() * mask).sum() / (prediction.shape[1] * mask.sum()).clamp(
        min=torch.finfo(mask.dtype).tiny
    )
