"""DTC with a network whose answers are written down: the two tasks, their agreement, the ramp."""

import math

import numpy as np
import pytest
import torch
from by_hand import Array, dice
from notes import Notes
from scipy.special import expit
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import Objective
from sscl.core.plan import IGNORE
from sscl.methods.dtc import DTC, DTCConfig
from sscl.ops.distance_map import signed_distance

# sigmoid(-1500 s) is exactly 0 or 1 but very near s = 0, where three steps do not get
CONTRACT = Notes(values={"steepness": 2.0})

# Four voxels, the labelled image before the unlabelled one: logits of the mask, and what tanh makes distances of
MASK = np.array([[0.0, 1.0, 0.0, -1.0], [2.0, 0.0, 0.0, -2.0]])
MAP = np.array([[-1.0, 0.0, 0.001, 2.0], [-0.002, 0.0, 0.0005, 1.0]])
LABEL = np.array([1, 1, 0, 0])
TARGET = np.array([-1.0, 0.0, 0.5, 1.0])  # inside 2 1 voxels deep, the second on the surface; outside 1 2 away

P, S = expit(MASK), np.tanh(MAP)
DICE = 1 - (2 * (P[0] * LABEL).sum() + 1e-5) / ((P[0] ** 2).sum() + LABEL.sum() + 1e-5)
DISTANCE = ((S[0] - TARGET) ** 2).mean()
CONSISTENCY = ((expit(-1500 * S) - P) ** 2).mean()


class Says(nn.Module):
    """Given logits, which are its parameters."""

    def __init__(self, mask: Array = MASK, maps: Array = MAP) -> None:
        super().__init__()
        self.mask, self.map = (nn.Parameter(torch.tensor(z, dtype=torch.float32)) for z in (mask, maps))

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([self.mask, self.map], 1).reshape(len(images), -1, 4, 1, 1)


def step(
    iteration: int = 0, label: np.ndarray = LABEL, says: Says | None = None, classes: int = 2, **settings: float
) -> tuple[Says, Objective]:
    """Labelled crops, as many as `label` has rows, and an unlabelled one."""
    method = DTC(DTCConfig(width=1, **settings), 1, classes)  # type: ignore[arg-type]
    method.student = says = says or Says()  # type: ignore[assignment]
    y, image = torch.from_numpy(label).reshape(-1, 4, 1, 1), torch.zeros(1, 1, 4, 1, 1)
    batch = Batch(image.expand(len(y), -1, -1, -1, -1), y, image, {"signed_distance": signed_distance(y, classes)})
    (objective,) = method.step(batch, Clock(iteration, 100, "train", iteration, 100))
    return says, objective


def test_terms() -> None:
    _, objective = step()
    assert objective.terms["dice"].item() == pytest.approx(DICE, abs=1e-6)
    assert objective.terms["distance"].item() == pytest.approx(DISTANCE, abs=1e-6)
    assert objective.terms["consistency"].item() == pytest.approx(CONSISTENCY, abs=1e-6)


