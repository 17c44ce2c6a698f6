"""Tripled-UA: a mean teacher in three tasks, each of which it is believed in where it is sure.

Wang, Zhan, Zu, Wu, Zhou, Zhou, Wang: "Tripled-Uncertainty Guided Mean Teacher Model for Semi-supervised Medical Image
Segmentation", MICCAI 2021. The tasks: masks, signed distances, and the parts of the image that lie in each class.
"""

from collections.abc import Iterator, Mapping

import torch
from jaxtyping import Float, Int64
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional

from sscl.core.batch import Batch, Clock
from sscl.core.method import Literature, Method, MethodConfig, Objective, Phase
from sscl.core.plan import IGNORE
from sscl.nets.three_decoders import ThreeDecoderVNet
from sscl.ops.distance_map import distance_loss, signed_distance
from sscl.ops.ema import ema_, ema_alpha
from sscl.ops.losses import dice_loss_of_each_crop, masked_mean, masked_mse, mse, voxels_that_count
from sscl.ops.perturb import gaussian_noise
from sscl.ops.ramps import sigmoid_rampup
from sscl.ops.uncertainty import relative_entropy

TASKS = ("segmentation", "distance", "reconstruction")


class TripledUAConfig(MethodConfig):
    """The constants of the paper's code, which is for 2-D images; where it has none, ours."""

    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Channel dropout at the teacher's bottleneck; there is none in the student."""
    distance: NonNegativeFloat = 1.0
    """Weight of the signed distances of labelled crops (ours: the code's settings were not published)."""
    reconstruction: NonNegativeFloat = 1.0
    """Weight of the reconstruction of labelled crops (ours, as above)."""
    lam: NonNegativeFloat = 0.1
    """Weight of the consistencies at the end of their ramp."""
    ramp_share: PositiveFloat = 0.5
    """The ramp's length as a part of the run: 100 of 200 epochs."""
    cross_task: NonNegativeFloat = 0.1
    """Weight of the targets made from the student's own segmentation of unlabelled crops."""
    alpha: float = Field(default=0.99, ge=0, le=1)
    """EMA of the teacher."""
    ema_warmup: bool = True
    """alpha = min(1 - 1/(t+1), alpha)."""
    noise: NonNegativeFloat = 0.02
    """Standard deviation of the noise on every input, student's and teacher's, clipped at 2.5 times that."""
    passes: int = Field(default=8, ge=2)
    """K passes of the teacher."""


