"""GBDL: a generative model of image and mask labels the unlabelled half for a Bayesian U-Net.

Wang and Lukasiewicz: "Rethinking Bayesian Deep Learning Methods for Semi-Supervised Volumetric Medical Image
Segmentation", CVPR 2022. Two phases: latent representation learning (LRL) on both halves; then, with that model frozen,
the U-Net that is tested learns from masks and from the mean of several drawn segmentations.
"""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from sscl.core.batch import Batch, Clock
from sscl.core.method import Literature, Method, MethodConfig, Objective, Optimiser, Phase
from sscl.core.plan import IGNORE
from sscl.nets.bayesian import BayesianUNet, LatentModel
from sscl.ops.losses import SMOOTH, cross_entropy
from sscl.ops.pseudo import foreground_labels


class GBDLConfig(MethodConfig):
    """The constants of the authors' code."""

    width: PositiveInt = 16
    """Unit of all filters. At 16: 32 to 384 of the U-Net, 64 to 512 and latents of 256 of the latent model."""
    dropout: float = Field(default=0.3, ge=0, lt=1)
    """Channel dropout of the Bayesian U-Net's decoder, at test too; 0 leaves nothing Bayesian."""
    latent_share: float = Field(default=0.5, gt=0, lt=1)
    """Part of the run that learns the latent model: half of 240 epochs."""
    latent_filters: PositiveInt = 4
    """First stage of the latent model, per unit of width: 64 at width 16. 1: a sixteenth of its convolutions."""
    latent_learning_rate: PositiveFloat = 0.01
    """Of the first phase; all else but the weight decay is `optimiser`'s."""
    latent_weight_decay: NonNegativeFloat = 1e-4
    """Of the first phase."""
    spread: PositiveFloat = 10.0
    """a in the root of a slice's covariance, v v' + a I."""
    kl: Literal["product", "slices"] = "product"
    """Whose distance to N(0, I): that of the product of the slices' densities, or the sum of every slice's."""
    kl_weight: NonNegativeFloat = 0.005
    """Of that distance, per crop."""
    dice_weight: PositiveFloat = 2.0
    """CE + 2 Dice, in both phases."""
    draws: PositiveInt = 5
    """M latents a pseudo-label is the mean of."""
    threshold: float = Field(default=0.5, ge=0, lt=1)
    """Foreground of the pseudo-labels that the cross-entropy sees; Dice sees their probabilities."""
    passes: PositiveInt = 10
    """T passes with dropout at test."""

    acts_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {"passes": {"dropout": True}}


