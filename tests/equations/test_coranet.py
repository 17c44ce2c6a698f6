"""CoraNet with networks whose answers are written down: costs, agreement, both parts of the unlabelled half."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from by_hand import Array, array, softmax
from notes import Notes
from torch import Tensor, nn
from torch.nn import functional

from sscl.core.batch import Batch, Clock
from sscl.core.method import Objective
from sscl.core.plan import IGNORE
from sscl.methods.coranet import CoraNet, CoraNetConfig, cost_ce, mean_cost_ce
from sscl.nets.branched_vnet import BranchedVNet
from sscl.nets.vnet import VNet

CONTRACT = Notes(
    variants=({"pretrain_share": 0.0},),
    short={"pretrain_share": 0.4},
    values={"pretrain_share": 0.6, "batch": (2, 1), "ramp_share": 4.0},
)
PRETRAIN, LATE = Clock(0, 10, "pretrain", 0, 4), Clock(99, 100, "self_train", 79, 80)
SIZE = (4, 3, 2)


class Says(nn.Module):
    """Given logits of three heads, "3 b classes x y z", for as many images as there are, whatever they show."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.logits = logits
        self.given: list[Tensor] = []

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        self.given.append(images)
        return tuple(self.scale * head[: len(images)] for head in self.logits)


def build(**settings: float | bool) -> CoraNet:
    method = CoraNet(CoraNetConfig(width=1, **settings), 1, 3)  # type: ignore[arg-type]
    torch.manual_seed(3)
    method.student = Says(torch.randn(3, 4, 3, *SIZE))  # type: ignore[assignment]
    method.teacher = Says(torch.randn(3, 2, 3, *SIZE))  # type: ignore[assignment]
    return method


def batch() -> Batch:
    """Three classes and IGNORE in the label."""
    label = torch.randint(IGNORE, 3, (2, *SIZE), generator=torch.Generator().manual_seed(0))
    return Batch(torch.zeros(2, 1, *SIZE), label, torch.zeros(2, 1, *SIZE))


def step(method: CoraNet, crops: Batch, clock: Clock) -> Objective:
    (objective,) = method.step(crops, clock)
    return objective


def segmentation(
    p: list[Array], y: Array, m: Array, cautious: tuple[int, int], bold: tuple[int, int], pseudo: bool = False
) -> float:
    """(CE + Dice of the first head + CE of the two others at costs of background and organs) / 4, where m is 1.

    Costs weigh their mean, as PyTorch's weights do; on pseudo-labels the mean is over voxels.
    """
    one_hot = np.stack([y == c for c in range(3)], 1) * m[:, None]
    costs = {0: (1, 1), 1: cautious, 2: bold}
    total = 0.0
    for head, (background, organ) in costs.items():
        weight = np.array([background, organ, organ])[:, None, None, None]
        over = m.sum() if pseudo else (one_hot * weight).sum()
        total -= (np.log(p[head]) * one_hot * weight).sum() / over
    overlap = 2 * (p[0] * one_hot).sum((2, 3, 4)) + 1e-5
    volume = (p[0] * m[:, None]).sum((2, 3, 4)) + one_hot.sum((2, 3, 4)) + 1e-5
    return float(total + (1 - overlap / volume).mean()) / 4


# ---------------------------------------------------------------- costs


def test_costs_belong_to_the_true_class_and_the_mean_is_over_voxels_or_over_costs() -> None:
    z = torch.tensor([[0.0, math.log(3)]] * 3).T.reshape(1, 2, 3, 1, 1)  # class 1 at .75 everywhere
    y = torch.tensor([0, 1, IGNORE]).reshape(1, 3, 1, 1)
    missed, found = -math.log(0.25), -math.log(0.75)
    assert cost_ce(z, y, 5.0, 1.0).item() == pytest.approx((5 * missed + found) / 2)
    assert cost_ce(z, y, 1.0, 5.0).item() == pytest.approx((missed + 5 * found) / 2)
    assert mean_cost_ce(z, y, 5.0, 1.0).item() == pytest.approx((5 * missed + found) / 6)
    assert mean_cost_ce(z, y, 1.0, 5.0).item() == pytest.approx((missed + 5 * found) / 6)
    assert cost_ce(z, torch.full_like(y, IGNORE), 5.0, 1.0).item() == 0
    assert mean_cost_ce(z, torch.full_like(y, IGNORE), 5.0, 1.0).item() == 0


