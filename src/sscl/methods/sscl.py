"""SSCL: spatial-spectral and commonality learning.

Liu, Du, Li, Li, Fan, Yang: "SSCL: A Spatial-Spectral and Commonality Learning Network for Semi-Supervised Medical
Image Segmentation". A mean teacher; the student has a spatial and a spectral encoder (sec. 3.3) and gets the features
of a network that reconstructs its input (sec. 3.2). What the text leaves open: docs/methods/sscl.md.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import Literature, Method, MethodConfig, Objective, Phase, Schedule
from sscl.nets.spatial_spectral import SpatialSpectralVNet
from sscl.nets.spectral import SpectralEncoder
from sscl.nets.vnet import Reconstructor
from sscl.ops.ema import Buffers, ema_, ema_alpha
from sscl.ops.losses import dice_ce, dice_loss, dice_loss_all_classes, dice_loss_present, mse
from sscl.ops.perturb import copy_paste, gaussian_noise
from sscl.ops.pseudo import confident_labels, foreground_labels

_TAUGHT = {"unlabelled": True, "teacher": True}


class SSCLConfig(MethodConfig):
    """The paper's numbers; where it is silent, the choices that docs/methods/sscl.md argues for."""

    head_dropout: float | None = Field(default=None, ge=0, lt=1)
    """Channel dropout before the last convolution, where it is to differ from that on F_spa, which is `dropout`."""
    lam: NonNegativeFloat = 0.5
    """Weight of the unsupervised loss (eq. 6, Table 5)."""
    alpha: float = Field(default=0.999, ge=0, le=1)
    """EMA of the teacher (eq. 10, Table 6; sec. 4.4 prints .99)."""
    ema_warmup: bool = False
    """alpha = min(1 - 1/(t+1), alpha): what short runs need."""
    threshold: float = Field(default=0.5, ge=0, lt=1)
    """For pseudo-labels (sec. 3.4, Fig. 6)."""
    pseudo: Literal["foreground", "confident"] = "foreground"
    """Foreground where its probability exceeds the threshold; or the likeliest class where it is surer than that."""
    pseudo_absent: Literal["skip", "count"] = "skip"
    """An organ that no pseudo-label of the batch holds: left out of their Dice (and where they hold none at all, no
    loss: a teacher that sees nothing would teach that there is nothing), or counted, as eq. 8 has it.
    """
    spectral: bool = True
    """Switch: the spectral encoder (Table 4: FFC)."""
    reconstructor: bool = True
    """Switch: the commonality learning module (Table 4: REC)."""
    unlabelled: bool = True
    """Switch: unlabelled scans; off, the batch holds labelled crops only."""
    teacher: bool = True
    """Switch: the mean teacher; off, the student makes its own pseudo-labels."""
    pretrain_share: float = Field(default=4 / 34, ge=0, lt=1)
    """4k of 34k iterations (sec. 4.1): supervised, without teacher."""
    pretrain_recon_unlabelled: bool = True
    """Pre-training batches are 2 + 2, and the reconstructor sees all four; off: 4 labelled crops."""
    pretrain_recon_first: bool = False
    """The reconstructor alone for the first half of pre-training; off: it and the student from the start."""
    pretrain_copy_paste: bool = False
    """Pre-train on crops pasted into each other, as BCP does."""
    detach_common: bool = True
    """"Independently update" (sec. 3.1): the segmentation loss does not reach the reconstructor."""
    recon_skips: bool = True
    """The reconstructor "consists of a VNet": with skips, reconstructing needs little of F_c."""
    recon_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Channel dropout on F_c."""
    spectral_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Channel dropout on F_spe."""
    spectral_fft: Literal["one_sided", "full"] = "one_sided"
    """One-sided keeps the output real; full takes the real part."""
    spectral_activation_first: bool = True
    """Activation before batch norm (sec. 3.3); fast Fourier convolution has it the other way round."""
    spectral_residual: bool = False
    """Add each Fourier block's input, where the channels agree."""
    spectral_local: bool = False
    """A 3x3x3 convolution beside each level's Fourier blocks."""
    spectral_stages: tuple[int, int, int, int, int] = (1, 1, 1, 1, 1)
    """Fourier blocks of each level."""
    teacher_noise: NonNegativeFloat = 0.0
    """Standard deviation of the noise on the teacher's input, clipped at twice that (UA-MT: 0.1)."""
    teacher_buffers: Buffers = "own"
    """Batch-norm statistics of the teacher, which `teacher_eval` uses."""
    teacher_eval: bool = False
    """Run the teacher with its stored statistics and without dropout."""
    dice_all_classes: bool = False
    """BCP's Dice instead of UA-MT's."""

    acts_with: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "lam": {"unlabelled": True},
        "threshold": {"unlabelled": True},
        "pseudo": {"unlabelled": True},
        "pseudo_absent": {"unlabelled": True},
        "alpha": _TAUGHT,
        "ema_warmup": _TAUGHT,
        "teacher_noise": _TAUGHT,
        "teacher_eval": _TAUGHT,
        "teacher_buffers": {**_TAUGHT, "teacher_eval": True},
        "pretrain_recon_unlabelled": {"pretrain_share": True, "unlabelled": True, "reconstructor": True},
        "pretrain_recon_first": {"pretrain_share": True, "reconstructor": True},
        "pretrain_copy_paste": {"pretrain_share": True},
        "detach_common": {"reconstructor": True},
        "recon_skips": {"reconstructor": True},
        "recon_dropout": {"reconstructor": True},
        "spectral_dropout": {"spectral": True},
        "spectral_fft": {"spectral": True},
        "spectral_activation_first": {"spectral": True},
        "spectral_residual": {"spectral": True},
        "spectral_local": {"spectral": True},
        "spectral_stages": {"spectral": True},
    }


