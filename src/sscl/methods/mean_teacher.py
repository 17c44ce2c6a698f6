"""Mean teacher: consistency between a student and the average of its past.

Tarvainen and Valpola: "Mean teachers are better role models", NeurIPS 2017, as the left-atrium literature uses it: the
teacher sees noise, and the student is drawn to its probabilities (UA-MT without the uncertainty mask).
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import TENTH_EVERY_2500, Literature, Method, MethodConfig, Objective, Phase
from sscl.nets.vnet import VNet
from sscl.ops.ema import ema_, ema_alpha
from sscl.ops.losses import cross_entropy, dice_loss, mse
from sscl.ops.perturb import gaussian_noise
from sscl.ops.ramps import sigmoid_rampup


class MeanTeacherConfig(MethodConfig):
    """The constants of the lineage's code."""

    supervised_weight: PositiveFloat = 0.5
    """0.5 (CE + Dice)."""
    consistency: NonNegativeFloat = 0.1
    """Weight of the consistency at the end of its ramp."""
    ramp_share: PositiveFloat = 1.0
    """The ramp's length as a part of the run: 6000 of 6000 iterations."""
    alpha: float = Field(default=0.99, ge=0, le=1)
    """EMA of the teacher."""
    ema_warmup: bool = True
    """alpha = min(1 - 1/(t+1), alpha)."""
    noise: NonNegativeFloat = 0.1
    """Standard deviation of the teacher's input noise, clipped at twice that."""


class MeanTeacher(Method):
    """Student and teacher."""

    Config = MeanTeacherConfig
    literature = Literature(iterations=6000, settings=TENTH_EVERY_2500)
    config: MeanTeacherConfig

    def __init__(self, config: MeanTeacherConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        self.student = VNet(in_channels, num_classes, config.width, config.dropout)
        self.teacher = deepcopy(self.student).requires_grad_(False)

    @classmethod
    def phases(cls, config: MeanTeacherConfig) -> tuple[Phase, ...]:
        """One phase of 2 + 2 crops."""
        return (Phase(name="train", share=1, batch=(2, 2)),)

    def players(self) -> Mapping[str, nn.Module]:
        """The student."""
        return {"student": self.student}

    def tested(self) -> tuple[str, ...]:
        """The student."""
        return ("student",)

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        """L = 0.5 (CE + Dice) + w(t) L_con

        L_con = mean (p - p_t)^2, unlabelled half; p: the student's, p_t: the teacher's, of the image with noise
        w(t) = 0.1 exp(-5 (1 - t/T)^2)
        teacher <- alpha teacher + (1 - alpha) student, after the step
        """
        c = self.config
        with torch.no_grad():
            noisy = gaussian_noise(batch.unlabelled, c.noise, 2 * c.noise)
            p_t = self.teacher(noisy).float().softmax(1)
        z_l, z_u = batch.split(self.student(batch.images).float())
        terms = {
            "ce": cross_entropy(z_l, batch.label),
            "dice": dice_loss(z_l.softmax(1), batch.label),
            "consistency": mse(z_u.softmax(1), p_t),
        }
        weight = c.consistency * sigmoid_rampup(clock.iteration, c.ramp_share * clock.total)
        loss = c.supervised_weight * (terms["ce"] + terms["dice"]) + weight * terms["consistency"]
        yield Objective("student", loss, terms, {"weight": weight})
        ema_(self.teacher, self.student, ema_alpha(clock.iteration, c.alpha, c.ema_warmup))

    def predict(self, images: Tensor) -> Tensor:
        """Softmax of the student."""
        return self.student(images).softmax(1)