def test_labels_of_doctors_are_weighted_as_pytorch_does() -> None:
    z, y = torch.randn(2, 3, *SIZE), batch().label
    weights = torch.tensor([1.0, 5.0, 5.0])
    expected = functional.cross_entropy(z, y, weights, ignore_index=IGNORE)
    torch.testing.assert_close(mean_cost_ce(z, y, 1.0, 5.0), expected)


def test_all_organs_cost_alike() -> None:
    z = torch.zeros(1, 4, 3, 1, 1)
    assert cost_ce(z, torch.tensor([1, 2, 3]).reshape(1, 3, 1, 1), 1.0, 5.0).item() == pytest.approx(5 * math.log(4))


def test_the_conservative_head_fears_false_organ_voxels_and_the_radical_one_missed_ones() -> None:
    method = build()
    method.student.logits = torch.zeros(3, 1, 3, 3, 1, 1)
    label = torch.arange(3).reshape(1, 3, 1, 1)  # a voxel of the background and one of each organ
    one = Batch(torch.zeros(1, 1, 3, 1, 1), label, torch.zeros(0, 1, 3, 1, 1))
    heads = method.student.logits.requires_grad_()
    (slope,) = torch.autograd.grad(step(method, one, PRETRAIN).loss, heads)
    # how steeply the loss falls with the logit of the true class, of the conservative and of the radical head
    conservative, radical = (-4 * slope[1:, 0, range(3), range(3), 0, 0]).tolist()
    assert conservative == pytest.approx([5 / 7 * 2 / 3, 1 / 7 * 2 / 3, 1 / 7 * 2 / 3])
    assert radical == pytest.approx([1 / 11 * 2 / 3, 5 / 11 * 2 / 3, 5 / 11 * 2 / 3])


# ---------------------------------------------------------------- the losses


def test_pre_training_loss() -> None:
    method, crops = build(), batch()
    y = array(crops.label)
    p = [softmax(array(head[:2])) for head in method.student.logits]
    found = step(method, crops, PRETRAIN)
    assert found.loss.item() == pytest.approx(segmentation(p, y, (y >= 0) * 1.0, (5, 1), (1, 5)), rel=1e-5)
    nothing = step(method, replace(crops, label=torch.full_like(crops.label, IGNORE)), PRETRAIN)
    assert nothing.loss.item() == 0


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(("iteration", "ramp"), [(0, math.exp(-5)), (20, math.exp(-1.25)), (40, 1), (79, 1)])
def test_self_training_loss(swapped: bool, iteration: int, ramp: float) -> None:
    method, crops = build(swap_weights=swapped, cost=3.0, ramp_share=0.5), batch()
    y = array(crops.label)
    p = [softmax(array(head)) for head in method.student.logits]
    p_t = [softmax(array(head)) for head in method.teacher.logits]
    p_l, p_u = [head[:2] for head in p], [head[2:] for head in p]
    m = (p_u[1].argmax(1) == p_u[2].argmax(1)) * 1.0
    assert 0 < m.mean() < 1
    labelled = segmentation(p_l, y, (y >= 0) * 1.0, (3, 1), (1, 3))
    costs = [(1, 3), (3, 1)] if swapped else [(3, 1), (1, 3)]
    certain = segmentation(p_u, p_u[0].argmax(1).astype(float), m, *costs, pseudo=True)
    errors = [((s - t) ** 2).sum(1) for s, t in zip(p_u, p_t, strict=True)]
    uncertain = sum((error * (1 - m)).sum() / (1 - m).sum() for error in errors) / 3
    found = step(method, crops, Clock(20 + iteration, 100, "self_train", iteration, 80))
    assert found.terms["labelled"].item() == pytest.approx(labelled, rel=1e-5)
    assert found.terms["certain"].item() == pytest.approx(certain, rel=1e-5)
    assert found.terms["uncertain"].item() == pytest.approx(uncertain, rel=1e-5)
    expected = labelled + 0.5 * (certain + 0.1 * ramp * uncertain)
    assert found.loss.item() == pytest.approx(expected, rel=1e-5)
    assert float(found.gauges["certain_share"]) == pytest.approx(m.mean())


def test_by_default_costs_do_not_change_heads_on_pseudo_labels_as_they_do_in_the_literature_s_code() -> None:
    assert not CoraNetConfig().swap_weights
    assert CoraNet.literature.settings["swap_weights"]


