"""SASSNet: maps of unlabelled images must look to a critic like maps of labelled ones.

Li, Zhang, He: "Shape-aware Semi-supervised 3D Semantic Segmentation for Medical Images", MICCAI 2020. The network says
the mask and the signed distance to its surface; the critic sees the distances and the image.
"""

from collections.abc import Iterator, Mapping

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import TENTH_EVERY_2500, Literature, Method, MethodConfig, Objective, Optimiser, Phase, Schedule
from sscl.nets.discriminator import PairCritic, evaluating
from sscl.nets.vnet import VNet
from sscl.ops.adversarial import critic_loss, fooling_loss
from sscl.ops.distance_map import distance_loss, distribution, two_tasks
from sscl.ops.losses import organ_dice_loss
from sscl.ops.ramps import sigmoid_rampup


class SASSNetConfig(MethodConfig):
    """The constants of the paper's code."""

    distance: NonNegativeFloat = 0.3
    """Weight of the regression of distances."""
    adversarial: NonNegativeFloat = 0.01
    """Weight of the adversarial term at the end of its ramp, with 16 masks; 0.015 with 8 (README of the code)."""
    ramp_share: PositiveFloat = 1.0
    """The ramp's length as a part of the run: 6000 of 6000 iterations."""
    critic_width: PositiveInt = 64
    """Channels of the critic's first convolution; doubled at each of the three further ones."""
    critic: Optimiser = Optimiser(
        kind="adam", learning_rate=1e-4, beta2=0.99, weight_decay=0, schedule=Schedule(kind="constant")
    )
    """Adam, 1e-4, betas 0.9 and 0.99, constant."""


class SASSNet(Method):
    """A V-Net with two heads, and its critic."""

    Config = SASSNetConfig
    literature = Literature(iterations=6000, settings=TENTH_EVERY_2500)
    targets = ("signed_distance",)
    config: SASSNetConfig

    def __init__(self, config: SASSNetConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        organs = num_classes - 1
        self.student = VNet(in_channels, 2 * organs, config.width, config.dropout)
        self.critic = PairCritic(organs, in_channels, config.critic_width)

    @classmethod
    def phases(cls, config: SASSNetConfig) -> tuple[Phase, ...]:
        """One phase of 2 + 2 crops."""
        return (Phase(name="train", share=1, batch=(2, 2)),)

    def players(self) -> Mapping[str, nn.Module]:
        """The network and its critic."""
        return {"student": self.student, "critic": self.critic}

    def optimisers(self) -> Mapping[str, Optimiser]:
        """SGD for the network, Adam for the critic."""
        return {"student": self.config.optimiser, "critic": self.config.critic}

    def tested(self) -> tuple[str, ...]:
        """The network."""
        return ("student",)

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        """L = L_dice + 0.3 L_distance + w(t) L_fooling, of masks p = sigmoid(z) and maps s = tanh(z'); then the critic.

        L_dice = 1 - Dice(p, y), labelled half
        L_distance = mean (s - signed distance of y)^2, labelled half
        L_fooling = CE(D(s, x), "labelled"), unlabelled half, D without dropout
        w(t) = 0.01 exp(-5 (1 - t/T)^2)
        L_critic = CE(D(s, x), which half), both halves, s from the new network without dropout and not to be moved
        """
        c = self.config
        p, s = two_tasks(self.student(batch.images))
        (p_l, _), (s_l, s_u) = batch.split(p), batch.split(s)
        with evaluating(self.critic):
            verdict_u = self.critic(s_u, batch.unlabelled)
        terms = {
            "dice": organ_dice_loss(p_l, batch.label),
            "distance": distance_loss(s_l, batch.targets["signed_distance"], batch.label),
            "fooling": fooling_loss(verdict_u),
        }
        weight = c.adversarial * sigmoid_rampup(clock.iteration, c.ramp_share * clock.total)
        loss = terms["dice"] + c.distance * terms["distance"] + weight * terms["fooling"]
        yield Objective("student", loss, terms, {"weight": weight})

        with torch.no_grad(), evaluating(self.student):
            _, s = two_tasks(self.student(batch.images))
        told = critic_loss(*batch.split(self.critic(s, batch.images)))
        yield Objective("critic", told, {"halves": told})

    def predict(self, images: Tensor) -> Tensor:
        """The mask head: one sigmoid per organ, made a distribution; distances and critic are not used."""
        p, _ = two_tasks(self.student(images))
        return distribution(p)
