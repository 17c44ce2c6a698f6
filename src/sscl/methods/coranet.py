"""CoraNet: what a cautious and a bold head agree on is a pseudo-label; elsewhere a mean teacher is followed.

Shi, Zhang, Ling, Lu, Zheng, Yu, Qi, Gao: "Inconsistency-aware Uncertainty Estimation for Semi-supervised Medical Image
Segmentation", IEEE TMI 2022. The conservative head pays more for false organ voxels, the radical one for missed ones.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy

import torch
from jaxtyping import Float, Int64
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import Literature, Method, MethodConfig, Objective, Phase, Schedule
from sscl.core.plan import IGNORE
from sscl.nets.branched_vnet import BranchedVNet
from sscl.ops.ema import ema_, ema_alpha
from sscl.ops.losses import cross_entropy, dice_ce, dice_loss_of_each_crop, masked_mse
from sscl.ops.ramps import sigmoid_rampup


class CoraNetConfig(MethodConfig):
    """The constants of the paper's code for Pancreas-CT."""

    dropout: float = Field(default=0.0, ge=0, lt=1)
    """None there."""
    cost: PositiveFloat = 5.0
    """1:5 and 5:1: what the dearer of the two mistakes costs."""
    swap_weights: bool = False
    """On pseudo-labels the conservative head gets the radical one's costs and the other way round, as in the code."""
    unlabelled_weight: NonNegativeFloat = 0.5
    """Of L_c and L_u together."""
    uncertain_weight: NonNegativeFloat = 0.1
    """w, the weight of L_u in them, at the end of its ramp."""
    ramp_share: PositiveFloat = 40 / 201
    """That ramp's length as a part of self-training: 40 of 201 epochs."""
    alpha: float = Field(default=0.99, ge=0, le=1)
    """EMA of the teacher."""
    ema_warmup: bool = False
    """alpha = min(1 - 1/(t+1), alpha)."""
    pretrain_share: float = Field(default=60 * 8 / (60 * 8 + 201 * 6), ge=0, lt=1)
    """60 epochs of 8 iterations; then 201 of 6."""
    pretrain_batch: PositiveInt = 4
    """Labelled crops a step of pre-training."""
    batch: tuple[PositiveInt, PositiveInt] = (2, 2)
    """Labelled and unlabelled crops a step of self-training."""


class CoraNet(Method):
    """Student and teacher, three heads each: main, conservative, radical."""

    Config = CoraNetConfig
    literature = Literature(
        iterations=60 * 8 + 201 * 6,
        settings={
            "optimiser.kind": "adam",
            "optimiser.learning_rate": 1e-3,
            "optimiser.momentum": 0.5,
            "optimiser.weight_decay": 0.0,
            "optimiser.schedule.kind": "constant",
            "pretrain_batch": 8,
            "batch": (8, 8),
            "swap_weights": True,
        },
    )
    config: CoraNetConfig

    def __init__(self, config: CoraNetConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        self.student = BranchedVNet(in_channels, num_classes, config.width, config.dropout)
        self.teacher = deepcopy(self.student).requires_grad_(False)

    @classmethod
    def phases(cls, config: CoraNetConfig) -> tuple[Phase, ...]:
        """Pre-training on labelled crops at a constant rate; self-training goes on with the same optimiser."""
        c, share = config, config.pretrain_share
        constant = Schedule(kind="constant")
        pretrain = Phase(name="pretrain", share=share or 1, batch=(c.pretrain_batch, 0), schedule=constant)
        self_train = Phase(name="self_train", share=1 - share, batch=c.batch)
        return (pretrain, self_train) if share else (self_train,)

    def players(self) -> Mapping[str, nn.Module]:
        """The student."""
        return {"student": self.student}

    def tested(self) -> tuple[str, ...]:
        """The student."""
        return ("student",)

    def begin(self, phase: str) -> None:
        """Self-training: the teacher starts as the pre-trained student."""
        if phase == "self_train":
            self.teacher.load_state_dict(self.student.state_dict())

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        """Pre-training: L = L_l. Self-training: L = L_l + 0.5 (L_c + w(t) L_u)

        L_l = (CE + Dice of the main head + CE(5, 1) of the conservative + CE(1, 5) of the radical head) / 4
        CE(k, n): a voxel of the background costs k, one of an organ n; mean over the costs
        L_c: the same with labels of the main head, a mean over the unlabelled voxels where the other two heads agree
        L_u = sum over classes of (p - p_t)^2, mean over the other voxels and over the three heads
        """
        c = self.config
        if clock.phase == "pretrain":
            labelled = self._segmentation(self.student(batch.labelled), batch.label)
            yield Objective("student", labelled, {"labelled": labelled})
            return

        with torch.no_grad():
            p_t = [z.float().softmax(1) for z in self.teacher(batch.unlabelled)]
        z_l, z_u = zip(*(batch.split(z) for z in self.student(batch.images)), strict=True)
        # instance norm and no dropout: this pass is what the student says when it is evaluated
        main, conservative, radical = (z.argmax(1) for z in z_u)
        certain = conservative == radical
        pseudo = main.masked_fill(~certain, IGNORE)
        errors = [masked_mse(z.float().softmax(1), p, ~certain.unsqueeze(1)) for z, p in zip(z_u, p_t, strict=True)]
        terms = {
            "labelled": self._segmentation(z_l, batch.label),
            "certain": self._segmentation(z_u, pseudo, pseudo=True),
            "uncertain": z_u[0].shape[1] * torch.stack(errors).mean(),
        }
        weight = c.uncertain_weight * sigmoid_rampup(clock.phase_iteration, c.ramp_share * clock.phase_total)
        loss = terms["labelled"] + c.unlabelled_weight * (terms["certain"] + weight * terms["uncertain"])
        yield Objective("student", loss, terms, {"weight": weight, "certain_share": certain.float().mean()})
        ema_(self.teacher, self.student, ema_alpha(clock.phase_iteration, c.alpha, c.ema_warmup))

    def predict(self, images: Tensor) -> Tensor:
        """Softmax of the student's main head."""
        return self.student(images)[0].softmax(1)

    def _segmentation(self, heads: Sequence[Tensor], y: Tensor, pseudo: bool = False) -> Tensor:
        """L_l, or L_c of pseudo-labels."""
        main, conservative, radical = heads
        cautious, bold = (self.config.cost, 1.0), (1.0, self.config.cost)
        if pseudo and self.config.swap_weights:
            cautious, bold = bold, cautious
        ce = cost_ce if pseudo else mean_cost_ce
        costly = ce(conservative, y, *cautious) + ce(radical, y, *bold)
        return (dice_ce(main, y, dice_loss_of_each_crop) + costly) / 4


def cost_ce(
    logits: Float[Tensor, "b classes x y z"], label: Int64[Tensor, "b x y z"], background: float, organ: float
) -> Float[Tensor, ""]:
    """Cross-entropy whose voxels cost what their true class does; sum over the number of voxels that count."""
    costs = torch.full((logits.shape[1],), organ, device=logits.device)
    costs[0] = background
    return cross_entropy(logits.float(), label, costs)


def mean_cost_ce(
    logits: Float[Tensor, "b classes x y z"], label: Int64[Tensor, "b x y z"], background: float, organ: float
) -> Float[Tensor, ""]:
    """As `cost_ce`, but the sum over the costs of the voxels that count; 0, not NaN, where none does."""
    costs = background * (label == 0).sum() + organ * (label > 0).sum()
    return cost_ce(logits, label, background, organ) * (label != IGNORE).sum() / costs.clamp(min=1e-16)
