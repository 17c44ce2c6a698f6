"""DAN: a network and a critic whose answers are written down, and who is in which mode when."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import array, cross_entropy, dice, loaded, weights
from notes import Notes
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import Objective
from sscl.engine.train import Trainer
from sscl.methods.dan import DAN, DANConfig

CONTRACT = Notes(
    short={"critic_width": 2},
    through=("critic",),
    values={"critic.schedule.every": 1},
    under={
        "critic.schedule.every": {"critic.schedule.kind": "step"},
        "critic.schedule.power": {"critic.schedule.kind": "poly"},
    },
)

# Foreground probabilities of the two voxels of a labelled and an unlabelled crop: with dropout, and without.
TRAINING = ((0.8, 0.4), (0.1, 0.7))
EVALUATING = ((0.9, 0.3), (0.2, 0.6))
IMAGES = torch.tensor(((1.0, 2.0), (3.0, -1.0)))


class Says(nn.Module):
    """The logits of the probabilities of its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        p = torch.tensor(TRAINING if self.training else EVALUATING).reshape(2, 1, 2, 1, 1)
        return self.scale * torch.cat([1 - p, p], 1).log()


class Judges(nn.Module):
    """Logits 0 for "unlabelled", and for "labelled" scale * sum of foreground probability times image."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.modes: list[bool] = []

    def forward(self, maps: Tensor, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        labelled = self.scale * (maps[:, 1:] * images).sum((1, 2, 3, 4))
        return torch.stack([torch.zeros_like(labelled), labelled], 1)


def begin(t: int = 100, label: tuple[int, int] = (1, 0), **settings: Any) -> tuple[DAN, Iterator[Objective]]:
    method = DAN(DANConfig(width=1, critic_width=1, **settings), 1, 2).train()
    method.student, method.critic = Says(), Judges()  # type: ignore[assignment]
    crops = IMAGES.reshape(2, 1, 1, 2, 1, 1)
    batch = Batch(crops[0], torch.tensor(label).reshape(1, 2, 1, 1), crops[1])
    return method, method.step(batch, Clock(t, 100, "train", t, 100))


def step(*args: Any, **settings: Any) -> tuple[DAN, list[Objective]]:
    method, objectives = begin(*args, **settings)
    return method, list(objectives)


# The unlabelled crop's score is .1 * 3 - .7 = -.4, so "labelled" has the probability 1 / (1 + e^.4).
FOOLING = math.log(1 + math.exp(0.4))


@pytest.mark.parametrize(("t", "ramp"), [(0, math.exp(-5)), (50, math.exp(-1.25)), (100, 1.0)])
def test_loss_of_the_network(t: int, ramp: float) -> None:
    _, (network, _) = step(t)
    p = np.array(TRAINING[:1])
    both, y = np.stack([1 - p, p], 1).reshape(1, 2, 2, 1, 1), np.array([[1, 0]]).reshape(1, 2, 1, 1)
    ce, overlap = cross_entropy(both, y), dice(both, y, first=0)
    assert ce == pytest.approx(-(math.log(0.8) + math.log(0.6)) / 2)
    organ, background = 2 * 0.8 / (0.64 + 0.16 + 1), 2 * 0.6 / (0.04 + 0.36 + 1)
    assert overlap == pytest.approx(1 - (organ + background) / 2, abs=1e-5)
    assert network.player == "student"
    assert network.terms["fooling"].item() == pytest.approx(FOOLING, abs=1e-6)
    assert network.loss.item() == pytest.approx(0.5 * (ce + overlap) + 0.1 * ramp * FOOLING, abs=1e-5)


def test_an_ignored_voxel_is_in_neither_supervised_term() -> None:
    _, (network, _) = step(label=(1, -1))
    assert network.terms["ce"].item() == pytest.approx(-math.log(0.8), abs=1e-6)
    organ, background = 2 * 0.8 / (0.64 + 1), 1e-5 / (0.04 + 1e-5)  # no voxel of the background is left
    assert network.terms["dice"].item() == pytest.approx(1 - (organ + background) / 2, abs=1e-5)


def test_the_critic_learns_from_the_network_without_dropout() -> None:
    _, (_, critic) = step()
    # scores: labelled .9 * 1 + .3 * 2 = 1.5, unlabelled .2 * 3 - .6 = 0
    halves = (math.log(1 + math.exp(-1.5)) + math.log(2)) / 2
    assert critic.player == "critic"
    assert critic.loss.item() == critic.terms["halves"].item() == pytest.approx(halves, abs=1e-6)


def test_the_critic_learns_from_the_network_after_its_step() -> None:
    method, objectives = begin()
    next(objectives)
    nn.init.constant_(method.student.scale, 2.0)  # what an optimiser would do: odds are squared
    p, q, r, s = (p**2 / (p**2 + (1 - p) ** 2) for p in (0.9, 0.3, 0.2, 0.6))
    halves = (math.log(1 + math.exp(-(p + 2 * q))) + math.log(1 + math.exp(3 * r - s))) / 2
    assert next(objectives).loss.item() == pytest.approx(halves, abs=1e-6)


def test_a_verdict_that_trains_the_network_is_made_without_dropout() -> None:
    method, _ = step()
    assert method.critic.modes == [False, True]
    assert all(module.training for module in method.modules())


def test_neither_trains_the_other() -> None:
    method, (network, critic) = step()
    assert torch.autograd.grad(critic.loss, [method.student.scale], allow_unused=True) == (None,)
    # d fooling / d score = -sigmoid(.4); d score / d scale of the logits = sum of x p (1 - p) ln(p / (1 - p))
    slope = sum(x * p * (1 - p) * math.log(p / (1 - p)) for x, p in zip((3.0, -1.0), TRAINING[1], strict=True))
    (gradient,) = torch.autograd.grad(network.terms["fooling"], [method.student.scale])
    assert gradient.item() == pytest.approx(-slope / (1 + math.exp(-0.4)), abs=1e-5)


def test_the_ramp_s_share_of_the_run() -> None:
    assert step(25, ramp_share=0.5)[1][0].gauges["weight"] == pytest.approx(0.1 * math.exp(-1.25))
    assert step(50, ramp_share=0.5)[1][0].gauges["weight"] == pytest.approx(0.1)


def test_a_step_of_both_optimisers() -> None:
    torch.manual_seed(0)
    trainer = Trainer(DAN(DANConfig(width=2, critic_width=2), 1, 2), 10, 0, torch.device("cpu"))
    critic = trainer.method.get_submodule("critic")
    before = weights(critic)
    log = trainer.step(trainer.spans[0], loaded())
    assert (log["student/lr"], log["critic/lr"]) == (0.01, 1e-4)
    largest = [(weight - before[name]).abs().max().item() for name, weight in critic.named_parameters()]
    assert largest == pytest.approx([1e-4] * len(largest), rel=0.02)  # Adam's first step is the learning rate
    log = trainer.step(trainer.spans[0], loaded())
    assert log["student/lr"] == pytest.approx(0.01 * 0.9**0.9)  # poly
    assert log["critic/lr"] == 1e-4  # constant


def test_the_test_phase_is_the_network_alone() -> None:
    method = DAN(DANConfig(width=2, critic_width=2), 1, 3).eval()
    image = torch.randn(1, 1, 16, 16, 16)
    z = array(method.student(image))
    expected = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    del method.critic
    np.testing.assert_allclose(array(method.predict(image)), expected, atol=1e-6)
