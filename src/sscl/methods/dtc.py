"""DTC: one network says the mask and the distance to its surface, and the two must agree.

Luo, Chen, Song, Wang: "Semi-supervised Medical Image Segmentation through Dual-task Consistency", AAAI 2021. The map of
signed distances becomes a mask by a steep sigmoid, so that unlabelled images have something to agree on; no teacher.
"""

from collections.abc import Iterator, Mapping

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import TENTH_EVERY_2500, Literature, Method, MethodConfig, Objective, Phase
from sscl.nets.vnet import VNet
from sscl.ops.distance_map import distance_loss, distribution, two_tasks
from sscl.ops.losses import masked_mse, organ_dice_loss, voxels_that_count
from sscl.ops.ramps import sigmoid_rampup


class DTCConfig(MethodConfig):
    """The constants of the paper's code."""

    distance: NonNegativeFloat = 0.3
    """Weight of the regression of distances."""
    steepness: PositiveFloat = 1500.0
    """k of T^-1(s) = sigmoid(-k s)."""
    consistency: NonNegativeFloat = 1.0
    """Weight of the agreement at the end of its ramp."""
    ramp_share: PositiveFloat = 1.0
    """The ramp's length as a part of the run: 6000 of 6000 iterations."""


class DTC(Method):
    """One V-Net with two heads."""

    Config = DTCConfig
    literature = Literature(iterations=6000, settings=TENTH_EVERY_2500)
    targets = ("signed_distance",)
    config: DTCConfig

    def __init__(self, config: DTCConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        self.student = VNet(in_channels, 2 * (num_classes - 1), config.width, config.dropout)

    @classmethod
    def phases(cls, config: DTCConfig) -> tuple[Phase, ...]:
        """One phase of 2 + 2 crops."""
        return (Phase(name="train", share=1, batch=(2, 2)),)

    def players(self) -> Mapping[str, nn.Module]:
        """The network."""
        return {"student": self.student}

    def tested(self) -> tuple[str, ...]:
        """The network."""
        return ("student",)

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        """L = L_dice + 0.3 L_distance + w(t) L_consistency, of masks p = sigmoid(z) and maps s = tanh(z').

        L_dice = 1 - Dice(p, y), labelled half
        L_distance = mean (s - signed distance of y)^2, labelled half
        L_consistency = mean (sigmoid(-1500 s) - p)^2, both halves, either side moves
        w(t) = exp(-5 (1 - t/T)^2)
        """
        c = self.config
        p, s = two_tasks(self.student(batch.images))
        (p_l, _), (s_l, _) = batch.split(p), batch.split(s)
        terms = {
            "dice": organ_dice_loss(p_l, batch.label),
            "distance": distance_loss(s_l, batch.targets["signed_distance"], batch.label),
            "consistency": masked_mse((-c.steepness * s).sigmoid(), p, voxels_that_count(batch)),
        }
        weight = c.consistency * sigmoid_rampup(clock.iteration, c.ramp_share * clock.total)
        loss = terms["dice"] + c.distance * terms["distance"] + weight * terms["consistency"]
        yield Objective("student", loss, terms, {"weight": weight})

    def predict(self, images: Tensor) -> Tensor:
        """The mask head: one sigmoid per organ, made a distribution; the map of distances is not used."""
        p, _ = two_tasks(self.student(images))
        return distribution(p)
