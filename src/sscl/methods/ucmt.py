"""UCMT: two students and their mean teacher label each other's crops, and again where they were unsure.

Shen, Cao, Yang, Liu, Yang, Zaiane: "Co-training with High-Confidence Pseudo Labels for Semi-supervised Medical Image
Segmentation", IJCAI 2023. UMix puts the blocks of an image that are sure in the place of those that are not.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import Literature, Method, MethodConfig, Objective, Phase
from sscl.nets.vnet import VNet
from sscl.ops.blocks import cut, join
from sscl.ops.ema import ema_alpha
from sscl.ops.losses import dice_loss_with_background
from sscl.ops.perturb import random_blur
from sscl.ops.ramps import sigmoid_rampup
from sscl.ops.uncertainty import entropy


class UCMTConfig(MethodConfig):
    """The constants of the paper's code for 3-D images."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """None in that code."""
    batch: tuple[PositiveInt, PositiveInt] = (2, 2)
    """Labelled and unlabelled crops a step."""
    lam: NonNegativeFloat = 0.1
    """Weight of the pseudo-labels at the end of their ramp."""
    ramp_share: PositiveFloat = 0.005
    """The ramp's length as a part of the run: 100 of 20,000 iterations."""
    alpha: float = Field(default=0.99, ge=0, le=1)
    """EMA of the teacher."""
    ema_warmup: bool = True
    """alpha = min(1 - 1/(t+1), alpha)."""
    first_share: float = Field(default=0.99, ge=0, le=1)
    """Part of the first student in what the teacher follows."""
    blur: float = Field(default=0.8, ge=0, le=1)
    """How often a student's crop is blurred."""
    blur_sigma: tuple[PositiveFloat, PositiveFloat] = (0.1, 2.0)
    """Least and largest standard deviation of the blur, voxels."""
    parts: Literal[2, 4, 8, 16] = 8
    """UMix: blocks along each axis."""
    exchanged: int = Field(default=2, ge=0, le=4)
    """UMix: blocks of an image that are replaced for each student."""