class TripledUA(Method):
    """Student and teacher."""

    Config = TripledUAConfig
    literature = Literature(
        iterations=6000,
        settings={
            "optimiser.kind": "adam",
            "optimiser.learning_rate": 5e-4,
            "optimiser.beta2": 0.99,
            "optimiser.weight_decay": 0.0,
            "optimiser.schedule.kind": "constant",
        },
    )
    targets = ("signed_distance",)
    config: TripledUAConfig

    def __init__(self, config: TripledUAConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        self.student = ThreeDecoderVNet(in_channels, num_classes, config.width, dropout=0.0)
        self.teacher = ThreeDecoderVNet(in_channels, num_classes, config.width, config.dropout).requires_grad_(False)
        self.teacher.load_state_dict(self.student.state_dict())

    @classmethod
    def phases(cls, config: TripledUAConfig) -> tuple[Phase, ...]:
        """One phase of 2 + 2 crops."""
        return (Phase(name="train", share=1, batch=(2, 2)),)

    def players(self) -> Mapping[str, nn.Module]:
        """The student."""
        return {"student": self.student}

    def tested(self) -> tuple[str, ...]:
        """The student, without the decoders of the two other tasks."""
        return ("student.encoder", "student.segmentation")

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        """L = L_dice + L_sdf + L_rec + w(t) sum of three L_con + 0.1 (L'_sdf + L'_rec)

        p, s, r: the student's classes (softmax), distances (sigmoid) and parts of the noisy image x
        L_dice = sum over classes of 1 - 2 sum(p y) / (sum(p) + sum(y)) of each crop, labelled half
        L_sdf = mean (2 s - (1 + signed distance of y))^2, L_rec = mean (r - x onehot(y))^2, labelled half
        L'_sdf, L'_rec: the same, of unlabelled crops with argmax p for y
        L_con, over each half, then added; K noisy passes of the teacher make the targets and how far they count:
        (p - p~)^2 (1 - H(p~)), p~ = sum_k w_k p_k, w = softmax over k of 1 - H(p_k), H the entropy over ln C
        (s - s~)^2 exp(-U), s~ and U mean and variance over k
        (r - r~)^2 exp(-U), r~ and U mean and standard deviation over k
        w(t) = 0.1 exp(-5 (1 - t/T)^2), T half of the run
        """
        c, y = self.config, batch.label
        x = self._noisy(batch.images)
        p, s, r = student = _answers(self.student, x)
        (x_l, x_u), (p_l, p_u), (s_l, s_u), (r_l, r_u) = map(batch.split, (x, p, s, r))
        terms = {
            "dice": p.shape[1] * dice_loss_of_each_crop(p_l, y),
            "distance": distance_loss(2 * s_l - 1, batch.targets["signed_distance"], y),
            "reconstruction": masked_mse(r_l, parts(x_l, y, p.shape[1]), (y != IGNORE).unsqueeze(1)),
        }
        loss = terms["dice"] + c.distance * terms["distance"] + c.reconstruction * terms["reconstruction"]

        weight = c.lam * sigmoid_rampup(clock.iteration, c.ramp_share * clock.total)
        halves = batch.split(voxels_that_count(batch))
        for task, answer, (target, belief) in zip(TASKS, student, self._teach(batch.images), strict=True):
            errors = batch.split(belief * (answer - target).square())
            terms[f"consistency_{task}"] = masked_mean(errors[0], halves[0]) + masked_mean(errors[1], halves[1])
            loss = loss + weight * terms[f"consistency_{task}"]

        if c.cross_task:
            y_u = p_u.argmax(1)
            terms["cross_distance"] = mse(2 * s_u - 1, signed_distance(y_u, p.shape[1]))
            terms["cross_reconstruction"] = mse(r_u, parts(x_u, y_u, p.shape[1]))
            loss = loss + c.cross_task * (terms["cross_distance"] + terms["cross_reconstruction"])
        yield Objective("student", loss, terms, {"weight": weight})
        ema_(self.teacher, self.student, ema_alpha(clock.iteration, c.alpha, c.ema_warmup))

    def predict(self, images: Tensor) -> Tensor:
        """Softmax of the student's segmentation."""
        return self.student.segmentation(self.student.encoder(images)).softmax(1)

    @torch.no_grad()
    def _teach(self, images: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Of each task the target, and how far it counts, 0 to 1."""
        passes = [_answers(self.teacher, self._noisy(images)) for _ in range(self.config.passes)]
        p, s, r = (torch.stack(answers) for answers in zip(*passes, strict=True))
        p_mean = integrate(p)
        return (
            (p_mean, 1 - relative_entropy(p_mean)),
            (s.mean(0), (-s.var(0)).exp()),
            (r.mean(0), (-r.std(0)).exp()),
        )

    def _noisy(self, images: Tensor) -> Tensor:
        return gaussian_noise(images, self.config.noise, 2.5 * self.config.noise)


def _answers(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """p, s, r."""
    segmentation, distance, reconstruction = net(images)
    return segmentation.float().softmax(1), distance.float().sigmoid(), reconstruction.float()


def integrate(p: Float[Tensor, "k b classes x y z"]) -> Float[Tensor, "b classes x y z"]:
    """Uncertainty-weighted integration: the mean over passes, where the surer ones count more."""
    w = (1 - torch.stack([relative_entropy(p_k) for p_k in p])).softmax(0)
    return (w * p).sum(0)


def parts(
    x: Float[Tensor, "b c x y z"], label: Int64[Tensor, "b x y z"], classes: int
) -> Float[Tensor, "b classes_c x y z"]:
    """The image in the voxels of each class and 0 elsewhere, class by class, each with all channels of the image."""
    inside = functional.one_hot(label.clamp(min=0), classes).movedim(-1, 1)
    return (inside.unsqueeze(2) * x.unsqueeze(1)).flatten(1, 2)
