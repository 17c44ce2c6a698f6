"""How unsure a set of predictions is."""

from jaxtyping import Float
from torch import Tensor


def entropy(probabilities: Float[Tensor, "b classes x y z"]) -> Float[Tensor, "b 1 x y z"]:
    """-sum p ln(p + 1e-6), natural logarithm (UA-MT)."""
    return -(probabilities * (probabilities + 1e-6).log()).sum(1, keepdim=True)
