"""ComWin: three networks, each taught by whichever of the other two is surer of the voxel.

Wu, Li, Lin, Cheng: "Compete to Win: Enhancing Pseudo Labels for Barely-supervised Medical Image Segmentation", TMI
2023. ComWin+ (`boundary_aware`) adds losses at half resolution, and attention in windows that hold a boundary.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float, Int64
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import TENTH_EVERY_2500, Literature, Method, MethodConfig, Objective, Phase
from sscl.nets.vnet import VNet
from sscl.nets.window_attention import BoundaryAwareVNet
from sscl.ops.losses import dice_ce

NETWORKS = 3


class ComWinConfig(MethodConfig):
    """The constants of the paper's code."""

    supervised_weight: PositiveFloat = 0.5
    """0.5 (CE + Dice), against masks and against pseudo-labels."""
    lam: NonNegativeFloat = 0.5
    """Weight of the pseudo-labels, from the first step on (README; the code's default is 0.1)."""
    boundary_aware: bool = False
    """Switch: ComWin+."""
    window: PositiveInt = 4
    """Voxels a side of a window of attention, at half resolution (README; the code's default is 2)."""

    acts_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {"window": {"boundary_aware": True}}


class ComWin(Method):
    """Three students, of which the first is tested."""

    Config = ComWinConfig
    literature = Literature(iterations=6000, settings=TENTH_EVERY_2500)
    config: ComWinConfig

    def __init__(self, config: ComWinConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        c, sizes = config, (in_channels, num_classes, config.width, config.dropout)
        self.students = nn.ModuleList(
            BoundaryAwareVNet(*sizes, c.window) if c.boundary_aware else VNet(*sizes) for _ in range(NETWORKS)
        )

    @classmethod
    def phases(cls, config: ComWinConfig) -> tuple[Phase, ...]:
        """One phase of 2 + 2 crops."""
        return (Phase(name="train", share=1, batch=(2, 2)),)

    def players(self) -> Mapping[str, nn.Module]:
        """All three at once: each has its own part of the loss, so this is one optimiser for each."""
        return {"students": self.students}

    def tested(self) -> tuple[str, ...]:
        """The first network."""
        return ("students.0",)

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        """L = sum over networks i of S(o_i, y) + 0.5 S(o_i, c_i); ComWin+: and the same at half resolution.

        S(o, y) = 0.5 (CE + Dice)
        y: the label, labelled half; at half resolution every other voxel of it
        c_i: unlabelled half, at each voxel the likeliest class of that one of the other two networks whose largest
        probability is the larger
        ComWin+: o_i looks again into the windows where c_i, at half resolution, holds more than one class
        """
        c = self.config
        terms: dict[str, Tensor] = {}
        losses = []
        for suffix, stride, o in self._scales(batch.images):
            y = batch.label[:, ::stride, ::stride, ::stride]
            o_l, o_u = zip(*map(batch.split, o), strict=True)
            sup = torch.stack([dice_ce(o_i, y) for o_i in o_l]).sum()
            cps = torch.stack([dice_ce(o_i, c_i) for o_i, c_i in zip(o_u, compete_to_win(o_u), strict=True)]).sum()
            terms |= {f"sup{suffix}": sup, f"cps{suffix}": cps}
            losses.append(sup + c.lam * cps)
        yield Objective("students", c.supervised_weight * torch.stack(losses).sum(), terms)

    def predict(self, images: Tensor) -> Tensor:
        """Softmax of the first network; ComWin+: it looks again where it sees a boundary itself."""
        return self.students[0](images).softmax(1)

    def _scales(self, images: Tensor) -> Iterator[tuple[str, int, list[Tensor]]]:
        """Of each resolution with a loss: ending of its terms' names, voxels a step, logits of the three networks."""
        if not self.config.boundary_aware:
            yield "", 1, [net(images) for net in self.students]
            return
        nets = [cast(BoundaryAwareVNet, net) for net in self.students]
        x1, x8, half = zip(*(net.coarse(images) for net in nets), strict=True)
        full = [net.fine(*given) for net, *given in zip(nets, x1, x8, compete_to_win(half), strict=True)]
        yield from (("", 1, full), ("_half", 2, list(half)))


@torch.no_grad()
def compete_to_win(logits: Sequence[Float[Tensor, "b classes x y z"]]) -> list[Int64[Tensor, "b x y z"]]:
    """For each network the label of the surer one of all others, voxel by voxel; of the first where they tie."""
    confidence, label = torch.stack([z.float().softmax(1) for z in logits]).max(2)
    others = [[j for j in range(len(logits)) if j != i] for i in range(len(logits))]
    return [label[j].gather(0, confidence[j].argmax(0, keepdim=True))[0] for j in others]
