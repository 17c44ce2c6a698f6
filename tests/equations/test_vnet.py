"""The supervised V-Net: 0.5 (CE + Dice), four labelled crops."""

import pytest
import torch
from by_hand import array, batch, cross_entropy, dice, softmax

from sscl.core.batch import Clock
from sscl.methods.vnet import SupervisedVNet, VNetConfig

CLOCK = Clock(0, 10, "train", 0, 10)


def test_one_step() -> None:
    torch.manual_seed(0)
    method = SupervisedVNet(VNetConfig(width=2, dropout=0.0), 1, 2).train()
    crops = batch(4, 0)
    (objective,) = method.step(crops, CLOCK)
    p, y = softmax(array(method.student(crops.labelled))), crops.label.numpy()
    assert objective.terms["ce"].item() == pytest.approx(cross_entropy(p, y), rel=1e-5)
    assert objective.terms["dice"].item() == pytest.approx(dice(p, y), rel=1e-5)
    assert objective.loss.item() == pytest.approx(0.5 * (cross_entropy(p, y) + dice(p, y)), rel=1e-5)


def test_phase_and_predict() -> None:
    (phase,) = SupervisedVNet.phases(VNetConfig())
    assert (phase.share, phase.batch) == (1, (4, 0))
    torch.manual_seed(0)
    method = SupervisedVNet(VNetConfig(width=2), 1, 3).eval()
    images = batch(1, 0).labelled
    assert array(method.predict(images)) == pytest.approx(softmax(array(method.student(images))), abs=1e-6)
