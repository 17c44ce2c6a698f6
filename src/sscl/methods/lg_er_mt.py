"""LG-ER-MT: a mean teacher whose student is to be sure, and like the teacher in local and global structure.

Hang, Feng, Liang, Yu, Wang, Choi, Qin: "Local and Global Structure-Aware Entropy Regularized Mean Teacher Model for 3D
Left Atrium Segmentation", MICCAI 2020.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import product

import torch
from jaxtyping import Bool, Float
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional

from sscl.core.batch import Batch, Clock
from sscl.core.method import TENTH_EVERY_2500, Literature, Method, MethodConfig, Objective, Phase
from sscl.nets.vnet import VNet
from sscl.ops.ema import ema_, ema_alpha
from sscl.ops.losses import cross_entropy, dice_loss, masked_mse, voxels_that_count
from sscl.ops.perturb import gaussian_noise
from sscl.ops.ramps import sigmoid_rampup
from sscl.ops.uncertainty import self_information

BLOCK = 16
"""Side of the blocks that the local structure is compared in."""
DRAWN = (2, 2, 1)
"""Places drawn along each axis: 2 of 7, 2 of 7 and 1 of 5 in a patch of 112x112x80."""


class LGERMTConfig(MethodConfig):
    """The constants of the first authors' code."""

    supervised_weight: PositiveFloat = 0.5
    """0.5 (CE + Dice)."""
    consistency: NonNegativeFloat = 0.1
    """Weight of all that needs no label, at the end of its ramp; of L_mt itself."""
    local_share: NonNegativeFloat = 0.1
    """Weight of L_local as a part of that: 0.01."""
    global_share: NonNegativeFloat = 0.1
    """Weight of L_global as a part of that: 0.01."""
    entropy_share: NonNegativeFloat = 0.1
    """Weight of L_ent as a part of that: 0.01."""
    ramp_share: PositiveFloat = 1.0
    """The ramp's length as a part of the run: 6000 of 6000 iterations."""
    alpha: float = Field(default=0.99, ge=0, le=1)
    """EMA of the teacher."""
    ema_warmup: bool = True
    """alpha = min(1 - 1/(t+1), alpha)."""
    noise: NonNegativeFloat = 0.1
    """Standard deviation of the teacher's input noise, clipped at twice that."""


class LGERMT(Method):
    """Student and teacher."""

    Config = LGERMTConfig
    literature = Literature(iterations=6000, settings=TENTH_EVERY_2500)
    config: LGERMTConfig

    def __init__(self, config: LGERMTConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        self.student = VNet(in_channels, num_classes, config.width, config.dropout)
        self.teacher = deepcopy(self.student).requires_grad_(False)

    @classmethod
    def phases(cls, config: LGERMTConfig) -> tuple[Phase, ...]:
        """One phase of 2 + 2 crops."""
        return (Phase(name="train", share=1, batch=(2, 2)),)

    def players(self) -> Mapping[str, nn.Module]:
        """The student."""
        return {"student": self.student}

    def tested(self) -> tuple[str, ...]:
        """The student."""
        return ("student",)

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        """L = 0.5 (CE + Dice) + r(t) (0.1 L_mt + 0.01 L_local + 0.01 L_global + 0.01 L_ent)

        p: the student's, p_t: of a noisy pass of the teacher, both over both halves
        L_mt = mean (p - p_t)^2 / 2
        L_local = mean (F^T F - F_t^T F_t)^2 within 4 random blocks of 16x16x16 voxels; F: p as unit vectors, C x 4096
        L_global = mean (I - I_t)^2 / 2, where I = -p log p / log C
        L_ent = mean of sum_c I over the unlabelled half
        """
        c = self.config
        with torch.no_grad():
            p_t = self.teacher(gaussian_noise(batch.images, c.noise, 2 * c.noise)).float().softmax(1)
        z = self.student(batch.images).float()
        p, counted, (z_l, _) = z.softmax(1), voxels_that_count(batch), batch.split(z)
        i, i_t = self_information(p), self_information(p_t)
        terms = {
            "ce": cross_entropy(z_l, batch.label),
            "dice": dice_loss(z_l.softmax(1), batch.label),
            "consistency": masked_mse(p, p_t, counted) / 2,
            "local": local_difference(p, p_t, counted),
            "global": masked_mse(i, i_t, counted) / 2,
            "entropy": batch.split(i)[1].sum(1).mean(),
        }
        structure = c.local_share * terms["local"] + c.global_share * terms["global"]
        unsup = terms["consistency"] + structure + c.entropy_share * terms["entropy"]
        weight = c.consistency * sigmoid_rampup(clock.iteration, c.ramp_share * clock.total)
        loss = c.supervised_weight * (terms["ce"] + terms["dice"]) + weight * unsup
        yield Objective("student", loss, terms, {"weight": weight})
        ema_(self.teacher, self.student, ema_alpha(clock.iteration, c.alpha, c.ema_warmup))

    def predict(self, images: Tensor) -> Tensor:
        """Softmax of the student."""
        return self.student(images).softmax(1)


def local_difference(
    p: Float[Tensor, "b classes x y z"], p_t: Float[Tensor, "b classes x y z"], counted: Bool[Tensor, "b 1 x y z"]
) -> Float[Tensor, ""]:
    """How differently voxels of one block resemble each other for student and teacher: the same blocks for both."""
    blocks = random_blocks(p.shape[2:])
    directions, directions_t = functional.normalize(p, dim=1), functional.normalize(p_t, dim=1)
    f, f_t, m = (
        torch.cat([x[..., block[0], block[1], block[2]].flatten(2) for block in blocks])
        for x in (directions, directions_t, counted)
    )
    return similarity_difference(f * m, f_t * m) / m.sum(2).square().sum().clamp(min=1)


def random_blocks(shape: Sequence[int]) -> list[tuple[slice, ...]]:
    """Of the grid of whole blocks in a patch of this shape, those at places drawn along each axis."""
    places = [torch.randperm(n // BLOCK)[:drawn].tolist() for n, drawn in zip(shape, DRAWN, strict=True)]
    return [tuple(slice(BLOCK * place, BLOCK * (place + 1)) for place in block) for block in product(*places)]


def similarity_difference(f: Float[Tensor, "b c n"], f_t: Float[Tensor, "b c n"]) -> Float[Tensor, ""]:
    """Sum of (G - G_t)^2 where G = F^T F, without an n x n matrix, and exactly.

    With s = F + F_t and d = F - F_t: G - G_t = (s^T d + d^T s) / 2, and the sum of its squares is
    (<s s^T, d d^T> + <s d^T, d s^T>) / 2, of C x C matrices. Subtracting F_t first is what single precision needs when
    student and teacher are nearly alike. The products are no matrix products to torch, because autocast rounds those.
    """
    s, d = f + f_t, f - f_t
    ss, dd, sd = ((a.unsqueeze(2) * b.unsqueeze(1)).sum(3) for a, b in ((s, s), (d, d), (s, d)))
    return ((ss * dd).sum() + (sd * sd.mT).sum()) / 2