class SSCL(Method):
    """Student, teacher and reconstructor."""

    Config = SSCLConfig
    literature = Literature(iterations=34_000)
    config: SSCLConfig

    def __init__(self, config: SSCLConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        c = config
        spectral = None
        if c.spectral:
            encoder = SpectralEncoder(
                in_channels, c.width, c.spectral_fft, c.spectral_activation_first, c.spectral_residual,
                c.spectral_local, c.spectral_stages,
            )  # fmt: skip
            spectral = nn.Sequential(encoder, nn.Dropout3d(c.spectral_dropout))
        head_dropout = c.dropout if c.head_dropout is None else c.head_dropout
        self.student = SpatialSpectralVNet(in_channels, num_classes, c.width, c.dropout, head_dropout, spectral)
        self.reconstructor = Reconstructor(in_channels, c.width, c.recon_skips) if c.reconstructor else None
        self.common_dropout = nn.Dropout3d(c.recon_dropout)
        self.teacher = deepcopy(self.student).requires_grad_(False) if c.teacher and c.unlabelled else None

    @classmethod
    def phases(cls, config: SSCLConfig) -> tuple[Phase, ...]:
        """Pre-training at a constant rate, then formal training with fresh optimisers (sec. 4.1: 4k + 30k, 2 + 2)."""
        c, share = config, config.pretrain_share
        first = (2, 2) if c.unlabelled and c.reconstructor and c.pretrain_recon_unlabelled else (4, 0)
        second = (2, 2) if c.unlabelled else (4, 0)
        formal = Phase(name="formal", share=1 - share, batch=second, fresh_optimisers=True)
        pretrain = Phase(name="pretrain", share=share or 1, batch=first, schedule=Schedule(kind="constant"))
        if share and c.reconstructor and c.pretrain_recon_first:
            alone, joint = (pretrain.override({"name": n, "share": share / 2}, n) for n in ("reconstruct", "pretrain"))
            return alone, joint, formal
        return (pretrain, formal) if share else (formal,)

    def players(self) -> Mapping[str, nn.Module]:
        """Two that update independently; one if the segmentation loss is to reach the reconstructor."""
        if self.reconstructor is None:
            return {"student": self.student}
        if self.config.detach_common:
            return {"reconstructor": self.reconstructor, "student": self.student}
        return {"student": nn.ModuleList([self.student, self.reconstructor])}

    def tested(self) -> tuple[str, ...]:
        """Only these two are needed in the testing phase (Fig. 4)."""
        return ("student",) if self.reconstructor is None else ("student", "reconstructor.encoder")

    def begin(self, phase: str) -> None:
        """The teacher starts as the pre-trained student, statistics included."""
        if phase == "formal" and self.teacher is not None:
            self.teacher.load_state_dict(self.student.state_dict())

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        """Equations 1 to 10. Pre-training: L_rec and L_sup alone.

        x^, F_c = R(x); L_rec = mean (x^ - x)^2, for R alone (1, 9)
        p_t = softmax(teacher(x_u, F_c)), pseudo-label Y: p_t > threshold (2)
        F_f = F_spa + F_spe, spatial and spectral encoder; y = decoder(F_f + F_c) (3 to 5)
        L = L_sup + lam L_unsup (6); L_sup = (Dice + CE)(y_l, label) (7); L_unsup = (Dice + CE)(y_u, Y) (8)
        teacher <- alpha teacher + (1 - alpha) student (10)
        """
        c = self.config
        if clock.phase == "pretrain" and c.pretrain_copy_paste:
            images, label = copy_paste(batch.labelled, batch.label)
            batch = replace(batch, labelled=images, label=label)
        dice = dice_loss_all_classes if c.dice_all_classes else dice_loss
        x, f_c, rec = batch.images, None, {}
        if self.reconstructor is not None:
            x_hat, f_c = self.reconstructor(x)  # (1)
            rec = {"rec": mse(x_hat, x)}  # (9)
            if c.detach_common:
                yield Objective("reconstructor", rec["rec"], rec)
                f_c, rec = f_c.detach(), {}
            elif clock.phase == "reconstruct":
                yield Objective("student", rec["rec"], rec)  # the player that holds both networks
            if clock.phase == "reconstruct":
                return
            f_c = self.common_dropout(f_c)
        f_l, f_u = (None, None) if f_c is None else batch.split(f_c)

        if clock.phase == "pretrain" or not c.unlabelled:
            sup = dice_ce(self.student(batch.labelled, f_l), batch.label, dice)  # (7)
            yield Objective("student", sup + sum(rec.values()), {"sup": sup, **rec})
            return

        y_l, y_u = batch.split(self.student(x, f_c))  # (3)
        p_t = self._teach(batch.unlabelled, f_u) if self.teacher is not None else y_u.detach().softmax(1)  # (2)
        y_p = foreground_labels(p_t, c.threshold) if c.pseudo == "foreground" else confident_labels(p_t, c.threshold)
        sup = dice_ce(y_l, batch.label, dice)  # (7)
        absent = dice if c.dice_all_classes or c.pseudo_absent == "count" else dice_loss_present
        unsup = dice_ce(y_u, y_p, absent)  # (8)
        if c.pseudo_absent == "skip":
            unsup = unsup * (y_p > 0).any()
        loss = sup + c.lam * unsup + sum(rec.values())  # (6)
        gauges = {"pseudo_foreground": (y_p > 0).float().mean()}
        yield Objective("student", loss, {"sup": sup, "unsup": unsup, **rec}, gauges)
        if self.teacher is not None:
            alpha = ema_alpha(clock.phase_iteration, c.alpha, c.ema_warmup)
            ema_(self.teacher, self.student, alpha, c.teacher_buffers)  # (10)

    def predict(self, images: Tensor) -> Tensor:
        """Equation 11: the student, with the common features of the test image."""
        f_c = None if self.reconstructor is None else self.reconstructor.encoder(images)[-1]
        return self.student(images, f_c).softmax(1)

    @torch.no_grad()
    def _teach(self, x_u: Tensor, f_u: Tensor | None) -> Tensor:
        """Equation 2: the teacher's probabilities for the unlabelled half."""
        assert self.teacher is not None
        self.teacher.train(not self.config.teacher_eval)
        if self.config.teacher_noise:
            x_u = gaussian_noise(x_u, self.config.teacher_noise, 2 * self.config.teacher_noise)
        return self.teacher(x_u, f_u).softmax(1)
