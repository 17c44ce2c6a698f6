"""Small faults, one each, that a method can have and still train, log falling losses and look well."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import Objective, Target
from sscl.core.plan import Plan
from sscl.data.patches import Draw, Loaded, PatchLoader
from sscl.data.store import CaseStore
from sscl.methods.mean_teacher import MeanTeacher, MeanTeacherConfig
from sscl.methods.sscl import SSCL
from sscl.methods.ua_mt import UAMT
from sscl.ops.ema import ema_
from sscl.ops.losses import dice_ce, mse


class TermNotAdded(MeanTeacher):
    """The consistency is logged, and the loss goes without it."""

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        for objective in super().step(batch, clock):
            yield replace(objective, loss=objective.terms["ce"] + objective.terms["dice"])


class StudentIsTeacher(MeanTeacher):
    """The unlabelled rows "of the student" come from the teacher: a consistency that is nearly zero for ever."""

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        p_t = self.teacher(batch.unlabelled).softmax(1)
        y_l, _ = batch.split(self.student(batch.images))
        y_u = self.teacher(batch.unlabelled)
        sup, con = dice_ce(y_l, batch.label), mse(y_u.softmax(1), p_t)
        yield Objective("student", sup + con, {"sup": sup, "consistency": con})


class MaskAlwaysEmpty(UAMT):
    """Nothing is ever sure enough: the consistency is exactly zero."""

    def _teach(self, x_u: Tensor) -> Tensor:
        return torch.full((len(x_u), 3, *x_u.shape[2:]), 1 / 3)

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        return super().step(batch, replace(clock, iteration=0))


class Backwards(Batch):
    """A batch whose rows are split the wrong way round."""

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        labelled, unlabelled = super().split(rows)
        return unlabelled, labelled


class SwappedHalves(MeanTeacher):
    """The label meets the rows of the unlabelled images."""

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        return super().step(Backwards(batch.labelled, batch.label, batch.unlabelled), clock)


class ImagesSwapped(SSCL):
    """The images are put together the other way round than they are split."""

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        if clock.phase == "pretrain":
            return super().step(batch, clock)
        return super().step(Batch(batch.unlabelled, batch.label, batch.labelled), clock)


class TargetNotDetached(MeanTeacher):
    """The teacher's weights are open to gradient, and its target is not cut off."""

    def __init__(self, config: MeanTeacherConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        self.teacher.requires_grad_(True)

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        p_t = self.teacher(batch.unlabelled).softmax(1)
        y_l, y_u = batch.split(self.student(batch.images))
        sup, con = dice_ce(y_l, batch.label), mse(y_u.softmax(1), p_t)
        yield Objective("student", sup + con, {"sup": sup, "consistency": con})
        ema_(self.teacher, self.student, min(1 - 1 / (clock.iteration + 1), self.config.alpha))


class CommonNotDetached(SSCL):
    """The segmentation loss goes on into the reconstructor, although the two are to update independently."""

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        assert self.reconstructor is not None
        x_hat, f_c = self.reconstructor(batch.images)
        rec = mse(x_hat, batch.images)
        yield Objective("reconstructor", rec, {"rec": rec})
        sup = dice_ce(batch.split(self.student(batch.images, f_c))[0], batch.label)
        yield Objective("student", sup, {"sup": sup})


class TeacherIsTrained(TargetNotDetached):
    """The optimiser gets the teacher's weights as well."""

    def players(self) -> Mapping[str, nn.Module]:
        return {"student": nn.ModuleList([self.student, self.teacher])}


class TeacherRunsAhead(MeanTeacher):
    """alpha and 1 - alpha are exchanged."""

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        kept = [weight.detach().clone() for weight in self.teacher.parameters()]
        yield from super().step(batch, clock)
        with torch.no_grad():
            for mine, old, new in zip(self.teacher.parameters(), kept, self.student.parameters(), strict=True):
                mine.copy_(old.lerp(new, self.config.alpha))


class TeacherNotStarted(SSCL):
    """Formal training begins with the teacher's random weights instead of the pre-trained student's."""

    def begin(self, phase: str) -> None:
        pass


class TeacherRests(MeanTeacher):
    """The teacher is put into eval mode, where its targets have no dropout and statistics that it never gathered."""

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        self.teacher.eval()
        return super().step(batch, clock)


class TeacherDoesNotRest(SSCL):
    """`teacher_eval` is read, and then the engine's train mode is left as it is."""

    def _teach(self, x_u: Tensor, f_u: Tensor | None) -> Tensor:
        assert self.teacher is not None
        return self.teacher(x_u, f_u).softmax(1)


class TeacherWithoutDropout(UAMT):
    """In train mode, but its passes go round the dropout by which they were to differ."""

    def _teach(self, x_u: Tensor) -> Tensor:
        decoder = self.teacher.decoder
        return decoder.head(decoder.pyramid(self.teacher.encoder(x_u))[-1]).softmax(1)


class StateOutsideBuffers(MeanTeacher):
    """A number that a checkpoint does not see."""

    def __init__(self, config: MeanTeacherConfig, in_channels: int, num_classes: int) -> None:
        super().__init__(config, in_channels, num_classes)
        self.seen = 0

    def step(self, batch: Batch, clock: Clock) -> Iterator[Objective]:
        self.seen += 1
        for objective in super().step(batch, clock):
            yield replace(objective, loss=objective.loss * self.seen)


class UnusedConfig(MeanTeacherConfig):
    forgotten: float = 0.5


class UnusedField(MeanTeacher):
    """A setting that nobody reads."""

    Config = UnusedConfig


class Logits(MeanTeacher):
    """predict forgets the softmax."""

    def predict(self, images: Tensor) -> Tensor:
        return self.student(images)


class PredictsInTrainingMode(MeanTeacher):
    """An image's prediction hangs on the others in its batch."""

    def predict(self, images: Tensor) -> Tensor:
        return self.student.train()(images).softmax(1)


class TestsTheTeacher(MeanTeacher):
    """predict uses another network than the one that an exported model would hold."""

    def predict(self, images: Tensor) -> Tensor:
        return self.teacher(images).softmax(1)


class AllAreLabelled(PatchLoader):
    """The lists are mixed up where the loader is made: masks that exist but were not to be used are learned from."""

    def __init__(
        self,
        store: CaseStore,
        labelled: Sequence[str],
        unlabelled: Sequence[str],
        plan: Plan,
        seed: int,
        targets: tuple[Target, ...] = (),
    ) -> None:
        super().__init__(store, (*labelled, *unlabelled), unlabelled, plan, seed, targets)


class MaskBesideEveryScan(PatchLoader):
    """Whoever cuts a crop reads the mask with it, and then throws it away."""

    def load(self, draw: Draw) -> Loaded:
        loaded = super().load(draw)
        for case in loaded.cases:
            self.store.label(case)
        return loaded


class NamesTooMuch(SSCL):
    """An exported model would carry the reconstructor's decoder for nothing."""

    def tested(self) -> tuple[str, ...]:
        return ("student", "reconstructor.encoder", "reconstructor.decoder")
