"""URPC: predictions at four scales of one decoder, each drawn to their mean where it is near to it already.

Luo et al.: "Efficient Semi-supervised Gross Target Volume of Nasopharyngeal Carcinoma Segmentation via Uncertainty
Rectified Pyramid Consistency", MICCAI 2021. No teacher and no second pass: the disagreement of the scales is the
uncertainty, and is itself minimised.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import Literature, Method, MethodConfig, Objective, Phase
from sscl.nets.unet import PyramidUNet, PyramidVNet
from sscl.ops.losses import cross_entropy, dice_loss_with_background
from sscl.ops.ramps import sigmoid_rampup

BACKBONES = {"unet_dv": PyramidUNet, "vnet": PyramidVNet}


class URPCConfig(MethodConfig):
    """The constants of the authors' 3-D code."""

    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Channel dropout of the coarsest decoder stage; 0.6, 0.4, 0.2 of it at the finer ones. V-Net: as everywhere."""
    backbone: Literal["unet_dv", "vnet"] = "unet_dv"
    """The code's U-Net, or three more heads on the V-Net of the other methods."""
    supervised_weight: PositiveFloat = 0.5
    """0.5 (CE + Dice), of each scale."""
    consistency: NonNegativeFloat = 0.1
    """lambda(t) at the end of its ramp."""
    ramp_share: PositiveFloat = 1.0
    """The ramp's length as a part of the run: 400 of 400 times 150 iterations."""
    kl: Literal["mean_scale", "scale_mean"] = "mean_scale"
    """Which way the divergence goes: KL(mean || scale) as in the code, or KL(scale || mean)."""


class URPC(Method):
    """One network with four heads."""

    Config = URPCConfig
    literature = Literature(iterations=60_000, settings={"optimiser.learning_rate": 0.1})
    config: URPCConfig

    def __init__(self, config: URPCConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        self.student = BACKBONES[config.backbone](in_channels, num_classes, config.width, config.dropout)

    @classmethod
    def phases(cls, config: URPCConfig) -> tuple[Phase, ...]:
        """One phase of 2 + 2 crops."""
        return (Phase(name="train", share=1, batch=(2, 2)),)

    def players(self) -> Mapping[str, nn.Module]:
        """The network."""
        return {"student": self.student}

    def tested(self) -> tuple[str, ...]:
        """The network."""
        return ("student",)

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        """L = L_sup + lambda(t) L_con over the scales s = 1 ... 4, whose mean prediction is p_bar.

        L_sup = mean_s 0.5 (CE_s + Dice_s), labelled half, Dice with the background.
        L_con = mean_s { mean[w_s (p_bar - p_s)^2] / mean[w_s] + mean[v_s] }, unlabelled half,
        v_s = KL(p_bar || p_s) at each voxel, w_s = exp(-v_s). Nothing is detached.
        """
        c = self.config
        z = self.student(batch.images).float()  # "s b c x y z"
        z_l, z_u = z.split([len(batch.labelled), len(batch.unlabelled)], dim=1)
        log_p = z_u.log_softmax(2)  # not the logarithm of a softmax: that underflows to -inf
        p, log_p_bar = log_p.exp(), log_p.logsumexp(0) - math.log(len(z))
        p_bar = log_p_bar.exp()
        v = (p_bar * (log_p_bar - log_p) if c.kl == "mean_scale" else p * (log_p - log_p_bar)).sum(2)
        w = (-v).exp()
        rectified = ((p_bar - p).square().mean(2) * w).mean((1, 2, 3, 4)) / (w.mean((1, 2, 3, 4)) + 1e-8)
        terms = {
            "ce": torch.stack([cross_entropy(z_s, batch.label) for z_s in z_l]).mean(),
            "dice": torch.stack([dice_loss_with_background(z_s.softmax(1), batch.label) for z_s in z_l]).mean(),
            "rectified": rectified.mean(),
            "kl": v.mean(),
        }
        weight = c.consistency * sigmoid_rampup(clock.iteration, c.ramp_share * clock.total)
        loss = c.supervised_weight * (terms["ce"] + terms["dice"]) + weight * (terms["rectified"] + terms["kl"])
        yield Objective("student", loss, terms, {"weight": weight, "trust": w.mean()})

    def predict(self, images: Tensor) -> Tensor:
        """Softmax of the finest scale."""
        return self.student(images)[0].softmax(1)
