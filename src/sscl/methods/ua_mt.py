"""UA-MT: a mean teacher that is believed only where it is sure.

Yu, Wang, Li, Fu, Heng: "Uncertainty-aware Self-ensembling Model for Semi-supervised 3D Left Atrium Segmentation",
MICCAI 2019. The target is one noisy pass; the mask comes from the entropy of the mean of T further passes.
"""

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import TENTH_EVERY_2500, Literature, Method, MethodConfig, Objective, Phase
from sscl.nets.vnet import VNet
from sscl.ops.ema import ema_, ema_alpha
from sscl.ops.losses import cross_entropy, dice_loss, masked_mse
from sscl.ops.perturb import gaussian_noise
from sscl.ops.ramps import sigmoid_rampup
from sscl.ops.uncertainty import entropy


class UAMTConfig(MethodConfig):
    """The constants of the paper and its code."""

    supervised_weight: PositiveFloat = 0.5
    """0.5 (CE + Dice)."""
    consistency: NonNegativeFloat = 0.1
    """lambda(t) at the end of its ramp."""
    ramp_share: PositiveFloat = 1.0
    """The ramp's length as a part of the run: 6000 of 6000 iterations."""
    alpha: float = Field(default=0.99, ge=0, le=1)
    """EMA of the teacher."""
    ema_warmup: bool = True
    """alpha = min(1 - 1/(t+1), alpha)."""
    noise: NonNegativeFloat = 0.1
    """Standard deviation of the teacher's input noise, clipped at twice that."""
    passes: PositiveInt = 8
    """T stochastic passes for the uncertainty."""
    mask: bool = True
    """Off: every voxel counts (a third party saw no loss of accuracy)."""


class UAMT(Method):
    """Student and teacher."""

    Config = UAMTConfig
    literature = Literature(iterations=6000, settings=TENTH_EVERY_2500)
    config: UAMTConfig

    def __init__(self, config: UAMTConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        self.student = VNet(in_channels, num_classes, config.width, config.dropout)
        self.teacher = deepcopy(self.student).requires_grad_(False)

    @classmethod
    def phases(cls, config: UAMTConfig) -> tuple[Phase, ...]:
        """One phase of 2 + 2 crops."""
        return (Phase(name="train", share=1, batch=(2, 2)),)

    def players(self) -> Mapping[str, nn.Module]:
        """The student."""
        return {"student": self.student}

    def tested(self) -> tuple[str, ...]:
        """The student."""
        return ("student",)

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        """L = 0.5 (CE + Dice) + 0.1 r(t) L_con

        L_con = sum m (p - p_t)^2 / (C sum m), unlabelled half; p: the student's, p_t: of one noisy pass of the teacher
        m = [H(mu) < (0.75 + 0.25 r(t)) ln C], mu: mean probabilities of 8 more such passes, H the entropy
        r(t) = exp(-5 (1 - t/T)^2)
        """
        c, progress = self.config, sigmoid_rampup(clock.iteration, self.config.ramp_share * clock.total)
        p_t = self._teach(batch.unlabelled)
        mu = torch.stack([self._teach(batch.unlabelled) for _ in range(c.passes)]).mean(0)
        u = entropy(mu)
        threshold = (0.75 + 0.25 * progress) * math.log(mu.shape[1])  # U_max = ln C
        sure = u < threshold if c.mask else torch.ones_like(u, dtype=torch.bool)
        z_l, z_u = batch.split(self.student(batch.images).float())
        terms = {
            "ce": cross_entropy(z_l, batch.label),
            "dice": dice_loss(z_l.softmax(1), batch.label),
            "consistency": masked_mse(z_u.softmax(1), p_t, sure),
        }
        loss = c.supervised_weight * (terms["ce"] + terms["dice"]) + c.consistency * progress * terms["consistency"]
        yield Objective("student", loss, terms, {"sure": sure.float().mean()})
        ema_(self.teacher, self.student, ema_alpha(clock.iteration, c.alpha, c.ema_warmup))

    def predict(self, images: Tensor) -> Tensor:
        """Softmax of the student."""
        return self.student(images).softmax(1)

    @torch.no_grad()
    def _teach(self, x_u: Tensor) -> Tensor:
        """One noisy pass with dropout."""
        return self.teacher(gaussian_noise(x_u, self.config.noise, 2 * self.config.noise)).float().softmax(1)
