"""Pure functions of ops against values worked out on paper."""

import math

import pytest
import torch
from torch import Tensor, nn

from sscl.core.plan import IGNORE
from sscl.ops.ema import ema_, ema_alpha
from sscl.ops.losses import cross_entropy, dice_ce, dice_loss, dice_loss_all_classes, dice_loss_present, masked_mse, mse
from sscl.ops.perturb import copy_paste, gaussian_noise
from sscl.ops.pseudo import confident_labels, foreground_labels
from sscl.ops.ramps import sigmoid_rampup
from sscl.ops.uncertainty import entropy


def voxels(*classes: list[list[float]]) -> Tensor:
    """Per sample a list of voxels' class values: "b c x 1 1"."""
    return torch.tensor(classes).movedim(-1, 1)[..., None, None]


def labels(*samples: list[int]) -> Tensor:
    return torch.tensor(samples)[..., None, None]


def near(value: float, abs: float = 2e-5) -> object:
    """Within what the smoothing of 1e-5 can change on sums about 1."""
    return pytest.approx(value, abs=abs)


class TestDice:
    # two voxels, foreground probabilities .8 and .4, truth 1 and 0
    p = voxels([[0.2, 0.8], [0.6, 0.4]])
    y = labels([1, 0])

    def test_foreground_with_squared_denominators(self) -> None:
        assert dice_loss(self.p, self.y).item() == near(1 - 2 * 0.8 / (0.64 + 0.16 + 1))

    def test_all_classes_with_plain_denominators(self) -> None:
        foreground, background = 2 * 0.8 / (1.2 + 1), 2 * 0.6 / (0.8 + 1)
        assert dice_loss_all_classes(self.p, self.y).item() == near(1 - (foreground + background) / 2)

    def test_smoothing_above_and_below(self) -> None:
        p, y = voxels([[1.0, 0.0]]), labels([0])
        assert dice_loss(p, y).item() == 0  # nothing there and nothing found: 1 - 1e-5 / 1e-5
        p, y = voxels([[1.0, 0.0]]), labels([1])
        assert dice_loss(p, y).item() == pytest.approx(1 - 1e-5 / (1 + 1e-5), abs=1e-7)

    def test_several_organs_are_averaged(self) -> None:
        p, y = voxels([[0.0, 1.0, 0.0], [0.5, 0.0, 0.5]]), labels([1, 2])
        assert dice_loss(p, y).item() == near((0 + 1 - 2 * 0.5 / (0.25 + 1)) / 2)

    def test_ignored_voxels_count_on_neither_side(self) -> None:
        p = voxels([[0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
        y = labels([1, 0, IGNORE])
        for dice in (dice_loss, dice_loss_all_classes):
            assert dice(p, y).item() == dice(self.p, self.y).item()

    def test_one_sum_over_the_sub_batch(self) -> None:
        p, y = voxels([[0.0, 1.0]], [[0.5, 0.5]]), labels([1], [1])
        assert dice_loss(p, y).item() == near(1 - 2 * 1.5 / (1.25 + 2))  # not the mean of 0 and .2


class TestCrossEntropy:
    z = voxels([[0.0, math.log(3)], [0.0, 0.0]])  # probabilities of class 1: .75 and .5

    def test_mean_over_voxels(self) -> None:
        expected = (-math.log(0.75) - math.log(0.5)) / 2
        assert cross_entropy(self.z, labels([1, 0])).item() == pytest.approx(expected, rel=1e-6)

    def test_ignored_voxels_are_not_in_the_mean(self) -> None:
        assert cross_entropy(self.z, labels([1, IGNORE])).item() == pytest.approx(-math.log(0.75), rel=1e-6)

    def test_nothing_to_count_is_zero_with_zero_gradient(self) -> None:
        z = self.z.clone().requires_grad_()
        loss = dice_ce(z, labels([IGNORE, IGNORE]))
        loss.backward()
        assert loss.item() == 0
        assert z.grad is not None
        assert z.grad.eq(0).all()

    def test_dice_ce_is_their_plain_sum_in_float32(self) -> None:
        expected = 1 - 2 * 0.75 / (0.75**2 + 0.25 + 1) + (-math.log(0.75) - math.log(0.5)) / 2
        assert dice_ce(self.z, labels([1, 0])).item() == near(expected)
        foreground, background = 2 * 0.75 / (1.25 + 1), 2 * 0.5 / (0.75 + 1)
        both = 1 - (foreground + background) / 2 + (-math.log(0.75) - math.log(0.5)) / 2
        assert dice_ce(self.z, labels([1, 0]), dice_loss_all_classes).item() == near(both)
        low = self.z.bfloat16()
        assert dice_ce(low, labels([1, 0])).dtype == torch.float32


def test_mse() -> None:
    assert mse(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])).item() == 2.5


def test_masked_mse_is_a_mean_over_the_masked_voxels_and_the_channels() -> None:
    student, teacher = voxels([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]), voxels([[0.0, 1.0], [0.0, 1.0], [0.0, 0.6]])
    mask = voxels([[1.0], [0.0], [1.0]])
    assert masked_mse(student, teacher, mask).item() == pytest.approx((1 + 1 + 0 + 0.16) / 4)
    assert masked_mse(student, teacher, mask.bool()).item() == pytest.approx((1 + 1 + 0 + 0.16) / 4)
    assert masked_mse(student, teacher, torch.zeros_like(mask)).item() == 0


def test_entropy() -> None:
    u = entropy(voxels([[0.5, 0.5], [1.0, 0.0], [0.9, 0.1]]))
    assert u.shape == (1, 1, 3, 1, 1)
    expected = [math.log(2), 0.0, -0.9 * math.log(0.9) - 0.1 * math.log(0.1)]
    assert u.flatten().tolist() == pytest.approx(expected, abs=3e-6)  # 1e-6 inside the logarithm


class TestPseudoLabels:
    p = voxels([[0.4, 0.35, 0.25], [0.55, 0.05, 0.4], [0.2, 0.1, 0.7], [0.9, 0.1, 0.0]])

    def test_foreground(self) -> None:
        assert foreground_labels(self.p, 0.5).flatten().tolist() == [1, 0, 2, 0]
        assert foreground_labels(self.p, 0.4).flatten().tolist() == [1, 2, 2, 0]
        assert foreground_labels(self.p, 0.7).flatten().tolist() == [0, 0, 2, 0]

    def test_confident(self) -> None:
        assert confident_labels(self.p, 0.5).flatten().tolist() == [IGNORE, 0, 2, 0]
        assert confident_labels(self.p, 0.3).flatten().tolist() == [0, 0, 2, 0]
        assert confident_labels(self.p, 0.75).flatten().tolist() == [IGNORE, IGNORE, IGNORE, 0]

    def test_they_coincide_for_two_classes_at_one_half(self) -> None:
        p1 = torch.linspace(0.01, 0.99, 50)  # no tie among them
        p = voxels([[1 - float(q), float(q)] for q in p1])
        expected = (p1 > 0.5).long()
        assert torch.equal(foreground_labels(p, 0.5).flatten(), expected)
        assert torch.equal(confident_labels(p, 0.5).flatten(), expected)

    def test_two_classes_elsewhere_differ(self) -> None:
        p = voxels([[0.4, 0.6], [0.6, 0.4], [0.1, 0.9]])
        assert foreground_labels(p, 0.7).flatten().tolist() == [0, 0, 1]
        assert confident_labels(p, 0.7).flatten().tolist() == [IGNORE, IGNORE, 1]


def test_rampup() -> None:
    assert sigmoid_rampup(0, 100) == pytest.approx(0.006737947)  # e^-5
    assert sigmoid_rampup(50, 100) == pytest.approx(0.2865048)  # e^-1.25
    assert [sigmoid_rampup(t, 100) for t in (100, 101)] == [1, 1]
    assert sigmoid_rampup(0, 0) == 1


class TestAverage:
    @staticmethod
    def pair() -> tuple[nn.Module, nn.Module]:
        teacher, student = nn.BatchNorm3d(1), nn.BatchNorm3d(1)
        nn.init.constant_(teacher.weight, 1.0)
        nn.init.constant_(student.weight, 5.0)
        student.running_mean.fill_(3.0)
        student.num_batches_tracked.fill_(7)
        return teacher, student

    def test_parameters_only(self) -> None:
        teacher, student = self.pair()
        ema_(teacher, student, 0.75)
        assert teacher.weight.item() == 0.75 * 1 + 0.25 * 5
        assert student.weight.item() == 5
        assert (teacher.running_mean.item(), teacher.num_batches_tracked.item()) == (0, 0)

    def test_buffers_are_copied_where_asked(self) -> None:
        teacher, student = self.pair()
        ema_(teacher, student, 0.75, "copy")
        assert (teacher.running_mean.item(), teacher.num_batches_tracked.item()) == (3, 7)

    def test_warm_up(self) -> None:
        assert [ema_alpha(t, 0.75, True) for t in (0, 1, 2, 3, 4, 1000)] == [0, 0.5, 1 - 1 / 3, 0.75, 0.75, 0.75]
        assert ema_alpha(0, 0.75, False) == 0.75


def test_noise_is_clipped_and_as_wide_as_said() -> None:
    torch.manual_seed(0)
    images = torch.full((1, 1, 50, 50, 50), 3.0)
    noise = gaussian_noise(images, 0.1, 0.2) - 3
    assert noise.abs().max().item() == pytest.approx(0.2, abs=1e-6)
    # normal distribution clipped at two standard deviations: variance .9205
    assert noise.std().item() == pytest.approx(0.1 * math.sqrt(0.9205), rel=0.02)
    assert abs(noise.mean().item()) < 0.002


@pytest.mark.parametrize("seed", range(5))
def test_copy_paste_swaps_one_box_of_image_and_label_alike(seed: int) -> None:
    torch.manual_seed(seed)
    label = torch.stack([torch.full((9, 6, 12), value) for value in (1, 2)])
    images = label[:, None].repeat(1, 2, 1, 1, 1) * 10.0  # two channels
    mixed, mixed_label = copy_paste(images, label)
    assert torch.equal(mixed, mixed_label[:, None].expand_as(mixed) * 10.0)
    pasted = mixed_label != label
    assert torch.equal(pasted[0], pasted[1])
    x, y, z = torch.nonzero(pasted[0], as_tuple=True)
    sides = [int(axis.max() - axis.min()) + 1 for axis in (x, y, z)]
    assert sides == [6, 4, 8]  # two thirds
    assert len(x) == 6 * 4 * 8  # a full box
    assert label.unique().tolist() == [1, 2]  # the inputs are left alone
    assert torch.equal(label[0], torch.ones_like(label[0]))


def test_dice_of_present_organs_by_hand() -> None:
    """Two organs, the label holds the first only: p = .8 on its one voxel, .4 on the other voxel."""
    p = torch.tensor([[0.1, 0.2], [0.8, 0.4], [0.1, 0.4]]).reshape(1, 3, 2, 1, 1)
    first = 1 - 2 * 0.8 / (0.8**2 + 0.4**2 + 1)
    label = torch.tensor([1, 0]).reshape(1, 2, 1, 1)
    assert dice_loss_present(p, label).item() == pytest.approx(first, abs=1e-4)
    assert dice_loss(p, label).item() == pytest.approx((first + 1) / 2, abs=1e-4)


def test_an_empty_label_teaches_dice_of_present_organs_nothing() -> None:
    p = torch.full((1, 2, 2, 2, 2), 0.5, requires_grad=True)
    loss = dice_loss_present(p, torch.zeros(1, 2, 2, 2, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert p.grad is not None
    assert not p.grad.any()