def test_heads_that_agree_everywhere_or_nowhere() -> None:
    method = build()
    conservative, radical = method.student.logits[1:, 2:]
    radical.copy_(conservative + 1)  # the same classes
    found = step(method, batch(), LATE)
    assert found.terms["uncertain"].item() == 0
    assert found.terms["certain"].item() > 0
    radical.copy_(-conservative)  # the likeliest class is now the least likely
    found = step(method, batch(), LATE)
    assert found.terms["certain"].item() == 0
    assert found.terms["uncertain"].item() > 0


def test_pseudo_labels_are_the_main_head_s() -> None:
    method = build()
    main, conservative, radical = method.student.logits[:, 2:]
    for head, organ in ((main, 2), (conservative, 1), (radical, 1)):
        head.fill_(-50.0)[:, organ] = 50.0
    found = step(method, batch(), LATE)
    # main is right by its own label, and the two others are surely wrong: 100 nats, at the costs of organs
    assert found.terms["certain"].item() == pytest.approx((100 * 1 + 100 * 5) / 4, rel=1e-4)


def test_one_pass_each_over_the_crops_as_they_are() -> None:
    """The teacher sees the unlabelled half, neither network sees noise, and pseudo-labels cost no pass of their own."""
    method = build()
    crops = replace(batch(), labelled=torch.full((2, 1, *SIZE), 1.0), unlabelled=torch.full((2, 1, *SIZE), 2.0))
    step(method, crops, LATE)
    (by_student,), (by_teacher,) = method.student.given, method.teacher.given
    assert torch.equal(by_student, crops.images)
    assert torch.equal(by_teacher, crops.unlabelled)


# ---------------------------------------------------------------- network, teacher, phases


def test_network() -> None:
    net = BranchedVNet()
    sizes = {name: weight.numel() for name, weight in net.named_parameters()}
    norms = sum(
        w.numel() for module in VNet().modules() if isinstance(module, nn.BatchNorm3d) for w in module.parameters()
    )
    branch = 16 * 16 * 27 + 16 + 16 * 2 + 2
    assert sum(sizes.values()) == 9_448_866 - norms + 2 * branch
    assert not list(net.buffers())
    net, images = BranchedVNet(2, 3, width=2), torch.randn(2, 2, 32, 32, 16)
    heads = net(images)
    assert [head.shape for head in heads] == [(2, 3, 32, 32, 16)] * 3
    assert not any(torch.equal(*pair) for pair in pairwise(heads))
    for head, evaluated in zip(heads, net.eval()(images[1:]), strict=True):  # neither company nor mode matters
        # norms of a bottleneck of four voxels enlarge rounding
        torch.testing.assert_close(head[1:], evaluated, rtol=0, atol=1e-3)


def test_dropout_reaches_all_heads() -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 1, 32, 32, 16)
    still, shaky = BranchedVNet(width=4), BranchedVNet(width=4, dropout=0.5)
    assert all(torch.equal(*pair) for pair in zip(still(images), still(images), strict=True))
    assert not any(torch.equal(*pair) for pair in zip(shaky(images), shaky(images), strict=True))


def test_the_main_head_is_tested() -> None:
    method, images = build(), torch.zeros(2, 1, *SIZE)
    torch.testing.assert_close(method.predict(images), method.student.logits[0, :2].softmax(1))


def test_the_teacher_starts_as_the_student_and_follows_without_warm_up() -> None:
    method = CoraNet(CoraNetConfig(width=1), 1, 2)
    nn.init.constant_(method.student.decoder.head.bias, 7.0)
    method.begin("pretrain")
    assert method.teacher.decoder.head.bias[0] != 7
    method.begin("self_train")
    assert method.teacher.decoder.head.bias[0] == 7

    method = build(alpha=0.75)
    steps = method.step(batch(), Clock(4, 10, "self_train", 0, 6))
    next(steps)
    nn.init.constant_(method.student.scale, 2.0)  # what an optimiser would do
    assert next(steps, None) is None
    assert method.teacher.scale.item() == 0.75 * 1 + 0.25 * 2


def test_phases() -> None:
    pretrain, self_train = CoraNet.phases(CoraNetConfig(batch=(8, 8), pretrain_batch=8))
    assert (pretrain.batch, self_train.batch) == ((8, 0), (8, 8))
    assert pretrain.schedule is not None
    assert pretrain.schedule.kind == "constant"
    assert self_train.schedule is None
    assert round(pretrain.share * CoraNet.literature.iterations) == 60 * 8
    assert not self_train.fresh_optimisers  # Adam goes on
    assert [phase.name for phase in CoraNet.phases(CoraNetConfig(pretrain_share=0.0))] == ["self_train"]
