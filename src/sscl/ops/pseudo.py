"""Hard labels from a teacher's probabilities: the two readings of SSCL's "common threshold" (sec. 3.4, Fig. 6)."""

from jaxtyping import Float, Int64
from torch import Tensor

from sscl.core.plan import IGNORE


def foreground_labels(p: Float[Tensor, "b classes x y z"], threshold: float) -> Int64[Tensor, "b x y z"]:
    """Foreground where 1 - p_0 > threshold, labelled with the likeliest organ; everything else is background."""
    return (1 + p[:, 1:].argmax(1)) * (1 - p[:, 0] > threshold)


def confident_labels(p: Float[Tensor, "b classes x y z"], threshold: float) -> Int64[Tensor, "b x y z"]:
    """The likeliest class; voxels whose largest probability is not above the threshold take no part in the loss."""
    confidence, label = p.max(1)
    return label.masked_fill(confidence <= threshold, IGNORE)
