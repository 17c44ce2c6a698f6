"""ADVENT: on unlabelled scans the network shall be sure, told directly or by a critic.

Vu, Jain, Bucher, Cord, Perez: "ADVENT: Adversarial Entropy Minimization for Domain Adaptation in Semantic
Segmentation", CVPR 2019. What SSCL's Table 2 calls ADVNET is most likely its direct form, entropy minimisation; the
adversarial form takes labelled scans for the paper's source and unlabelled ones for its target.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from sscl.core.batch import Batch, Clock
from sscl.core.method import Literature, Method, MethodConfig, Objective, Optimiser, Phase
from sscl.nets.discriminator import PatchCritic
from sscl.nets.vnet import VNet
from sscl.ops.losses import cross_entropy, dice_loss_with_background, masked_mean, voxels_that_count
from sscl.ops.ramps import sigmoid_rampup
from sscl.ops.uncertainty import relative_entropy, self_information

SOURCE, TARGET = 0.0, 1.0
"""The critic's answers: labelled, unlabelled."""


class AdventConfig(MethodConfig):
    """Direct form: the constants of its 3-D code, SSL4MIS. Adversarial form: those of ADVENT's own code."""

    form: Literal["minent", "adversarial"] = "minent"
    """Entropy as a loss, or a critic that tells the halves apart by their entropies."""
    supervised_weight: PositiveFloat = 0.5
    """0.5 (CE + Dice)."""
    entropy: NonNegativeFloat = 0.1
    """`minent`: weight of the entropy at the end of its ramp (SSL4MIS; ADVENT has 0.001, without a ramp)."""
    ramp_share: PositiveFloat = 1.0
    """`minent`: the ramp's length as a part of the run: 30k of 30k iterations."""
    adversarial: NonNegativeFloat = 0.001
    """`adversarial`: weight of the adversarial loss, without a ramp (ADVENT's lambda_adv)."""
    critic_width: PositiveInt = 64
    """`adversarial`: channels of the critic's first convolution; doubled at each of the three next ones."""
    critic: Optimiser = Optimiser(kind="adam", learning_rate=1e-4, beta2=0.99, weight_decay=0)
    """`adversarial`: Adam, 1e-4, betas 0.9 and 0.99, poly."""

    acts_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "entropy": {"form": "minent"},
        "ramp_share": {"form": "minent"},
        "adversarial": {"form": "adversarial"},
        "critic_width": {"form": "adversarial"},
        "critic": {"form": "adversarial"},
    }


class Advent(Method):
    """One network, and in the adversarial form its critic."""

    Config = AdventConfig
    literature = Literature(iterations=30_000)
    config: AdventConfig

    def __init__(self, config: AdventConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        self.student = VNet(in_channels, num_classes, config.width, config.dropout)
        self.critic = PatchCritic(num_classes, config.critic_width) if config.form == "adversarial" else None

    @classmethod
    def phases(cls, config: AdventConfig) -> tuple[Phase, ...]:
        """One phase of 2 + 2 crops."""
        return (Phase(name="train", share=1, batch=(2, 2)),)

    def players(self) -> Mapping[str, nn.Module]:
        """The network, and its critic if it has one."""
        return {"student": self.student} if self.critic is None else {"student": self.student, "critic": self.critic}

    def optimisers(self) -> Mapping[str, Optimiser]:
        """SGD for the network, Adam for the critic."""
        return {"student": self.config.optimiser, "critic": self.config.critic}

    def tested(self) -> tuple[str, ...]:
        """The network."""
        return ("student",)

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        """L = 0.5 (CE + Dice) + w(t) L_entropy; or in the adversarial form + 0.001 L_fooling, and then the critic D.

        L_entropy = mean of -sum_c p_c ln p_c / ln C, both halves, p = softmax(z) over C classes
        w(t) = 0.1 exp(-5 (1 - t/T)^2)
        I_c = -p_c log2 p_c / log2 C, the self-information that D sees
        L_fooling = BCE(D(I), "labelled"), unlabelled half
        L_D = (BCE(D(I), "labelled"), labelled half + BCE(D(I), "unlabelled"), unlabelled half) / 2, I not to be moved
        """
        c = self.config
        z = self.student(batch.images).float()
        z_l, p = batch.split(z)[0], z.softmax(1)
        terms = {"ce": cross_entropy(z_l, batch.label), "dice": dice_loss_with_background(z_l.softmax(1), batch.label)}
        supervised = c.supervised_weight * (terms["ce"] + terms["dice"])

        if self.critic is None:
            terms["entropy"] = mean_entropy(p, batch)
            weight = c.entropy * sigmoid_rampup(clock.iteration, c.ramp_share * clock.total)
            yield Objective("student", supervised + weight * terms["entropy"], terms, {"weight": weight})
            return

        i_l, i_u = batch.split(self_information(p))
        terms["fooling"] = verdict_loss(self.critic(i_u), SOURCE)
        yield Objective("student", supervised + c.adversarial * terms["fooling"], terms)
        halves = (verdict_loss(self.critic(i_l.detach()), SOURCE) + verdict_loss(self.critic(i_u.detach()), TARGET)) / 2
        yield Objective("critic", halves, {"halves": halves})

    def predict(self, images: Tensor) -> Tensor:
        """Softmax of the network."""
        return self.student(images).softmax(1)


def mean_entropy(p: Float[Tensor, "b classes x y z"], batch: Batch) -> Float[Tensor, ""]:
    """Entropy as a share of the largest possible, mean over all voxels of both halves that a loss may look at."""
    return masked_mean(relative_entropy(p), voxels_that_count(batch))


def verdict_loss(verdict: Float[Tensor, "b 1 x y z"], answer: float) -> Float[Tensor, ""]:
    """Binary cross-entropy of the critic's logits with one answer for all patches."""
    return functional.binary_cross_entropy_with_logits(verdict, torch.full_like(verdict, answer))
