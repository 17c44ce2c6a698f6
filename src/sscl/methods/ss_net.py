"""SS-Net: predictions that stay where the image is disturbed, and embeddings that gather around their class.

Wu, Wu, Wu, Ge, Cai: "Exploring smoothness and class-separation for semi-supervised medical image segmentation", MICCAI
2022. One V-Net without a teacher: virtual adversarial training with Dice as its divergence, and the pull of the voxels
of an organ towards the organ's prototypes, which each step chooses anew from the labelled half.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional

from sscl.core.batch import Batch, Clock
from sscl.core.method import TENTH_EVERY_2500, Literature, Method, MethodConfig, Objective, Phase
from sscl.core.plan import IGNORE
from sscl.nets.batch_norm import resting_statistics
from sscl.nets.vnet import VNet
from sscl.nets.voxel_heads import VoxelHeads
from sscl.ops.losses import voxels_that_count
from sscl.ops.ramps import sigmoid_rampup


class SSNetConfig(MethodConfig):
    """The constants of the paper's code."""

    unsupervised: NonNegativeFloat = 1.0
    """w(t) at the end of its ramp."""
    ramp_share: PositiveFloat = 0.4
    """The ramp's length as a part of the run: 6000 of 15,000 iterations."""
    contrast: NonNegativeFloat = 0.1
    """Weight of the two pulls beside L_vat."""
    xi: PositiveFloat = 10.0
    """Length of the random disturbance from which the adversarial direction is found."""
    magnitude: PositiveFloat = 10.0
    """Length of the adversarial disturbance of each image."""
    memory: int = Field(default=32, ge=2)
    """Prototypes of an organ."""
    memory_rank: Literal["highest", "lowest"] = "highest"
    """Which of its selector's scores make a prototype: highest: the paper's; lowest: what its code's sort keeps."""


