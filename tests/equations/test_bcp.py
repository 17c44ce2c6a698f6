"""BCP with networks whose answers are written down: what is pasted where, and both losses with their masks M."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import Array, array, softmax
from notes import Notes
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.errors import UserError
from sscl.core.method import Objective
from sscl.core.plan import IGNORE
from sscl.methods.bcp import BCP, BCPConfig
from sscl.ops.losses import dice_loss_all_classes, dice_loss_of_each_crop
from sscl.ops.perturb import random_box
from sscl.ops.pseudo import largest_components

CONTRACT = Notes(
    variants=({"pretrain_share": 0.0},),
    short={"pretrain_share": 0.4},
    mixed=("labelled", "unlabelled"),
    values={"pretrain_share": 0.6, "batch": (4, 4)},
)
PRETRAIN, SELF_TRAIN = Clock(0, 10, "pretrain", 0, 4), Clock(6, 10, "self_train", 2, 6)
A, B, U_A, U_B = 1.0, 2.0, 3.0, 4.0
SIZE = (7, 3, 9)  # boxes are 4x2x6: two thirds of 7 are cut, not rounded


class Says(nn.Module):
    """Given logits for as many images as there are, whatever they show; keeps them."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.logits = logits
        self.given: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.given.append(images)
        return self.scale * self.logits[: len(images)]


def batch(crops: int = 1) -> Batch:
    """Constant images; three classes and IGNORE in the label; `crops` of A, B, U_a and U_b each."""
    generator = torch.Generator().manual_seed(crops)
    label = torch.randint(IGNORE, 3, (2 * crops, *SIZE), generator=generator)

    def images(*values: float) -> Tensor:
        return torch.tensor(values).repeat_interleave(crops).reshape(-1, 1, 1, 1, 1).expand(-1, 1, *SIZE)

    return Batch(images(A, B), label, images(U_A, U_B))


def build(crops: int = 1, **settings: float | bool) -> BCP:
    method = BCP(BCPConfig(width=1, batch=(2 * crops, 2 * crops), **settings), 1, 3)  # type: ignore[arg-type]
    torch.manual_seed(5)
    method.student = Says(torch.randn(2 * crops, 3, *SIZE))  # type: ignore[assignment]
    method.teacher = Says(torch.randn(2 * crops, 3, *SIZE))  # type: ignore[assignment]
    return method


def step(method: BCP, crops: Batch, clock: Clock) -> Objective:
    torch.manual_seed(1)
    (objective,) = method.step(crops, clock)
    return objective


def part(p: Array, y: Array, m: Array) -> float:
    """CE + Dice of one direction where m is 1 and y counts: CE over all voxels, Dice of each crop and class."""
    m = m * (y >= 0)
    ce, dice = 0.0, []
    for crop in range(len(p)):
        for c in range(p.shape[1]):
            pc, yc = p[crop, c], (y[crop] == c) * 1.0
            ce -= (np.log(pc) * yc * m[crop]).sum()
            overlap = 2 * (pc * yc * m[crop]).sum() + 1e-5
            dice.append(1 - overlap / (((pc + yc) * m[crop]).sum() + 1e-5))
    return ce / m.sum() + float(np.mean(dice))


# ---------------------------------------------------------------- what is pasted where


@pytest.mark.parametrize("crops", [1, 2])
def test_frames_of_a_and_u_b_with_contents_of_u_a_and_b(crops: int) -> None:
    method = build(crops)
    step(method, batch(crops), SELF_TRAIN)
    (x_1, x_2), (u,) = method.student.given[0].chunk(2), method.teacher.given
    assert set(x_1.unique().tolist()) == {A, U_A}
    assert set(x_2.unique().tolist()) == {U_B, B}
    inside = x_1 == U_A
    assert torch.equal(inside, x_2 == B)  # the same M in both directions
    assert torch.equal(inside, inside[:1].expand_as(inside))  # and in the whole batch
    assert [int(places.max() - places.min()) + 1 for places in torch.nonzero(inside[0, 0], as_tuple=True)] == [4, 2, 6]
    assert torch.equal(u, batch(crops).unlabelled)  # the teacher sees whole crops without noise


def test_a_new_box_each_step() -> None:
    torch.manual_seed(0)
    corners = {tuple(side.start for side in random_box(SIZE, (4, 2, 6))) for _ in range(200)}
    assert corners == {(x, y, z) for x in range(4) for y in range(2) for z in range(4)}


def test_pre_training_pastes_b_into_a() -> None:
    method = build(2)
    step(method, batch(2), PRETRAIN)
    (x,) = method.student.given
    assert set(x.unique().tolist()) == {A, B}
    assert (x == B).float().mean().item() == pytest.approx(4 * 2 * 6 / (7 * 3 * 9))
    assert not method.teacher.given


# ---------------------------------------------------------------- the losses


@pytest.mark.parametrize("crops", [1, 2])
def test_self_training_loss(crops: int) -> None:
    method, given = build(crops, unlabelled_weight=0.25), batch(crops)
    found = step(method, given, SELF_TRAIN)
    m = array(method.student.given[0][:crops, 0] == A)
    p_1, p_2 = np.split(softmax(array(method.student.logits)), 2)
    (y_a, y_b), labels = np.split(array(given.label), 2), largest_components(method.teacher.logits.argmax(1))
    p_a, p_b = np.split(array(labels), 2)
    labelled = part(p_1, y_a, m) + part(p_2, y_b, 1 - m)
    unlabelled = part(p_1, p_a, 1 - m) + part(p_2, p_b, m)
    assert found.terms["labelled"].item() == pytest.approx(labelled, rel=1e-5)
    assert found.terms["unlabelled"].item() == pytest.approx(unlabelled, rel=1e-5)
    assert found.loss.item() == pytest.approx(0.5 * (labelled + 0.25 * unlabelled), rel=1e-5)


