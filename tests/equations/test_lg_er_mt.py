"""LG-ER-MT: its four unlabelled terms worked out again; similarity matrices written out."""

import math
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import Array, array, batch, cross_entropy, dice, softmax
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import Objective
from sscl.core.plan import IGNORE
from sscl.methods import lg_er_mt
from sscl.methods.lg_er_mt import LGERMT, LGERMTConfig, local_difference, random_blocks, similarity_difference


def build(classes: int = 2, **settings: Any) -> LGERMT:
    """Without noise and dropout, the teacher other than the student."""
    torch.manual_seed(0)
    method = LGERMT(LGERMTConfig(width=2, dropout=0.0, noise=0.0, **settings), 1, classes).train()
    with torch.no_grad():
        for weight in method.teacher.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return method


def step(method: LGERMT, crops: Batch, iteration: int = 50) -> Objective:
    (objective,) = method.step(crops, Clock(iteration, 100, "train", iteration, 100))
    return objective


def explicit(f: Array, f_t: Array) -> Array:
    """(G_T - G_S)^2 of one block, every entry."""
    return (f_t.T @ f_t - f.T @ f) ** 2


def unit(p: Array) -> Array:
    """One voxel a column, of length 1."""
    return p / (np.sqrt((p**2).sum(0)) + 1e-8)


def information(p: Array) -> Array:
    return -p * np.log2(p + 1e-30) / np.log2(p.shape[1])


# ---------------------------------------------------------------- local structure


def test_similarities_by_hand() -> None:
    # the student's two voxels are alike, the teacher's at right angles: G = 1 everywhere, G_t = the identity
    alike, apart = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    assert similarity_difference(alike, apart).item() == pytest.approx(2)
    assert similarity_difference(apart, apart).item() == 0


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_similarities_without_their_matrices(classes: int) -> None:
    rng = np.random.default_rng(classes)
    f, f_t = (np.stack([unit(p) for p in rng.random((3, classes, 40))]) for _ in range(2))
    expected = sum(explicit(*pair).sum() for pair in zip(f, f_t, strict=True))
    student = torch.tensor(f, requires_grad=True)
    value = similarity_difference(student, torch.tensor(f_t))
    assert value.item() == pytest.approx(expected, rel=1e-12)
    (gradient,) = torch.autograd.grad(value, student)
    slope = [4 * x @ (x.T @ x - x_t.T @ x_t) for x, x_t in zip(f, f_t, strict=True)]
    np.testing.assert_allclose(gradient.numpy(), np.stack(slope), rtol=1e-9, atol=1e-12)


def test_small_differences_survive_single_precision() -> None:
    """The plain identity, |F_t F_t^T|^2 - 2 |F F_t^T|^2 + |F F^T|^2, subtracts numbers of 1e6 here."""
    rng = np.random.default_rng(0)
    p = rng.random((2, 1024))
    f, f_t = unit(p), unit(p + 1e-4 * rng.random((2, 1024)))
    expected = explicit(f, f_t).sum()
    assert expected < 0.1
    single = similarity_difference(torch.tensor(f[None]).float(), torch.tensor(f_t[None]).float())
    assert single.item() == pytest.approx(expected, rel=1e-2)


def test_blocks_are_drawn_along_each_axis() -> None:
    torch.manual_seed(0)
    first, second = random_blocks((112, 112, 80)), random_blocks((112, 112, 80))
    assert len({tuple(axis.start for axis in block) for block in first}) == 4
    assert [len({block[axis].start for block in first}) for axis in range(3)] == [2, 2, 1]
    assert all(axis.stop - axis.start == 16 and axis.start % 16 == 0 for block in first for axis in block)
    assert first != second
    drawn = [block for _ in range(100) for block in random_blocks((112, 112, 80))]
    assert [max(block[axis].stop for block in drawn) for axis in range(3)] == [112, 112, 80]
    assert len(random_blocks((16, 32, 48))) == 2  # one place along the first axis