class SSNet(Method):
    """V-Net and voxel heads, one player."""

    Config = SSNetConfig
    literature = Literature(iterations=15_000, settings=TENTH_EVERY_2500)
    config: SSNetConfig

    def __init__(self, config: SSNetConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        self.student = VNet(in_channels, num_classes, config.width, config.dropout)
        self.heads = VoxelHeads(config.width, num_classes - 1)

    @classmethod
    def phases(cls, config: SSNetConfig) -> tuple[Phase, ...]:
        """One phase of 2 + 2 crops."""
        return (Phase(name="train", share=1, batch=(2, 2)),)

    def players(self) -> Mapping[str, nn.Module]:
        """The network with its heads."""
        return {"student": nn.ModuleList([self.student, self.heads])}

    def tested(self) -> tuple[str, ...]:
        """The network without them."""
        return ("student",)

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        """L = L_seg + w(t) [L_vat + 0.1 (L_cl_l + L_cl_u)]

        BD(a, b) = 1 - 2 sum(ab) / (sum(a) + sum(b))
        L_seg = BD(p, y) of an organ, labelled half; mean over the organs; no cross-entropy
        L_vat = BD(f(x + 10 g), f(x)) on all images; g = d BD(f(x + 10 d), f(x)) / d d, d random, both of length 1
        L_cl = 1/2 mean a_i b_m (1 - cos(q_i, m)) over an organ's voxels i and its prototypes m; mean over the organs
        q: prediction(projection(embedding)); a, b: what selectors make of q and m, with mean 1
        m: projections of 32 rightly predicted labelled voxels, those with the highest scores
        L_cl_l takes an organ's voxels from the label, L_cl_u from argmax f(x)
        w(t) = exp(-5 (1 - t/T)^2) up to T = 0.4 of the run
        """
        c = self.config
        z, x9 = self.student.embedded(batch.images)
        (z_l, z_u), (x9_l, x9_u) = batch.split(z.float()), batch.split(x9)
        prototypes = self._remember(x9_l, batch.label.where(batch.label == z_l.argmax(1), IGNORE))
        terms = {
            "seg": organ_divergence(z_l.softmax(1), batch.label),
            "vat": self._disturb(batch.images, voxels_that_count(batch)),
            "contrast_labelled": self._pull(x9_l, batch.label, prototypes),
            "contrast_unlabelled": self._pull(x9_u, z_u.argmax(1), prototypes),
        }
        weight = c.unsupervised * sigmoid_rampup(clock.iteration, c.ramp_share * clock.total)
        contrast = terms["contrast_labelled"] + terms["contrast_unlabelled"]
        loss = terms["seg"] + weight * (terms["vat"] + c.contrast * contrast)
        yield Objective("student", loss, terms, {"weight": weight})

    def predict(self, images: Tensor) -> Tensor:
        """Softmax of the network."""
        return self.student(images).softmax(1)

    def _disturb(self, x: Tensor, counted: Tensor) -> Tensor:
        """L_vat. The gradient is taken with respect to the disturbance alone, so that no weight keeps any of it."""
        with torch.no_grad():
            p = self.student(x).float().softmax(1) * counted
        d = _unit(torch.rand_like(x) - 0.5).requires_grad_()
        with resting_statistics(self.student):
            p_d = self.student(x.detach() + self.config.xi * d).float().softmax(1) * counted
            (g,) = torch.autograd.grad(divergence(p_d, p), d)
            p_g = self.student(x + self.config.magnitude * _unit(g)).float().softmax(1) * counted
        return divergence(p_g, p)

    def _remember(self, features: Tensor, correct: Tensor) -> list[Float[Tensor, "memory embedding"]]:
        """Each organ's prototypes, of length 1, from its voxels in `correct`; the heads use their stored statistics.

        Detached and not made under no_grad, from where autocast may keep the heads' weights without gradient.
        """
        self.heads.eval()
        prototypes = []
        for organ, select in enumerate(self.heads.select, start=1):
            found = self.heads.project(features.movedim(1, -1)[correct == organ]).detach()
            count = min(self.config.memory, len(found))
            kept = select(found).squeeze(1).topk(count, largest=self.config.memory_rank == "highest").indices
            prototypes.append(functional.normalize(found[kept].float()))
        self.heads.train()
        return prototypes

    def _pull(self, features: Tensor, label: Tensor, prototypes: Sequence[Tensor]) -> Tensor:
        """L_cl; 0 where no organ has both voxels and prototypes.

        The weights have mean 1, so the mean over all pairs is 1 - (mean a_i q_i) . (mean b_m m), of unit vectors.
        """
        q = self.heads.predict(self.heads.project(features.movedim(1, -1).flatten(0, -2))).float()
        losses = []
        for organ, m in enumerate(prototypes, start=1):
            q_o = q[label.flatten() == organ]
            if min(len(q_o), len(m)) < 2:  # the selectors' batch norm wants two
                continue
            a = _mean_one(self.heads.select[organ - 1](q_o.detach()))
            b = _mean_one(self.heads.select_prototypes[organ - 1](m))
            losses.append(1 - ((a * functional.normalize(q_o)).mean(0) * (b * m).mean(0)).sum())
        # halved: the code's mean over two classes, where the background has no prototypes and counts as 0
        return torch.stack(losses).mean() / 2 if losses else q.new_zeros(())


def divergence(a: Tensor, b: Tensor) -> Float[Tensor, ""]:
    """BD: 1 - Dice with plain denominators, one sum over all that is there."""
    return 1 - (2 * (a * b).sum() + 1e-8) / (a.sum() + b.sum() + 1e-8)


def organ_divergence(
    probabilities: Float[Tensor, "b classes x y z"], label: Int64[Tensor, "b x y z"]
) -> Float[Tensor, ""]:
    """Mean BD of each organ's probability and its mask."""
    p, y = probabilities.movedim(1, -1)[label != IGNORE], label[label != IGNORE]
    return torch.stack([divergence(p[:, organ], (y == organ).float()) for organ in range(1, p.shape[1])]).mean()


def _unit(x: Tensor) -> Tensor:
    """Each image to length 1."""
    return functional.normalize(x.flatten(1)).reshape_as(x)


def _mean_one(scores: Float[Tensor, "n 1"]) -> Float[Tensor, "n 1"]:
    """Sigmoids, scaled to a mean of 1."""
    s = scores.float().sigmoid()
    return s / s.mean()
