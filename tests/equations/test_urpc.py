"""URPC with a network whose answers are written down, and its sizes."""

import math

import numpy as np
import pytest
import torch
from by_hand import Array, array, cross_entropy, softmax
from notes import Notes
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import Objective
from sscl.methods.urpc import URPC, URPCConfig
from sscl.nets.unet import PyramidUNet, PyramidVNet
from sscl.stages.model import count_parameters

CONTRACT = Notes(variants=({"backbone": "vnet", "kl": "scale_mean", "width": 1},), short={"width": 1})

END = 100  # the run's length; at its end the ramp is 1
LABEL = torch.tensor([0, 2, 1, -1]).reshape(1, 4, 1, 1)


class Says(nn.Module):
    """The same logits, "scales b classes x y z", whatever it is shown."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


def step(says: Says, iteration: int = END, **settings: object) -> Objective:
    """A labelled image of some voxels and unlabelled ones, and what the network says of all."""
    rows, classes, voxels = says.logits.shape[1:4]
    method = URPC(URPCConfig.read({"width": 1, **settings}, "test"), 1, classes)
    method.student = says  # type: ignore[assignment]
    images, label = torch.zeros(rows, 1, voxels, 1, 1), LABEL[:, :voxels].clamp(max=classes - 1)
    (objective,) = method.step(Batch(images[:1], label, images[1:]), Clock(iteration, END, "train", iteration, END))
    return objective


def random_logits(classes: int = 3, rows: int = 3) -> Tensor:
    return torch.randn(4, rows, classes, 4, 1, 1, generator=torch.Generator().manual_seed(0))


def foreground(*scales: tuple[float, ...]) -> Tensor:
    """Logits of two classes from the foreground probabilities of the unlabelled image; 0.5 on the labelled one."""
    p = torch.tensor(scales).reshape(4, 1, 1, -1, 1, 1)
    p = torch.cat([torch.full_like(p, 0.5), p], 1)
    return torch.cat([1 - p, p], 2).log()


def dice_with_background(p: Array, label: Array) -> float:
    losses = []
    for c in range(p.shape[1]):
        pc, yc = p[:, c][label >= 0], (label == c)[label >= 0]
        losses.append(1 - (2 * (pc * yc).sum() + 1e-5) / ((pc**2).sum() + yc.sum() + 1e-5))
    return float(np.mean(losses))


def divergence(p: Array, q: Array) -> Array:
    return (p * np.log(p / q)).sum(1)


def consistency(logits: Tensor, reverse: bool = False) -> tuple[float, float]:
    """The two parts of L_con, scale by scale, from the unlabelled images' logits: one mean over both of them."""
    p = [softmax(array(z[1:])) for z in logits]
    p_bar = sum(p) / 4
    rectified, kl = [], []
    for p_s in p:
        v = divergence(p_s, p_bar) if reverse else divergence(p_bar, p_s)
        w = np.exp(-v)
        rectified.append(((p_bar - p_s) ** 2 * w[:, None]).mean() / (w.mean() + 1e-8))
        kl.append(v.mean())
    return float(np.mean(rectified)), float(np.mean(kl))


def test_two_voxels_by_hand() -> None:
    # p_bar = (.5, .5): where the scales say .9, .9, .1, .1 each is KL = .5 ln(.5/.9) + .5 ln(.5/.1) = ln(1/.6) away,
    # so w = .6; where all say .5 it is 0 and w = 1
    says = Says(foreground((0.9, 0.5), (0.9, 0.5), (0.1, 0.5), (0.1, 0.5)))
    terms = step(says).terms
    assert terms["kl"].item() == pytest.approx((math.log(1 / 0.6) + 0) / 2, abs=1e-6)
    assert terms["rectified"].item() == pytest.approx((0.4**2 * 0.6 + 0) / (0.6 + 1), abs=1e-6)


@pytest.mark.parametrize("kl", ["mean_scale", "scale_mean"])
@pytest.mark.parametrize(("iteration", "ramp"), [(0, math.exp(-5)), (50, math.exp(-1.25)), (END, 1.0)])
def test_loss(kl: str, iteration: int, ramp: float) -> None:
    logits = random_logits()
    objective = step(Says(logits), iteration, kl=kl)
    y, p_l = LABEL.numpy(), [softmax(array(z[:1])) for z in logits]
    ce = np.mean([cross_entropy(p, y) for p in p_l])
    dice = np.mean([dice_with_background(p, y) for p in p_l])
    rectified, divergence = consistency(logits, reverse=kl == "scale_mean")
    expected = {"ce": ce, "dice": dice, "rectified": rectified, "kl": divergence}
    assert {name: term.item() for name, term in objective.terms.items()} == pytest.approx(expected, rel=1e-5)
    assert objective.loss.item() == pytest.approx(0.5 * (ce + dice) + 0.1 * ramp * (rectified + divergence), rel=1e-5)


