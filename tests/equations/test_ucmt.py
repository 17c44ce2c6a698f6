"""UCMT: both steps worked out again, UMix included, and the teacher that follows two students."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import Array, array, batch, softmax
from checks import Average, check_teachers, configured
from notes import Notes
from scipy import ndimage
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.plan import IGNORE
from sscl.methods.ucmt import UCMT, UCMTConfig, block_means, move_blocks, umix
from sscl.ops.blocks import cut, join
from sscl.ops.perturb import random_blur

CONTRACT = Notes(
    short={"batch": (1, 1)},
    averages=(Average("teacher", "students.0", "students.1", share=0.99, steps=2),),
    values={"ramp_share": 1.0, "batch": (1, 2), "blur_sigma": (0.5, 1.0)},
)


def dice(p: Array, label: Array) -> float:
    """Mean over all classes, background too; squared denominators; labels below 0 are left out."""
    losses = []
    for c in range(p.shape[1]):
        pc, yc = p[:, c][label >= 0], (label == c)[label >= 0]
        losses.append(1 - (2 * (pc * yc).sum() + 1e-5) / ((pc**2).sum() + yc.sum() + 1e-5))
    return float(np.mean(losses))


def terms(s1: Array, s2: Array, y: Array, y_t: Array) -> dict[str, float]:
    """y_t: of the unlabelled half."""
    u1, u2 = s1[len(y) :], s2[len(y) :]
    return {
        "sup": (dice(s1[: len(y)], y) + dice(s2[: len(y)], y)) / 2,
        "cps": (dice(u1, u2.argmax(1)) + dice(u2, u1.argmax(1))) / 2,
        "cmt": (dice(u1, y_t) + dice(u2, y_t)) / 2,
    }


def mixed(x: Array, h1: Array, h2: Array) -> Array:
    """UMix with loops, in place: the last three axes of x are 8 x 8 x 8 blocks, the first one is that of the images."""
    x = x.copy()
    sides = [n // 8 for n in x.shape[-3:]]
    for row in range(len(x)):
        means = []
        for h in (h1, h2):
            blocks = {}
            for place in np.ndindex(8, 8, 8):
                blocks[place] = h[(row, *box(place, sides))].mean()
            means.append(blocks)
        for unsure, sure in (means, means[::-1]):
            worst = sorted(unsure, key=unsure.__getitem__, reverse=True)[:2]
            best = sorted(sure, key=sure.__getitem__)[:2]
            contents = [x[(row, ..., *box(place, sides))].copy() for place in best]
            for place, content in zip(worst, contents, strict=True):
                x[(row, ..., *box(place, sides))] = content
    return x


def box(place: tuple[int, ...], sides: list[int]) -> tuple[slice, ...]:
    return tuple(slice(k * side, (k + 1) * side) for k, side in zip(place, sides, strict=True))


def entropy(p: Array) -> Array:
    return -(p * np.log(p + 1e-6)).sum(1)


def build(**settings: float) -> UCMT:
    torch.manual_seed(0)
    method = UCMT(UCMTConfig(width=2, blur=settings.pop("blur", 0.0), **settings), 1, 2).train()  # type: ignore[arg-type]
    with torch.no_grad():  # at the start the teacher is the first student, and they would never disagree
        for weight in method.teacher.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return method


@pytest.mark.parametrize(("iteration", "ramp"), [(0, np.exp(-5)), (5, np.exp(-1.25)), (10, 1.0)])
def test_both_losses(iteration: int, ramp: float) -> None:
    method, crops = build(ramp_share=0.1), batch()
    crops.label[0, :5] = IGNORE
    nets = deepcopy(method)
    first, second = method.step(crops, Clock(iteration, 100, "train", iteration, 100))

    def say(net: nn.Module, images: Tensor) -> Array:
        return softmax(array(net(images)))

    s1, s2, t = (say(net, crops.images) for net in (*nets.students, nets.teacher))
    y, y_t = crops.label.numpy(), t[2:].argmax(1)
    expected = terms(s1, s2, y, y_t)
    assert {name: term.item() for name, term in first.terms.items()} == pytest.approx(expected, rel=1e-4)
    assert first.gauges["weight"] == pytest.approx(0.1 * ramp)
    total = expected["sup"] + 0.1 * ramp * (expected["cps"] + expected["cmt"])
    assert first.loss.item() == pytest.approx(total, rel=1e-5)

    h1, h2 = entropy((s1 + t) / 2), entropy((s2 + t) / 2)
    x = torch.from_numpy(mixed(crops.images.numpy(), h1, h2))
    assert not torch.equal(x, crops.images)
    y, y_t = np.split(mixed(np.concatenate([y, y_t]), h1, h2), 2)
    expected = terms(say(nets.students[0], x), say(nets.students[1], x), y, y_t)
    assert {name: term.item() for name, term in second.terms.items()} == pytest.approx(
        {f"umix_{name}": value for name, value in expected.items()}, rel=1e-4
    )
    total = expected["sup"] + 0.1 * ramp * (expected["cps"] + expected["cmt"])
    assert second.loss.item() == pytest.approx(total, rel=1e-5)


def test_each_student_has_a_view_of_its_own_and_the_teacher_the_crop() -> None:
    method, crops = build(blur=1.0), batch()
    seen: dict[str, list[Tensor]] = {}
    for name in ("students.0", "students.1", "teacher"):
        hook = lambda _, given, name=name: seen.setdefault(name, []).append(given[0])  # noqa: E731
        method.get_submodule(name).register_forward_pre_hook(hook)
    list(method.step(crops, Clock(0, 100, "train", 0, 100)))
    (shown,) = seen["teacher"]
    assert torch.equal(shown, crops.images)
    (view_1, umix_1), (view_2, umix_2) = seen["students.0"], seen["students.1"]
    assert torch.equal(umix_1, umix_2)
    assert not any(torch.equal(view_1[row], view_2[row]) for row in range(4))
    # UMix is of the first one: most voxels are as they were there
    assert (umix_1 == view_1).float().mean() > 0.98
    assert (umix_1 == view_2).float().mean() < 0.5


class TestBlur:
    def test_against_scipy(self) -> None:
        images = torch.randn(2, 2, 8, 9, 10, generator=torch.Generator().manual_seed(0))
        expected = ndimage.gaussian_filter(images.double().numpy(), 1.5, axes=(2, 3, 4), radius=5, mode="nearest")
        np.testing.assert_allclose(random_blur(images, 1.0, (1.5, 1.5)), expected, atol=1e-6)

    def test_how_often_and_how_much(self) -> None:
        torch.manual_seed(0)
        images = torch.randn(1, 1, 6, 6, 6).expand(200, 1, 6, 6, 6)
        assert torch.equal(random_blur(images, 0.0, (0.5, 2.0)), images)
        blurred = random_blur(images, 0.8, (0.5, 2.0))
        spread = blurred.flatten(1).std(1)
        untouched = (blurred == images).flatten(1).all(1)
        assert 0.7 < 1 - untouched.float().mean() < 0.9
        assert len(spread[~untouched].unique()) > 100  # a width for each image


class TestUMix:
    def test_blocks_by_hand(self) -> None:
        #                     0    1    2    3    4
        h1 = torch.tensor([[0.9, 0.8, 0.1, 0.2, 0.3]])
        h2 = torch.tensor([[0.3, 0.9, 0.2, 0.8, 0.1]])
        # for the first student 0 <- 4 and 1 <- 2; then for the second 1 <- 2 and 3 <- 3
        assert umix(h1, h2, 2).tolist() == [[4, 2, 2, 3, 4]]
        assert umix(h1, h2, 1).tolist() == [[4, 2, 2, 3, 4]]
        assert umix(h1, h2, 0).tolist() == [[0, 1, 2, 3, 4]]
        assert umix(h2, h1, 1).tolist() == [[4, 2, 2, 3, 4]]

    def test_images_keep_to_themselves(self) -> None:
        source = umix(torch.rand(3, 64), torch.rand(3, 64), 2)
        x = torch.arange(3.0).view(3, 1, 1, 1, 1).expand(3, 2, 16, 16, 16)
        assert torch.equal(move_blocks(x, source, 4), x)

    @pytest.mark.parametrize("shape", [(112, 112, 80), (48, 48, 32), (32, 32, 16)])
    def test_any_patch_has_512_equal_blocks(self, shape: tuple[int, int, int]) -> None:
        h = torch.zeros(1, 1, *shape)
        h[..., shape[0] // 8 :, :, :] = 1  # all but the first slab of 64 blocks
        means = block_means(h, 8)
        assert means.shape == (1, 512)
        assert means.sum() == 512 - 64

    def test_cut_and_join(self) -> None:
        x = torch.arange(2 * 3 * 4 * 6 * 2).view(2, 3, 4, 6, 2)
        boxes = cut(x, (2, 3, 1))
        assert boxes.shape == (2, 8, 3, 2, 3, 1)
        assert torch.equal(boxes[1, 0], x[1, :, :2, :3, :1])
        assert torch.equal(boxes[1, 1], x[1, :, :2, :3, 1:])
        assert torch.equal(boxes[0, 6], x[0, :, 2:, 3:, :1])
        assert torch.equal(join(boxes, (4, 6, 2)), x)


class Says(nn.Module):
    """Logits of a foreground that are its parameters, whatever it is shown."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.foreground = nn.Parameter(torch.randn(shape))

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(self.foreground), self.foreground], 1)