class GBDL(Method):
    """Latent model and Bayesian U-Net."""

    Config = GBDLConfig
    literature = Literature(
        iterations=8640,  # LA, 8 masks: 240 epochs of 72 unlabelled scans, 2 a step
        settings={
            "optimiser.kind": "adam",
            "optimiser.learning_rate": 5e-4,
            "optimiser.weight_decay": 1e-5,
            "optimiser.schedule.kind": "cosine",
            "latent_learning_rate": 1e-4,
            "latent_weight_decay": 1e-4,
        },
    )
    config: GBDLConfig

    def __init__(self, config: GBDLConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        self.latent = LatentModel(in_channels, num_classes, config.width, config.latent_filters, config.spread)
        self.student = BayesianUNet(in_channels, num_classes, config.width, config.dropout)

    @classmethod
    def phases(cls, config: GBDLConfig) -> tuple[Phase, ...]:
        """LRL, then the segmentation network; 2 + 2 crops in both."""
        share = config.latent_share
        return Phase(name="latent", share=share, batch=(2, 2)), Phase(name="segment", share=1 - share, batch=(2, 2))

    def players(self) -> Mapping[str, nn.Module]:
        """One a phase."""
        return {"latent": self.latent, "student": self.student}

    def optimisers(self) -> Mapping[str, Optimiser]:
        """The latent model has its own learning rate and weight decay."""
        c = self.config
        own = {"learning_rate": c.latent_learning_rate, "weight_decay": c.latent_weight_decay}
        return {"latent": c.optimiser.model_copy(update=own), "student": c.optimiser}

    def tested(self) -> tuple[str, ...]:
        """The Bayesian U-Net."""
        return ("student",)

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        """Two phases, of image X, mask Y and a latent Z_i for each slice i.

        latent: L = CE + 2 Dice of P(Y | X, Z), labelled half, + |X - X_hat|^2 of P(X | Z) + 0.005 KL, both halves;
        Z_i = mu_i + A_i eps, A_i = v_i v_i' + 10 I, KL from the product of all N(mu_i, A_i^2) to N(0, I).
        segment: L = mean of CE + 2 Dice over all crops, against Y or the mean of M drawn P(Y | X, Z).
        """
        yield self._latent(batch) if clock.phase == "latent" else self._segment(batch)

    def predict(self, images: Tensor) -> Tensor:
        """Mean softmax of T passes with dropout, the same T networks for every image; no slice is left out."""
        return self.student.mean(images, self.config.passes)

    def _latent(self, batch: Batch) -> Objective:
        """Learn to draw the image, and the mask where there is one, from latents."""
        c, x = self.config, batch.images
        q = self.latent.infer(x)  # Q(Z | X)
        z = q.draw()
        x_hat = self.latent.reconstruct(z, x.shape[2:]).float()  # P(X | Z)
        y_hat = self.latent.segment(self.latent.features(batch.labelled), batch.split(z)[0]).float()  # P(Y | X, Z)
        kl = q.kl_of_product() if c.kl == "product" else q.kl_of_slices()
        terms = {
            "ce": cross_entropy(y_hat, batch.label),
            "dice": _dice(y_hat.softmax(1), *_one_hot(batch.label, y_hat.shape[1])),
            "rec": (x_hat - x).square().sum(1).mean(),
            "kl": kl.mean(),
        }
        loss = terms["ce"] + c.dice_weight * terms["dice"] + terms["rec"] + c.kl_weight * terms["kl"]
        return Objective("latent", loss, terms)

    def _segment(self, batch: Batch) -> Objective:
        """Teach the U-Net with masks and pseudo-labels."""
        c, p_u = self.config, self._label(batch.unlabelled)
        y_p = foreground_labels(p_u, c.threshold)
        z_l, z_u = batch.split(self.student(batch.images).float())
        terms = {
            "ce": cross_entropy(z_l, batch.label),
            "dice": _dice(z_l.softmax(1), *_one_hot(batch.label, z_l.shape[1])),
            "pseudo_ce": cross_entropy(z_u, y_p),
            "pseudo_dice": _dice(z_u.softmax(1), p_u),
        }
        labelled = terms["ce"] + c.dice_weight * terms["dice"]
        unlabelled = terms["pseudo_ce"] + c.dice_weight * terms["pseudo_dice"]
        loss = (len(z_l) * labelled + len(z_u) * unlabelled) / len(batch.images)
        return Objective("student", loss, terms, {"pseudo_foreground": (y_p > 0).float().mean()})

    @torch.no_grad()
    def _label(self, x_u: Tensor) -> Tensor:
        """Mean softmax over M latents."""
        q, features = self.latent.infer(x_u), self.latent.features(x_u)
        drawn = [self.latent.segment(features, q.draw()).float().softmax(1) for _ in range(self.config.draws)]
        return torch.stack(drawn).mean(0)


def _one_hot(label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The label as probabilities, and where it counts."""
    counted = (label != IGNORE).unsqueeze(1)
    return functional.one_hot(label.clamp(min=0), classes).movedim(-1, 1) * counted, counted


def _dice(p: Tensor, y: Tensor, counted: Tensor | float = 1.0) -> Tensor:
    """1 - Dice of each organ in each crop, then the mean; `y` may be hard or soft."""
    p, y, axes = (p * counted)[:, 1:], y[:, 1:], (2, 3, 4)
    overlap = 2 * (p * y).sum(axes) + SMOOTH
    return (1 - overlap / (p.square().sum(axes) + y.square().sum(axes) + SMOOTH)).mean()