class UCMT(Method):
    """Two students and a teacher, which is tested."""

    Config = UCMTConfig
    literature = Literature(
        iterations=20_000,
        settings={
            "batch": (4, 4),
            "optimiser.kind": "adamw",
            "optimiser.learning_rate": 1e-4,
            "optimiser.weight_decay": 0.01,
            "optimiser.schedule.kind": "constant",
        },
    )
    config: UCMTConfig

    def __init__(self, config: UCMTConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        self.students = nn.ModuleList(VNet(in_channels, num_classes, config.width, config.dropout) for _ in range(2))
        self.teacher = deepcopy(self.students[0]).requires_grad_(False)

    @classmethod
    def phases(cls, config: UCMTConfig) -> tuple[Phase, ...]:
        """One phase."""
        return (Phase(name="train", share=1, batch=config.batch),)

    def players(self) -> Mapping[str, nn.Module]:
        """Both students at once: one loss moves both."""
        return {"students": self.students}

    def tested(self) -> tuple[str, ...]:
        """The teacher."""
        return ("teacher",)

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        """L = L_s + 0.1 r(t) (L_x + L_u), minimised twice: each student on its blurred view, both on UMix of the first.

        L_s = (D(s1, y) + D(s2, y)) / 2, labelled half; s1, s2, t: what students and teacher say
        L_x = (D(s1, argmax s2) + D(s2, argmax s1)) / 2, unlabelled half
        L_u = (D(s1, argmax t) + D(s2, argmax t)) / 2, unlabelled half; t of the crop as it is, and moved along in UMix
        D = 1 - Dice, mean over all classes
        r(t) = exp(-5 (1 - t/T)^2), T 0.5 % of the run
        UMix: the 2 of 8 x 8 x 8 blocks where H((s1 + t) / 2) is the largest, H the mean entropy, become those of the
        same image where H((s2 + t) / 2) is the least; then the other way round
        After each minimisation: teacher <- alpha teacher + (1 - alpha) (0.99 student 1 + 0.01 student 2)
        """
        c = self.config
        weight = c.lam * sigmoid_rampup(clock.iteration, c.ramp_share * clock.total)
        alpha = ema_alpha(clock.iteration, c.alpha, c.ema_warmup)
        with torch.no_grad():
            t = self.teacher(batch.images).float().softmax(1)
        target = torch.cat([batch.label, batch.split(t)[1].argmax(1)])
        views = [random_blur(batch.images, c.blur, c.blur_sigma) for _ in self.students]
        s1, s2 = self._say(*views)
        h1, h2 = (block_means(entropy((s.detach() + t) / 2), c.parts) for s in (s1, s2))
        source = umix(h1, h2, c.exchanged)
        terms = self._terms(batch, s1, s2, target)
        yield Objective("students", terms["sup"] + weight * (terms["cps"] + terms["cmt"]), terms, {"weight": weight})
        self._follow(alpha)

        mixed, target = move_blocks(views[0], source, c.parts), move_blocks(target.unsqueeze(1), source, c.parts)[:, 0]
        terms = self._terms(batch, *self._say(mixed, mixed), target)
        loss = terms["sup"] + weight * (terms["cps"] + terms["cmt"])
        yield Objective("students", loss, {f"umix_{name}": term for name, term in terms.items()})
        self._follow(alpha)

    def predict(self, images: Tensor) -> Tensor:
        """Softmax of the teacher."""
        return self.teacher(images).softmax(1)

    def _say(self, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """The students' probabilities."""
        return self.students[0](x1).float().softmax(1), self.students[1](x2).float().softmax(1)

    @staticmethod
    def _terms(batch: Batch, s1: Tensor, s2: Tensor, target: Tensor) -> dict[str, Tensor]:
        """L_s, L_x, L_u. target: y of the labelled half and argmax t of the other one."""
        (y, y_t), (l1, u1), (l2, u2) = batch.split(target), batch.split(s1), batch.split(s2)
        D = dice_loss_with_background
        return {
            "sup": (D(l1, y) + D(l2, y)) / 2,
            "cps": (D(u1, u2.argmax(1)) + D(u2, u1.argmax(1))) / 2,
            "cmt": (D(u1, y_t) + D(u2, y_t)) / 2,
        }

    @torch.no_grad()
    def _follow(self, alpha: float) -> None:
        """The teacher's EMA, of its parameters only."""
        weights = (net.parameters() for net in (self.teacher, *self.students))
        for teacher, first, second in zip(*weights, strict=True):
            teacher.lerp_(first.lerp(second, 1 - self.config.first_share), 1 - alpha)


def block_means(h: Float[Tensor, "b 1 x y z"], parts: int) -> Float[Tensor, "b n"]:
    """Mean of each of parts^3 blocks. Sides of a patch are divisible by 16, so blocks are equal."""
    return cut(h, _block(h, parts)).flatten(2).mean(2)


def umix(h1: Float[Tensor, "b n"], h2: Float[Tensor, "b n"], exchanged: int) -> Int64[Tensor, "b n"]:
    """For each block of an image the block that comes in its place. h1, h2: how unsure either student is of it."""
    source = torch.arange(h1.shape[1], device=h1.device).expand_as(h1)
    for unsure, sure in ((h1, h2), (h2, h1)):
        most, least = unsure.topk(exchanged, 1).indices, sure.topk(exchanged, 1, largest=False).indices
        source = source.scatter(1, most, least)
    return source


def move_blocks(x: Tensor, source: Int64[Tensor, "b n"], parts: int) -> Tensor:
    """x "b c x y z" with each block replaced by the one that `source` names."""
    rows = torch.arange(len(x), device=x.device).unsqueeze(1)
    return join(cut(x, _block(x, parts))[rows, source], x.shape[2:])


def _block(x: Tensor, parts: int) -> tuple[int, ...]:
    return tuple(length // parts for length in x.shape[2:])
