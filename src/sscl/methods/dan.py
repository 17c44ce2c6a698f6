"""DAN: an evaluation network tells segmentations of annotated scans from those of unannotated ones.

Zhang, Yang, Chen, Fredericksen, Hughes, Chen: "Deep Adversarial Networks for Biomedical Image Segmentation Utilizing
Unannotated Images", MICCAI 2017, in the 3-D form of SSL4MIS. The evaluation network, here the critic, sees the
probabilities of all classes and the image.
"""

from collections.abc import Iterator, Mapping

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import Literature, Method, MethodConfig, Objective, Optimiser, Phase, Schedule
from sscl.nets.discriminator import PairCritic, evaluating
from sscl.nets.vnet import VNet
from sscl.ops.adversarial import critic_loss, fooling_loss
from sscl.ops.losses import cross_entropy, dice_loss_with_background
from sscl.ops.ramps import sigmoid_rampup


class DANConfig(MethodConfig):
    """The constants of SSL4MIS; there is no code of the paper's."""

    supervised_weight: PositiveFloat = 0.5
    """0.5 (CE + Dice)."""
    adversarial: NonNegativeFloat = 0.1
    """Weight of the adversarial loss at the end of its ramp."""
    ramp_share: PositiveFloat = 1.0
    """The ramp's length as a part of the run: 30k of 30k iterations."""
    critic_width: PositiveInt = 64
    """Channels of the critic's first convolution; doubled at each of the three further ones."""
    critic: Optimiser = Optimiser(
        kind="adam", learning_rate=1e-4, beta2=0.99, weight_decay=0, schedule=Schedule(kind="constant")
    )
    """Adam, 1e-4, betas 0.9 and 0.99, constant."""


class DAN(Method):
    """Segmentation network and evaluation network."""

    Config = DANConfig
    literature = Literature(iterations=30_000)
    config: DANConfig

    def __init__(self, config: DANConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        self.student = VNet(in_channels, num_classes, config.width, config.dropout)
        self.critic = PairCritic(num_classes, in_channels, config.critic_width)

    @classmethod
    def phases(cls, config: DANConfig) -> tuple[Phase, ...]:
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
        """L = 0.5 (CE + Dice) + w(t) L_fooling, with p = softmax(z); then the critic E.

        L_fooling = CE(E(p, x), "labelled"), unlabelled half, E without dropout
        w(t) = 0.1 exp(-5 (1 - t/T)^2)
        L_E = CE(E(p, x), which half), both halves, p from the new network without dropout and not to be moved
        """
        c = self.config
        z_l, z_u = batch.split(self.student(batch.images).float())
        with evaluating(self.critic):
            verdict_u = self.critic(z_u.softmax(1), batch.unlabelled)
        terms = {
            "ce": cross_entropy(z_l, batch.label),
            "dice": dice_loss_with_background(z_l.softmax(1), batch.label),
            "fooling": fooling_loss(verdict_u),
        }
        weight = c.adversarial * sigmoid_rampup(clock.iteration, c.ramp_share * clock.total)
        loss = c.supervised_weight * (terms["ce"] + terms["dice"]) + weight * terms["fooling"]
        yield Objective("student", loss, terms, {"weight": weight})

        with torch.no_grad(), evaluating(self.student):
            p = self.student(batch.images).float().softmax(1)
        told = critic_loss(*batch.split(self.critic(p, batch.images)))
        yield Objective("critic", told, {"halves": told})

    def predict(self, images: Tensor) -> Tensor:
        """Softmax of the network; the critic is not used."""
        return self.student(images).softmax(1)