def test_pre_training_loss() -> None:
    method, given = build(2), batch(2)
    found = step(method, given, PRETRAIN)
    m = array(method.student.given[0][:, 0] == A)
    y_a, y_b = np.split(array(given.label), 2)
    expected = part(softmax(array(method.student.logits[:2])), y_a * m + y_b * (1 - m), np.ones_like(m))
    assert found.terms["sup"].item() == pytest.approx(expected, rel=1e-5)
    assert found.loss.item() == pytest.approx(0.5 * expected, rel=1e-5)


def test_what_is_pasted_over_counts_nowhere() -> None:
    method, given = build(), batch()
    loss = step(method, given, SELF_TRAIN).loss
    inside = method.student.given[0][0, 0] == U_A
    label = given.label.clone()
    label[0, inside], label[1, ~inside] = 2, 1
    assert step(method, replace(given, label=label), SELF_TRAIN).loss == loss


def test_ignored_voxels_stay_ignored_when_pasted() -> None:
    method, given = build(), batch()
    nothing = replace(given, label=torch.full_like(given.label, IGNORE))
    found = step(method, nothing, SELF_TRAIN)
    assert found.terms["labelled"].item() == 0
    assert found.terms["unlabelled"].item() == step(method, given, SELF_TRAIN).terms["unlabelled"].item()


def test_dice_of_each_crop_is_no_sum_over_the_batch() -> None:
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]])[..., None, None, None]  # two crops of one voxel, both foreground
    y = torch.ones(2, 1, 1, 1, dtype=torch.long)
    # background and foreground of the first: 1 and 1; of the second: 1 and 1 - 2 * .5 / 1.5
    assert dice_loss_of_each_crop(p, y).item() == pytest.approx((1 + 1 + 1 + 1 / 3) / 4, abs=1e-4)
    assert dice_loss_all_classes(p, y).item() == pytest.approx((1 + 1 - 2 * 0.5 / 2.5) / 2, abs=1e-4)


# ---------------------------------------------------------------- pseudo-labels and the teacher


def test_of_each_organ_the_largest_component() -> None:
    label = torch.tensor([[1, 0, 0, 2, 2], [0, 1, 0, 0, 0], [0, 0, 0, 1, 2]])[..., None]
    kept = torch.tensor([[1, 0, 0, 2, 2], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]])[..., None]  # a corner connects
    assert torch.equal(largest_components(label[None])[0], kept)
    background = torch.zeros(1, 3, 5, 1, dtype=torch.long)
    both = largest_components(torch.cat([label[None], background, kept[None]]))
    assert torch.equal(both, torch.stack([kept, background[0], kept]))  # crop by crop; empty stays empty


@pytest.mark.parametrize(("largest_component", "foreground"), [(True, 3), (False, 4)])
def test_only_the_largest_component_of_a_pseudo_label_counts(largest_component: bool, foreground: int) -> None:
    method = build(largest_component=largest_component)
    organ = torch.zeros(2, *SIZE)
    organ[0, 0, 0, 0] = organ[0, 5, 0, :3] = 1
    method.teacher.logits = torch.stack([0.5 - organ, organ - 0.5, torch.full_like(organ, -9)], 1)
    found = step(method, batch(), SELF_TRAIN)
    assert float(found.gauges["pseudo_foreground"]) == pytest.approx(foreground / organ.numel())


def test_the_teacher_starts_as_the_student_and_follows_without_warm_up() -> None:
    method = BCP(BCPConfig(width=1), 1, 2)
    with torch.no_grad():
        for tensor in method.student.state_dict().values():
            tensor.add_(1)
    before = {name: tensor.clone() for name, tensor in method.teacher.state_dict().items()}
    method.begin("pretrain")
    assert all(torch.equal(tensor, before[name]) for name, tensor in method.teacher.state_dict().items())
    method.begin("self_train")
    student = method.student.state_dict()
    assert all(torch.equal(tensor, student[name]) for name, tensor in method.teacher.state_dict().items())

    method = build(alpha=0.75)
    steps = method.step(batch(), Clock(4, 10, "self_train", 0, 6))
    next(steps)
    nn.init.constant_(method.student.scale, 2.0)  # what an optimiser would do
    assert next(steps, None) is None
    assert method.teacher.scale.item() == 0.75 * 1 + 0.25 * 2


def test_phases() -> None:
    pretrain, self_train = BCP.phases(BCPConfig(batch=(4, 4)))
    assert (pretrain.batch, self_train.batch) == ((4, 0), (4, 4))
    assert round(pretrain.share * BCP.literature.iterations) == 2000
    assert pretrain.schedule is not None
    assert pretrain.schedule.kind == "constant"
    assert (self_train.schedule, self_train.fresh_optimisers) == (None, True)
    assert [phase.name for phase in BCP.phases(BCPConfig(pretrain_share=0.0))] == ["self_train"]


@pytest.mark.parametrize("crops", [(3, 3), (2, 4), (1, 1)])
def test_a_batch_that_has_no_halves_is_refused(crops: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="even number of labelled crops, and as many unlabelled"):
        BCPConfig.read({"batch": crops}, "settings of 'bcp'")
