"""BCP: labelled and unlabelled crops pasted into each other, both ways.

Bai, Chen, Li, Shen, Wang: "Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation", CVPR 2023. The
student sees nothing but mixtures, of which one part is labelled by the mask and the other by the teacher.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy

import torch
from jaxtyping import Int64
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, field_validator
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import TENTH_EVERY_2500, Literature, Method, MethodConfig, Objective, Phase, Schedule
from sscl.core.plan import IGNORE
from sscl.nets.vnet import VNet
from sscl.ops.ema import ema_, ema_alpha
from sscl.ops.losses import dice_ce, dice_loss_of_each_crop
from sscl.ops.perturb import pasted, random_box
from sscl.ops.pseudo import largest_components


class BCPConfig(MethodConfig):
    """The constants of the paper's code for LA."""

    supervised_weight: PositiveFloat = 0.5
    """0.5 (CE + Dice), in both phases."""
    unlabelled_weight: NonNegativeFloat = 0.5
    """u: voxels with a pseudo-label, against 1 for labelled ones."""
    box_share: float = Field(default=2 / 3, gt=0, lt=1)
    """Sides of the pasted box as a part of the crop's: 74x74x53 of 112x112x80."""
    largest_component: bool = True
    """Keep only the largest component of each organ in a pseudo-label."""
    alpha: float = Field(default=0.99, ge=0, le=1)
    """EMA of the teacher."""
    ema_warmup: bool = False
    """alpha = min(1 - 1/(t+1), alpha)."""
    pretrain_share: float = Field(default=2 / 17, ge=0, lt=1)
    """2k of 2k + 15k iterations."""
    batch: tuple[PositiveInt, PositiveInt] = (2, 2)
    """Crops a step of self-training: half of the labelled ones are A, half B; of the unlabelled ones U_a and U_b."""

    @field_validator("batch")
    @classmethod
    def _has_halves(cls, batch: tuple[int, int]) -> tuple[int, int]:
        if batch[0] != batch[1] or batch[0] % 2:
            raise ValueError("an even number of labelled crops, and as many unlabelled ones")
        return batch


class BCP(Method):
    """Student and teacher."""

    Config = BCPConfig
    literature = Literature(iterations=17_000, settings={**TENTH_EVERY_2500, "batch": (4, 4)})
    config: BCPConfig

    def __init__(self, config: BCPConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        self.student = VNet(in_channels, num_classes, config.width, config.dropout)
        self.teacher = deepcopy(self.student).requires_grad_(False)

    @classmethod
    def phases(cls, config: BCPConfig) -> tuple[Phase, ...]:
        """Pre-training on 4 labelled crops at a constant rate, then self-training with a fresh optimiser."""
        share = config.pretrain_share
        pretrain = Phase(name="pretrain", share=share or 1, batch=(4, 0), schedule=Schedule(kind="constant"))
        self_train = Phase(name="self_train", share=1 - share, batch=config.batch, fresh_optimisers=True)
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
        """M is 0 in one random box for the whole batch, 1 outside. Masks are mixed like images.

        Pre-training: L = 0.5 (CE + Dice) on A M + B (1 - M)
        Self-training: L = l(x_1; A, P_a) + l(x_2; P_b, B) with x_1 = A M + U_a (1 - M), x_2 = U_b M + B (1 - M)
        l = 0.5 (CE + Dice) of the labelled part + u 0.5 (CE + Dice) of the unlabelled part, u = 0.5
        P: the teacher's labels of U, of each organ the largest component
        """
        c, shape = self.config, batch.label.shape[1:]
        box = random_box(shape, [int(c.box_share * n) for n in shape])
        (a, b), (y_a, y_b) = batch.labelled.chunk(2), batch.label.chunk(2)

        if clock.phase == "pretrain":
            sup = _loss(self.student(pasted(a, b, box)), pasted(y_a, y_b, box))
            yield Objective("student", c.supervised_weight * sup, {"sup": sup})
            return

        (u_a, u_b), (p_a, p_b) = batch.unlabelled.chunk(2), self._teach(batch.unlabelled).chunk(2)
        z_1, z_2 = self.student(torch.cat([pasted(a, u_a, box), pasted(u_b, b, box)])).chunk(2)
        void = torch.full_like(y_a, IGNORE)  # over the part that a loss leaves out
        terms = {
            "labelled": _loss(z_1, pasted(y_a, void, box)) + _loss(z_2, pasted(void, y_b, box)),
            "unlabelled": _loss(z_1, pasted(void, p_a, box)) + _loss(z_2, pasted(p_b, void, box)),
        }
        loss = c.supervised_weight * (terms["labelled"] + c.unlabelled_weight * terms["unlabelled"])
        yield Objective("student", loss, terms, {"pseudo_foreground": (torch.cat([p_a, p_b]) > 0).float().mean()})
        ema_(self.teacher, self.student, ema_alpha(clock.phase_iteration, c.alpha, c.ema_warmup))

    def predict(self, images: Tensor) -> Tensor:
        """Softmax of the student."""
        return self.student(images).softmax(1)

    @torch.no_grad()
    def _teach(self, x_u: Tensor) -> Int64[Tensor, "b x y z"]:
        """P: the likeliest class of each voxel."""
        labels = self.teacher(x_u).argmax(1)
        return largest_components(labels) if self.config.largest_component else labels


def _loss(z: Tensor, y: Tensor) -> Tensor:
    """CE + Dice, Dice of each crop by itself."""
    return dice_ce(z, y, dice_loss_of_each_crop)