@pytest.mark.parametrize(("iteration", "ramp"), [(0, math.exp(-5)), (50, math.exp(-1.25)), (100, 1.0)])
def test_loss(iteration: int, ramp: float) -> None:
    _, objective = step(iteration)
    assert objective.gauges["weight"] == pytest.approx(ramp)
    assert objective.loss.item() == pytest.approx(DICE + 0.3 * DISTANCE + ramp * CONSISTENCY, abs=1e-6)
    _, other = step(iteration // 2, distance=2.0, consistency=0.5, ramp_share=0.5)
    assert other.loss.item() == pytest.approx(DICE + 2 * DISTANCE + 0.5 * ramp * CONSISTENCY, abs=1e-6)


def test_inside_is_negative_and_becomes_foreground() -> None:
    # maps -1, 0, 1 as masks: 1, .5, 0; with the sign of the paper's source turned round they would be 0, .5, 1
    assert expit(-1500 * np.tanh([-1.0, 0.0, 1.0])).tolist() == [1, 0.5, 0]
    _, objective = step(steepness=1.0)
    expected = ((expit(-S) - P) ** 2).mean()
    assert objective.terms["consistency"].item() == pytest.approx(expected, abs=1e-6)


def test_both_tasks_move_towards_each_other_on_both_halves() -> None:
    says, objective = step()
    for_mask, for_map = torch.autograd.grad(objective.terms["consistency"], [says.mask, says.map])
    soft = expit(-1500 * S)
    apart = 2 * (soft - P) / 8
    np.testing.assert_allclose(for_mask, -apart * P * (1 - P), atol=1e-6)
    np.testing.assert_allclose(for_map, apart * soft * (1 - soft) * -1500 * (1 - S**2), rtol=1e-4, atol=1e-5)
    assert for_map[1, 2] != 0  # at a distance of .0005 there is a gradient,
    assert for_map[0, 0] == 0  # at .76 there is none


def test_terms_leave_out_ignored_voxels_and_supervised_ones_the_unlabelled_half() -> None:
    says, objective = step(label=np.array([1, 1, 0, IGNORE]))
    p, y = P[0, :3], LABEL[:3]
    expected = 1 - (2 * (p * y).sum() + 1e-5) / ((p**2).sum() + y.sum() + 1e-5)
    assert objective.terms["dice"].item() == pytest.approx(expected, abs=1e-6)
    # the target takes the ignored voxel for background, so it is TARGET still
    expected = ((S[0, :3] - TARGET[:3]) ** 2).mean()
    assert objective.terms["distance"].item() == pytest.approx(expected, abs=1e-6)
    expected = np.delete(((expit(-1500 * S) - P) ** 2).ravel(), 3).mean()
    assert objective.terms["consistency"].item() == pytest.approx(expected, abs=1e-6)
    for term, weight in (("dice", says.mask), ("distance", says.map)):
        (gradient,) = torch.autograd.grad(objective.terms[term], [weight])
        assert gradient[0, :3].any()
        assert not gradient[0, 3]
        assert not gradient[1].any()


def test_several_organs_in_several_crops() -> None:
    """Each organ has one Dice over both labelled crops and a map in each; the second crop lacks organ 2."""
    mask, maps = np.random.default_rng(0).normal(size=(2, 3, 2, 4)) * np.array([1, 0.001])[:, None, None, None]
    label = np.array([[1, 1, 2, 0], [0, 1, 1, IGNORE]])
    target = np.array([[[-1, 0, 0.5, 1], [1, 0.5, 0, 0.5]], [[1, 0, 0, 1], [0, 0, 0, 0]]])
    _, objective = step(label=label, says=Says(mask, maps), classes=3)
    p, s = expit(mask), np.tanh(maps)
    counted = np.ones((3, 2, 4), bool)
    counted[1, :, 3] = False
    assert objective.terms["dice"].item() == pytest.approx(dice(np.insert(p[:2], 0, 0, axis=1), label), abs=1e-6)
    expected = ((s[:2] - target) ** 2)[counted[:2]].mean()
    assert objective.terms["distance"].item() == pytest.approx(expected, abs=1e-6)
    expected = ((expit(-1500 * s) - p) ** 2)[counted].mean()
    assert objective.terms["consistency"].item() == pytest.approx(expected, abs=1e-5)


def test_predict_is_the_mask_head() -> None:
    method = DTC(DTCConfig(width=1), 1, 2)
    method.student = Says()  # type: ignore[assignment]
    p = method.predict(torch.zeros(2, 1, 4, 1, 1)).detach()
    np.testing.assert_allclose(p[:, 1, :, 0, 0], P, atol=1e-6)


def test_the_v_net_has_two_channels_an_organ() -> None:
    method = DTC(DTCConfig(), 1, 2)
    assert sum(weight.numel() for weight in method.student.parameters()) == 9_448_866  # as the literature's V-Net
    assert DTC(DTCConfig(width=1), 2, 4).student.decoder.head.out_channels == 6
