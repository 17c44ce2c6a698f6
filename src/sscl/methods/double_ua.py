"""Double-UA (DUWM), our reconstruction: a mean teacher that is believed the less, the less sure it is, in two ways.

Wang, Zhang, Tian, Zhong, Shi, Zhang, He: "Double-uncertainty weighted method for semi-supervised learning", MICCAI
2020. We know of no code of it, and of its text only the abstract was at hand: two uncertainties of the teacher, of
its segmentation and of its features among channels, weight the inconsistency on labelled and unlabelled images. Every
equation and number below is ours, so results of this file cannot be compared with published rows of Double-UA.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import TENTH_EVERY_2500, Literature, Method, MethodConfig, Objective, Phase
from sscl.nets.vnet import VNet
from sscl.ops.ema import ema_, ema_alpha
from sscl.ops.losses import cross_entropy, dice_loss, voxels_that_count
from sscl.ops.perturb import gaussian_noise
from sscl.ops.ramps import sigmoid_rampup
from sscl.ops.uncertainty import relative_entropy


class DoubleUAConfig(MethodConfig):
    """UA-MT's constants; `beta` and `u_term` are ours."""

    supervised_weight: PositiveFloat = 0.5
    """0.5 (CE + Dice)."""
    consistency: NonNegativeFloat = 0.1
    """Weight of L_con at the end of its ramp."""
    ramp_share: PositiveFloat = 1.0
    """The ramp's length as a part of the run."""
    alpha: float = Field(default=0.99, ge=0, le=1)
    """EMA of the teacher."""
    ema_warmup: bool = True
    """alpha = min(1 - 1/(t+1), alpha)."""
    noise: NonNegativeFloat = 0.1
    """Standard deviation of the teacher's input noise, clipped at twice that."""
    passes: PositiveInt = 8
    """T stochastic passes of the teacher, whose mean is the target."""
    beta: NonNegativeFloat = 0.1
    """Weight of the uncertainty beside the inconsistency."""
    u_term: Literal["student", "teacher", "none"] = "student"
    """Whose uncertainty is to get less. The teacher's has no gradient and moves the printed loss only."""

    acts_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {"beta": {"u_term": ("student", "teacher")}}


class DoubleUA(Method):
    """Student and teacher."""

    Config = DoubleUAConfig
    literature = Literature(iterations=6000, settings=TENTH_EVERY_2500)
    config: DoubleUAConfig

    def __init__(self, config: DoubleUAConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        self.student = VNet(in_channels, num_classes, config.width, config.dropout)
        self.teacher = deepcopy(self.student).requires_grad_(False)

    @classmethod
    def phases(cls, config: DoubleUAConfig) -> tuple[Phase, ...]:
        """One phase of 2 + 2 crops."""
        return (Phase(name="train", share=1, batch=(2, 2)),)

    def players(self) -> Mapping[str, nn.Module]:
        """The student."""
        return {"student": self.student}

    def tested(self) -> tuple[str, ...]:
        """The student."""
        return ("student",)

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        """L = 0.5 (CE + Dice) + 0.1 r(t) L_con, of which L_con is reconstructed by us

        L_con = mean of exp(-(U_seg + U_feat)) sum_c (p - mu)^2 + 0.1 H(p) / ln C, both halves; p: the student's
        mu: mean probabilities of 8 noisy dropout passes of the teacher
        U_seg = H(mu) / ln C, H the entropy
        U_feat = std(A) / mean(A) over the passes, at most 1
        A = sum_k F_k^2, divided by its mean over the image; F: what the teacher's head reads, 16 channels
        r(t) = exp(-5 (1 - t/T)^2)
        """
        c, counted = self.config, voxels_that_count(batch)
        mu, u_seg, u_feat = self._teach(batch.images)
        z = self.student(batch.images).float()
        p, (z_l, _) = z.softmax(1), batch.split(z)
        inconsistency = (-(u_seg + u_feat)).exp() * (p - mu).square().sum(1, keepdim=True)
        terms = {
            "ce": cross_entropy(z_l, batch.label),
            "dice": dice_loss(z_l.softmax(1), batch.label),
            "consistency": inconsistency[counted].mean(),
        }
        gauges = {"u_seg": u_seg[counted].mean(), "u_feat": u_feat[counted].mean()}
        uncertainty = torch.zeros_like(terms["ce"])
        if c.u_term == "teacher":
            uncertainty = gauges["u_seg"] + gauges["u_feat"]
        if c.u_term == "student":
            uncertainty = terms["uncertainty"] = relative_entropy(p)[counted].mean()
        weight = c.consistency * sigmoid_rampup(clock.iteration, c.ramp_share * clock.total)
        supervised = c.supervised_weight * (terms["ce"] + terms["dice"])
        loss = supervised + weight * (terms["consistency"] + c.beta * uncertainty)
        yield Objective("student", loss, terms, {**gauges, "weight": weight})
        ema_(self.teacher, self.student, ema_alpha(clock.iteration, c.alpha, c.ema_warmup))

    def predict(self, images: Tensor) -> Tensor:
        """Softmax of the student."""
        return self.student(images).softmax(1)

    @torch.no_grad()
    def _teach(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """mu, U_seg and U_feat."""
        passes = [self._pass(images) for _ in range(self.config.passes)]
        p, activation = (torch.stack(results) for results in zip(*passes, strict=True))
        mu = p.mean(0)
        u_feat = activation.std(0, correction=0) / (activation.mean(0) + 1e-6)
        return mu, relative_entropy(mu), u_feat.clamp(max=1)

    def _pass(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and A of one noisy pass with dropout."""
        z, features = self.teacher.embedded(gaussian_noise(images, self.config.noise, 2 * self.config.noise))
        activation = features.float().square().sum(1, keepdim=True)
        return z.float().softmax(1), activation / (activation.mean((2, 3, 4), keepdim=True) + 1e-6)