def test_the_two_directions_of_the_divergence_differ() -> None:
    p = Says(foreground(*[(a,) * 4 for a in (0.9, 0.6, 0.6, 0.6)]))
    assert step(p).terms["kl"].item() != pytest.approx(step(p, kl="scale_mean").terms["kl"].item(), rel=0.01)


def test_ramp_share_is_a_part_of_the_run() -> None:
    weights = [step(Says(random_logits()), t, ramp_share=0.5).gauges["weight"] for t in (25, 50, 99)]
    assert weights == pytest.approx([0.1 * math.exp(-1.25), 0.1, 0.1])


def test_nothing_is_detached() -> None:
    """The gradient is that of the formula with mean and weights as functions of every scale."""
    logits = random_logits()
    says = Says(logits.clone())
    terms = step(says).terms
    (gradient,) = torch.autograd.grad(0.1 * (terms["rectified"] + terms["kl"]), [says.logits])

    def loss(z: Tensor, detached: bool) -> Tensor:
        p = z[:, 1:].softmax(2)
        p_bar = p.mean(0)
        v = (p_bar * (p_bar.log() - p.log())).sum(2)
        w = (-v).exp().unsqueeze(2)
        if detached:
            p_bar, w = p_bar.detach(), w.detach()
        ell = [((p_bar - p[s]) ** 2 * w[s]).mean() / w[s].mean() + v[s].mean() for s in range(4)]
        return 0.1 * sum(ell) / 4

    for detached, same in ((False, True), (True, False)):
        z = logits.double().requires_grad_()
        (expected,) = torch.autograd.grad(loss(z, detached), [z])
        assert torch.allclose(gradient.double(), expected, rtol=1e-4, atol=1e-9) == same


def test_certain_scales_that_disagree_give_a_finite_loss() -> None:
    """The logarithm of a softmax is -inf from a difference of about 104 on in float32, and the loss with it."""
    logits = torch.zeros(4, 2, 2, 4, 1, 1)
    logits[:2, :, 0], logits[2:, :, 0] = 300, -300
    assert logits.softmax(2).log().isinf().any()
    says = Says(logits)
    objective = step(says)
    assert objective.terms["kl"].item() == pytest.approx(300 / 2 - math.log(2))  # .5 (ln .5 - 0) + .5 (ln .5 + 300)
    objective.loss.backward()
    assert objective.loss.isfinite()
    assert says.logits.grad is not None
    assert says.logits.grad.isfinite().all()


def test_parameters_are_those_of_the_literature() -> None:
    assert count_parameters(URPC(URPCConfig(), 1, 2)) == 5_884_504
    assert count_parameters(URPC(URPCConfig(backbone="vnet"), 1, 2)) == 9_448_866 + 454


@pytest.mark.parametrize("kind", [PyramidUNet, PyramidVNet])
def test_the_first_map_is_the_finest(kind: type[nn.Module]) -> None:
    """Of three classes and two channels; the maps of the coarser scales are smooth by their factor."""
    network = kind(2, 3, 1, 0.0)
    maps = network(torch.randn(1, 2, 32, 32, 16))
    assert maps.shape == (4, 1, 3, 32, 32, 16)
    # trilinear interpolation from half the size: second differences vanish between the coarse grid's points
    for scale, factor in ((1, 2), (2, 4), (3, 8)):
        bends = maps[scale].diff(n=2, dim=2).abs().amax((0, 1, 3, 4))
        kinks = bends > 1e-4
        assert 0 < kinks.sum() <= 2 * (32 // factor)
    assert (maps[0].diff(n=2, dim=2).abs().amax((0, 1, 3, 4)) > 1e-4).all()


def test_predict_is_the_finest_scale() -> None:
    method = URPC(URPCConfig(width=1), 1, 3)
    method.student = Says(random_logits())  # type: ignore[assignment]
    expected = softmax(array(random_logits()[0]))
    np.testing.assert_allclose(array(method.predict(torch.zeros(3, 1, 4, 1, 1))), expected, rtol=1e-5)


def test_each_scale_of_the_u_net_has_its_own_dropout() -> None:
    assert [drop.p for drop in PyramidUNet(1, 2, 1, 0.5).dropouts] == pytest.approx([0.5, 0.3, 0.2, 0.1])
