"""V-Net: the supervised baseline that every semi-supervised method is measured against.

Milletari, Navab, Ahmadi: "V-Net", 3DV 2016, in the slimmed form and with the loss of UA-MT's code.
"""

from collections.abc import Iterator, Mapping

from pydantic import PositiveFloat
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import TENTH_EVERY_2500, Literature, Method, MethodConfig, Objective, Phase
from sscl.nets.vnet import VNet
from sscl.ops.losses import cross_entropy, dice_loss


class VNetConfig(MethodConfig):
    """UA-MT's supervised baseline."""

    supervised_weight: PositiveFloat = 0.5
    """0.5 (CE + Dice)."""


class SupervisedVNet(Method):
    """Sees labelled crops only."""

    Config = VNetConfig
    literature = Literature(iterations=6000, settings=TENTH_EVERY_2500)
    config: VNetConfig

    def __init__(self, config: VNetConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        self.student = VNet(in_channels, num_classes, config.width, config.dropout)

    @classmethod
    def phases(cls, config: VNetConfig) -> tuple[Phase, ...]:
        """One phase of 4 labelled crops."""
        return (Phase(name="train", share=1, batch=(4, 0)),)

    def players(self) -> Mapping[str, nn.Module]:
        """The network."""
        return {"student": self.student}

    def tested(self) -> tuple[str, ...]:
        """The network."""
        return ("student",)

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        """L = 0.5 (CE + Dice)."""
        z = self.student(batch.labelled).float()
        terms = {"ce": cross_entropy(z, batch.label), "dice": dice_loss(z.softmax(1), batch.label)}
        yield Objective("student", self.config.supervised_weight * (terms["ce"] + terms["dice"]), terms)

    def predict(self, images: Tensor) -> Tensor:
        """Softmax of the network."""
        return self.student(images).softmax(1)