def test_local_is_a_mean_over_pairs_of_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 blocks of 2x2x2 in 4x4x3 voxels, of which the last layer is in no block; voxels that do not count are in no
    pair."""
    monkeypatch.setattr(lg_er_mt, "BLOCK", 2)
    rng = np.random.default_rng(0)
    p, p_t = (softmax(rng.normal(size=(2, 3, 4, 4, 3))) for _ in range(2))
    counted = np.ones((2, 1, 4, 4, 3), bool)
    counted[0, :, 0] = False
    total, pairs = 0.0, 0
    for b in range(2):
        for x in (0, 2):
            for y in (0, 2):
                box = (slice(x, x + 2), slice(y, y + 2), slice(0, 2))
                kept = counted[(b, 0, *box)]
                f, f_t = (unit(q[(b, slice(None), *box)][:, kept]) for q in (p, p_t))
                total += explicit(f, f_t).sum()
                pairs += kept.sum() ** 2
    value = local_difference(*(torch.tensor(a) for a in (p, p_t, counted)))
    assert value.item() == pytest.approx(total / pairs, rel=1e-6)
    assert local_difference(*(torch.tensor(a) for a in (p, p_t, counted & False))).item() == 0


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("iteration", "ramp"), [(0, math.exp(-5)), (50, math.exp(-1.25)), (100, 1.0)])
def test_loss(iteration: int, ramp: float, classes: int) -> None:
    """Of three classes, no voxel is of the second."""
    method, crops = build(classes), batch(classes=classes)
    nets = deepcopy(method)
    objective = step(method, crops, iteration)
    p, p_t = (softmax(array(net(crops.images))) for net in (nets.student, nets.teacher))
    terms = {name: term.item() for name, term in objective.terms.items()}
    assert terms["consistency"] == pytest.approx(((p - p_t) ** 2).mean() / 2, rel=1e-4)
    assert terms["global"] == pytest.approx(((information(p) - information(p_t)) ** 2).mean() / 2, rel=1e-4)
    assert terms["entropy"] == pytest.approx(information(p[2:]).sum(1).mean(), rel=1e-5)
    y = crops.label.numpy()
    unsup = 0.1 * terms["consistency"] + 0.01 * (terms["local"] + terms["global"] + terms["entropy"])
    expected = 0.5 * (cross_entropy(p[:2], y) + dice(p[:2], y)) + ramp * unsup
    assert objective.loss.item() == pytest.approx(expected, rel=1e-5)


def test_each_term_has_its_own_weight() -> None:
    shares = {"local_share": 5.0, "global_share": 7.0, "entropy_share": 3.0}
    method = build(consistency=0.5, ramp_share=0.5, supervised_weight=2.0, **shares)
    objective = step(method, batch(), 25)
    t = {name: term.item() for name, term in objective.terms.items()}
    unsup = t["consistency"] + 5 * t["local"] + 7 * t["global"] + 3 * t["entropy"]
    expected = 2 * (t["ce"] + t["dice"]) + 0.5 * math.exp(-1.25) * unsup
    assert objective.loss.item() == pytest.approx(expected, rel=1e-6)


def test_local_of_a_step_is_of_all_four_crops() -> None:
    """A crop of 32x32x16 has just four blocks, so that nothing is left to chance. One of 4096^2 similarities each."""
    method, crops = build(), batch()
    nets = deepcopy(method)
    local = step(method, crops).terms["local"].item()
    p, p_t = (softmax(array(net(crops.images))) for net in (nets.student, nets.teacher))
    blocks = [np.s_[b, :, x : x + 16, y : y + 16, :] for b in range(4) for x in (0, 16) for y in (0, 16)]
    gaps = []
    for block in blocks:
        f, f_t = unit(p[block].reshape(2, -1)), unit(p_t[block].reshape(2, -1))
        gaps.append(((f_t @ f_t.T) ** 2).sum() - 2 * ((f @ f_t.T) ** 2).sum() + ((f @ f.T) ** 2).sum())
    assert local == pytest.approx(np.mean(gaps) / 4096**2, rel=1e-4)


class Says(nn.Module):
    """Probabilities that are given, whatever is seen."""

    def __init__(self, p: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(p.log())

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


def test_a_sure_student_has_no_entropy_and_a_finite_slope() -> None:
    method = build()
    sure = torch.tensor([1.0, 1e-45]).reshape(1, 2, 1, 1, 1).expand(4, 2, 16, 16, 16).clone()
    method.student = Says(sure)  # type: ignore[assignment]
    method.teacher = Says(sure.flip(1))  # type: ignore[assignment]
    images = torch.zeros(2, 1, 16, 16, 16)
    objective = step(method, Batch(images, torch.zeros(2, 16, 16, 16, dtype=torch.long), images))
    assert objective.terms["entropy"].item() == pytest.approx(0, abs=1e-12)
    assert objective.terms["consistency"].item() == pytest.approx(0.5)
    (slope,) = torch.autograd.grad(objective.loss, [method.student.logits])
    assert bool(slope.isfinite().all())


def test_voxels_to_ignore_take_part_in_nothing() -> None:
    """Nor does it matter to the unlabelled terms which class a voxel of the labelled half has."""
    crops = batch()
    crops.label[:, :8] = IGNORE
    nets = build()
    objective = step(deepcopy(nets), crops)
    p, p_t = (softmax(array(net(crops.images))) for net in (nets.student, nets.teacher))
    counted = np.ones((4, 2, 32, 32, 16), bool)
    counted[:2, :, :8] = False
    assert objective.terms["consistency"].item() == pytest.approx(((p - p_t) ** 2)[counted].mean() / 2, rel=1e-4)
    difference = (information(p) - information(p_t)) ** 2
    assert objective.terms["global"].item() == pytest.approx(difference[counted].mean() / 2, rel=1e-4)
    relabelled = replace(crops, label=torch.where(crops.label == IGNORE, IGNORE, 1 - crops.label))
    again = step(deepcopy(nets), relabelled)
    assert again.terms["ce"].item() != objective.terms["ce"].item()
    for name in ("consistency", "local", "global", "entropy"):
        # the blocks of L_local come in another order
        assert again.terms[name].item() == pytest.approx(objective.terms[name].item(), rel=1e-5)


def test_the_teacher_alone_sees_noise_on_all_crops_and_once() -> None:
    method, crops = LGERMT(LGERMTConfig(width=2, noise=0.5), 1, 2).train(), batch()
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    for name, given in seen.items():
        method.get_submodule(name).register_forward_pre_hook(lambda _, inputs, given=given: given.append(inputs[0]))
    step(method, crops)
    (clean,), (noisy,) = seen["student"], seen["teacher"]
    assert torch.equal(clean, crops.images)
    noise = noisy - crops.images
    assert all(row.std() > 0.4 for row in noise)
    assert noise.abs().max().item() == pytest.approx(1.0, abs=1e-5)
