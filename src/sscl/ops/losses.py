"""Losses. Probabilities are "b classes x y z", labels "b x y z" with class 0 the background and IGNORE left out."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.nn import functional

from sscl.core.batch import Batch
from sscl.core.plan import IGNORE

SMOOTH = 1e-5
"""Added above and below in Dice (UA-MT's code and all that came after)."""


Dice: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Probabilities and label to 1 - Dice."""


def dice_loss(probabilities: Float[Tensor, "b classes x y z"], label: Int64[Tensor, "b x y z"]) -> Float[Tensor, ""]:
    """1 - Dice of the foreground, one sum over the whole sub-batch, mean over classes, squared denominators:
    1 - 2 sum(py) / (sum(p^2) + sum(y^2)). UA-MT's form.
    """
    p, y = _counted(probabilities, label)
    return _dice(p[:, 1:], y[:, 1:], p[:, 1:].square()).mean()


def organ_dice_loss(organs: Float[Tensor, "b organs x y z"], label: Int64[Tensor, "b x y z"]) -> Float[Tensor, ""]:
    """As `dice_loss`, of one probability per organ, without a background channel (sigmoid heads)."""
    return dice_loss(functional.pad(organs, (0, 0) * 3 + (1, 0)), label)


def dice_loss_present(
    probabilities: Float[Tensor, "b classes x y z"], label: Int64[Tensor, "b x y z"]
) -> Float[Tensor, ""]:
    """As `dice_loss`, but the mean over the organs that the label holds; 0 where it holds none.

    Against an empty label the plain form is about 1 and falls only by predicting still less: a teacher that sees no
    organ yet would keep its student from ever seeing one.
    """
    p, y = _counted(probabilities, label)
    present = y[:, 1:].sum((0, 2, 3, 4)) > 0
    losses = _dice(p[:, 1:], y[:, 1:], p[:, 1:].square())
    return (losses * present).sum() / present.sum().clamp(min=1)


def dice_loss_with_background(
    probabilities: Float[Tensor, "b classes x y z"], label: Int64[Tensor, "b x y z"]
) -> Float[Tensor, ""]:
    """As `dice_loss`, but the mean over all classes, the background too; squared denominators: SSL4MIS's form."""
    p, y = _counted(probabilities, label)
    return _dice(p, y, p.square()).mean()


def dice_loss_all_classes(
    probabilities: Float[Tensor, "b classes x y z"], label: Int64[Tensor, "b x y z"]
) -> Float[Tensor, ""]:
    """As `dice_loss`, but of the background as well, and with plain denominators: BCP's form."""
    p, y = _counted(probabilities, label)
    return _dice(p, y, p).mean()


def voxels_that_count(batch: Batch) -> Bool[Tensor, "b 1 x y z"]:
    """Where a loss on both halves may look: all of the unlabelled images, of the labelled ones what is not IGNORE."""
    return (functional.pad(batch.label, (0, 0) * 3 + (0, len(batch.unlabelled))) != IGNORE).unsqueeze(1)


def dice_loss_of_each_crop(
    probabilities: Float[Tensor, "b classes x y z"], label: Int64[Tensor, "b x y z"]
) -> Float[Tensor, ""]:
    """As `dice_loss_all_classes`, but each crop by itself, then their mean: how BCP and CoraNet sum."""
    crops = zip(probabilities, label, strict=True)
    return torch.stack([dice_loss_all_classes(p.unsqueeze(0), y.unsqueeze(0)) for p, y in crops]).mean()


def _counted(probabilities: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and one-hot label, both 0 where the label is IGNORE."""
    counted = (label != IGNORE).unsqueeze(1)
    y = functional.one_hot(label.clamp(min=0), probabilities.shape[1]).movedim(-1, 1).to(probabilities.dtype)
    return probabilities * counted, y * counted


def _dice(p: Tensor, y: Tensor, volume: Tensor) -> Tensor:
    """One number a class. volume: what the prediction adds to the denominator; y adds itself, being its own square."""
    axes = (0, 2, 3, 4)
    overlap = 2 * (p * y).sum(axes) + SMOOTH
    return 1 - overlap / (volume.sum(axes) + y.sum(axes) + SMOOTH)


def cross_entropy(
    logits: Float[Tensor, "b classes x y z"],
    label: Int64[Tensor, "b x y z"],
    costs: Float[Tensor, " classes"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over the voxels that count; 0, not NaN, where none does. costs: factor of a voxel by its true class."""
    total = functional.cross_entropy(logits, label, costs, ignore_index=IGNORE, reduction="sum")
    return total / (label != IGNORE).sum().clamp(min=1)


def dice_ce(
    logits: Float[Tensor, "b classes x y z"], label: Int64[Tensor, "b x y z"], dice: Dice = dice_loss
) -> Float[Tensor, ""]:
    """Dice + cross-entropy, the "DICE + CE" of SSCL's equations 7 and 8, in float32."""
    logits = logits.float()
    return dice(logits.softmax(1), label) + cross_entropy(logits, label)


def mse(prediction: Tensor, target: Tensor) -> Float[Tensor, ""]:
    """Mean squared error in float32."""
    return functional.mse_loss(prediction.float(), target.float())


def masked_mse(prediction: Tensor, target: Tensor, mask: Tensor) -> Float[Tensor, ""]:
    """Squared error averaged over the voxels of `mask` ("b 1 x y z") and over the channels; 0 where the mask is empty.

    UA-MT: sum(m (p_s - p_t)^2) / (C sum(m)).
    """
    return masked_mean((prediction - target).square(), mask)


def masked_mean(values: Float[Tensor, "b c x y z"], mask: Shaped[Tensor, "b 1 x y z"]) -> Float[Tensor, ""]:
    """Mean over the voxels of `mask` and over the channels; 0 where the mask is empty."""
    mask = mask.to(values.dtype)
    return (values * mask).sum() / (values.shape[1] * mask.sum()).clamp(min=torch.finfo(mask.dtype).tiny)