def test_ignored_voxels_are_left_out_and_move_with_their_block() -> None:
    torch.manual_seed(0)
    method = UCMT(UCMTConfig(width=1, parts=2, exchanged=1), 1, 2)
    for index in range(2):
        method.students[index] = Says(2, 2, 2, 2)
    method.teacher = Says(2, 2, 2, 2)  # type: ignore[assignment]
    with torch.no_grad():  # of the labelled image, voxel 000 is the surest of all for the teacher, voxel 111 the least
        method.teacher.foreground[0] = 2.0
        method.teacher.foreground[0, 0, 0, 0], method.teacher.foreground[0, 1, 1, 1] = 9.0, 0.0
        for student in method.students:
            student.foreground[0] = method.teacher.foreground[0]
    label = torch.ones(1, 2, 2, 2, dtype=torch.long)
    label[0, 0, 0, 0] = IGNORE
    images = torch.zeros(1, 1, 2, 2, 2)
    for objective, name, ignored in zip(
        method.step(Batch(images, label, images), Clock(0, 9, "train", 0, 9)),
        ("sup", "umix_sup"),
        ([(0, 0, 0)], [(0, 0, 0), (1, 1, 1)]),
        strict=True,
    ):
        for student in method.students:
            (gradient,) = torch.autograd.grad(objective.terms[name], [student.foreground], retain_graph=True)
            assert [tuple(place) for place in (gradient[0] == 0).nonzero().tolist()] == ignored


