"""AC-MT: a mean teacher that is followed only where the student is ambiguous.

Xu, Wang, Lu, Luo, Yan, Zheng, Tong: "Ambiguity-selective consistency regularization for mean-teacher semi-supervised
medical image segmentation", Medical Image Analysis 2023. Four ways to find ambiguous voxels, a run uses one: `variant`.
"""

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from sscl.core.batch import Batch, Clock
from sscl.core.method import Literature, Method, MethodConfig, Objective, Phase
from sscl.nets.vnet import VNet
from sscl.ops.confident_learning import label_errors
from sscl.ops.ema import ema_, ema_alpha
from sscl.ops.losses import cross_entropy, dice_loss_with_background, masked_mean, masked_mse
from sscl.ops.perturb import gaussian_noise
from sscl.ops.ramps import sigmoid_rampup
from sscl.ops.uncertainty import relative_entropy


class ACMTConfig(MethodConfig):
    """The constants of the paper's code."""

    supervised_weight: PositiveFloat = 0.5
    """0.5 (CE + Dice)."""
    consistency: NonNegativeFloat = 0.1
    """Weight of L_cons at the end of its ramp."""
    ramp_share: PositiveFloat = 0.75
    """That ramp's length as a part of the run: 6000 of 8000 iterations."""
    alpha: float = Field(default=0.99, ge=0, le=1)
    """EMA of the teacher."""
    ema_warmup: bool = True
    """alpha = min(1 - 1/(t+1), alpha)."""
    noise: NonNegativeFloat = 0.1
    """Standard deviation of the input noise of noisy passes, clipped at twice that."""
    variant: Literal["ent", "mu", "p_err", "s_err"] = "ent"
    """What makes a voxel ambiguous: the student's entropy, its entropy over several passes, a feature nearer to another
    class's prototype, or a class that confident learning takes for an error.
    """
    threshold: float = Field(default=0.75, ge=0, le=1)
    """ent, mu: ambiguous from this entropy on, as a part of ln C, at the start of the run."""
    ent_end: float = Field(default=0.95, ge=0, le=1)
    """ent: what it has become at the end (the paper says 0.60, its code prefers this)."""
    mu_end: float = Field(default=0.9, ge=0, le=1)
    """mu: what it has become at the end."""
    mu_passes: PositiveInt = 8
    """mu: passes of the student."""
    p_err_passes: int = Field(default=10, ge=2)
    """p_err: passes of the teacher."""
    p_err_std: PositiveFloat = 0.1
    """p_err: voxels that vary less than this between passes make the prototypes."""

    acts_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "threshold": {"variant": ("ent", "mu")},
        "ent_end": {"variant": "ent"},
        "mu_end": {"variant": "mu"},
        "mu_passes": {"variant": "mu"},
        "p_err_passes": {"variant": "p_err"},
        "p_err_std": {"variant": "p_err"},
    }


