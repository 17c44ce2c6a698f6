"""How unsure a set of predictions is."""

import math

from jaxtyping import Float
from torch import Tensor


def entropy(probabilities: Float[Tensor, "b classes x y z"]) -> Float[Tensor, "b 1 x y z"]:
    """-sum p ln(p + 1e-6), natural logarithm (UA-MT)."""
    return -(probabilities * (probabilities + 1e-6).log()).sum(1, keepdim=True)


def self_information(probabilities: Float[Tensor, "b classes x y z"]) -> Float[Tensor, "b classes x y z"]:
    """Each class's part of the entropy, as a part of the largest one: -p log(p + 1e-30) / log C (ADVENT, LG-ER-MT)."""
    return -probabilities * (probabilities + 1e-30).log() / math.log(probabilities.shape[1])


def relative_entropy(probabilities: Float[Tensor, "b classes x y z"]) -> Float[Tensor, "b 1 x y z"]:
    """The entropy as a part of the largest one, ln C: 0 to 1; of two classes it is the entropy in bits."""
    return entropy(probabilities) / math.log(probabilities.shape[1])