def test_the_teacher_follows_99_to_1_after_each_step_and_is_tested() -> None:
    method = UCMT(UCMTConfig(width=1), 1, 2)
    for index in range(2):
        method.students[index] = Says(4, 16, 16, 16)
    method.teacher = Says(4, 16, 16, 16)  # type: ignore[assignment]
    nn.init.constant_(method.teacher.foreground, 4.0)
    first, second = (student.foreground for student in method.students)
    steps = method.step(batch_of_zeros(), Clock(3, 100, "train", 3, 100))  # alpha = 1 - 1 / 4
    next(steps)
    nn.init.constant_(first, 1.0)  # what an optimiser would do
    nn.init.constant_(second, 2.0)
    next(steps)
    once = 0.75 * 4 + 0.25 * (0.99 * 1 + 0.01 * 2)
    torch.testing.assert_close(method.teacher.foreground, torch.full_like(first, once))
    nn.init.constant_(first, 3.0)
    assert next(steps, None) is None
    twice = 0.75 * once + 0.25 * (0.99 * 3 + 0.01 * 2)
    torch.testing.assert_close(method.teacher.foreground, torch.full_like(first, twice))
    p = 1 / (1 + np.exp(-twice))
    assert method.predict(torch.zeros(4, 1, 16, 16, 16))[0, 1, 0, 0, 0].item() == pytest.approx(p)


def batch_of_zeros() -> Batch:
    images = torch.zeros(2, 1, 16, 16, 16)
    return Batch(images, torch.ones(2, 16, 16, 16, dtype=torch.long), images)


def test_the_students_start_apart_and_the_teacher_as_the_first() -> None:
    method = UCMT(UCMTConfig(width=2), 1, 2)
    first, second, teacher = (net.encoder.stages[0][0].weight for net in (*method.students, method.teacher))
    assert torch.equal(first, teacher)
    assert not torch.equal(first, second)
    assert not [drop for drop in method.modules() if isinstance(drop, nn.Dropout3d) and drop.p]


def test_the_teacher_s_statistics_are_of_one_pass_over_the_crops_as_they_are() -> None:
    method, crops = build(blur=1.0), batch()
    expected = deepcopy(method.teacher)
    with torch.no_grad():
        expected(crops.images)
    list(method.step(crops, Clock(50, 100, "train", 50, 100)))
    for mine, theirs in zip(method.teacher.buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_ramp_is_5_of_1000_epochs_of_20_iterations() -> None:
    first = next(build().step(batch(), Clock(50, 20_000, "train", 50, 20_000)))
    assert first.gauges["weight"] == pytest.approx(0.1 * np.exp(-1.25))


@pytest.mark.parametrize("wrong", [{"share": 0.9}, {"steps": 1}, {"second": "students.0"}])
def test_the_contract_would_see_a_teacher_that_follows_otherwise(wrong: dict[str, Any]) -> None:
    (right,) = CONTRACT.averages or ()
    config = configured(UCMT, **CONTRACT.short)
    check_teachers(UCMT, config, (right,))
    with pytest.raises(AssertionError, match="teacher"):
        check_teachers(UCMT, config, (replace(right, **wrong),))
