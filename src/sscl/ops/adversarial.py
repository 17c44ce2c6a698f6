"""The game of SASSNet and DAN: a critic tells labelled from unlabelled crops, the network makes that hard."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

UNLABELLED, LABELLED = 0, 1
"""The critic's two answers, as places of its logits."""


def critic_loss(verdict_l: Float[Tensor, "l 2"], verdict_u: Float[Tensor, "u 2"]) -> Float[Tensor, ""]:
    """Cross-entropy of the critic's logits with the half that each row is of, mean over all rows."""
    rows = len(verdict_l) + len(verdict_u)
    return (_summed(verdict_l, LABELLED) + _summed(verdict_u, UNLABELLED)) / rows


def fooling_loss(verdict_u: Float[Tensor, "u 2"]) -> Float[Tensor, ""]:
    """Cross-entropy of the critic's logits for unlabelled rows with "labelled", mean over rows; 0 without rows."""
    return _summed(verdict_u, LABELLED) / max(len(verdict_u), 1)


def _summed(verdict: Tensor, answer: int) -> Tensor:
    target = verdict.new_full((len(verdict),), answer).long()
    return functional.cross_entropy(verdict.float(), target, reduction="sum")