class ACMT(Method):
    """Student and teacher."""

    Config = ACMTConfig
    literature = Literature(iterations=8000)
    config: ACMTConfig

    def __init__(self, config: ACMTConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        self.student = VNet(in_channels, num_classes, config.width, config.dropout)
        self.teacher = deepcopy(self.student).requires_grad_(False)

    @classmethod
    def phases(cls, config: ACMTConfig) -> tuple[Phase, ...]:
        """One phase of 2 + 2 crops."""
        return (Phase(name="train", share=1, batch=(2, 2)),)

    def players(self) -> Mapping[str, nn.Module]:
        """The student."""
        return {"student": self.student}

    def tested(self) -> tuple[str, ...]:
        """The student."""
        return ("student",)

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        """L = 0.5 (CE + Dice) + 0.1 r(t) L_cons

        L_cons = sum m (p - p_t)^2 / (C sum m), unlabelled half; p: the student's, p_t: of a noisy pass of the teacher.
        m, the ambiguous voxels, by `variant`:
        ent: entropy(p) >= th(t) ln C, where th goes from 0.75 to 0.95
        mu: entropy(mean p of 8 noisy passes of the student) >= th(t) ln C, from 0.75 to 0.90; L_cons without the C
        p_err: argmax p is not the class of the nearest prototype; L_cons + mean of entropy(p) / ln C where m is 0
        s_err: argmax p is a label error (confident learning by p_t); everywhere if there is none
        """
        c = self.config
        with torch.no_grad():
            p_t = self.teacher(self._noisy(batch.unlabelled)).float().softmax(1)
        z_l, z_u = batch.split(self.student(batch.images).float())
        p = z_u.softmax(1)
        m = self._ambiguous(batch.unlabelled, p, p_t, clock)
        terms = {
            "ce": cross_entropy(z_l, batch.label),
            "dice": dice_loss_with_background(z_l.softmax(1), batch.label),
            "consistency": masked_mse(p, p_t, m) * (p.shape[1] if c.variant == "mu" else 1),
        }
        unsup = terms["consistency"]
        if c.variant == "p_err":
            terms["entropy"] = masked_mean(relative_entropy(p), ~m)
            unsup = unsup + terms["entropy"]
        weight = c.consistency * sigmoid_rampup(clock.iteration, c.ramp_share * clock.total)
        loss = c.supervised_weight * (terms["ce"] + terms["dice"]) + weight * unsup
        yield Objective("student", loss, terms, {"weight": weight, "ambiguous": m.float().mean()})
        ema_(self.teacher, self.student, ema_alpha(clock.iteration, c.alpha, c.ema_warmup))

    def predict(self, images: Tensor) -> Tensor:
        """Softmax of the student."""
        return self.student(images).softmax(1)

    @torch.no_grad()
    def _ambiguous(self, x_u: Tensor, p: Tensor, p_t: Tensor, clock: Clock) -> Bool[Tensor, "b 1 x y z"]:
        """m, from p of the student's own pass and p_t; `mu` and `p_err` make further passes."""
        c, ramp = self.config, sigmoid_rampup(clock.iteration, clock.total)
        if c.variant == "ent":
            return relative_entropy(p) >= c.threshold + (c.ent_end - c.threshold) * ramp
        if c.variant == "mu":
            passes = [self.student(self._noisy(x_u)).float().softmax(1) for _ in range(c.mu_passes)]
            return relative_entropy(torch.stack(passes).mean(0)) >= c.threshold + (c.mu_end - c.threshold) * ramp
        chosen = p.argmax(1, keepdim=True)
        if c.variant == "p_err":
            return chosen != self._nearest_class(x_u)
        errors = label_errors(p_t.movedim(1, -1).flatten(0, -2), chosen.flatten()).view_as(chosen)
        return errors if errors.any() else torch.ones_like(errors)

    def _nearest_class(self, x_u: Tensor) -> Int64[Tensor, "b 1 x y z"]:
        """The class with the nearest prototype in the teacher's features x8, which have half the resolution."""
        passes = [self._pass(self._noisy(x_u)) for _ in range(self.config.p_err_passes)]
        features, logits = (torch.stack(results).float() for results in zip(*passes, strict=True))
        p = functional.avg_pool3d(logits.softmax(2).mean(0), 2)
        deviation = functional.avg_pool3d((logits / 2).sigmoid().std(0), 2)
        nearest = nearest_prototype(features.mean(0), p, deviation < self.config.p_err_std)
        return functional.interpolate(nearest.unsqueeze(1).float(), scale_factor=2.0).long()

    def _pass(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's features x8 and its logits."""
        *finer, x5 = self.teacher.encoder(images)
        decoder = self.teacher.decoder
        *_, x8, x9 = decoder.pyramid([*finer, self.teacher.dropout(x5)])
        return x8, decoder.head(decoder.dropout(x9))

    def _noisy(self, images: Tensor) -> Tensor:
        return gaussian_noise(images, self.config.noise, 2 * self.config.noise)


def nearest_prototype(
    features: Float[Tensor, "b k x y z"], p: Float[Tensor, "b classes x y z"], certain: Bool[Tensor, "b classes x y z"]
) -> Int64[Tensor, "b x y z"]:
    """The class whose prototype is the nearest in Euclidean distance.

    A prototype is the mean feature, weighted with p_c, over the voxels of the batch whose likeliest class is c and
    certain. A class without such voxels has no prototype and is nobody's nearest.
    """
    likeliest = functional.one_hot(p.argmax(1), p.shape[1]).movedim(-1, 1)
    distances = []
    for w in torch.split(p * likeliest * certain, 1, 1):
        prototype = (w * features).sum((0, 2, 3, 4), keepdim=True) / w.sum()  # NaN where there are none
        distances.append((features - prototype).square().sum(1))
    return torch.stack(distances, 1).nan_to_num(nan=math.inf).argmin(1)
