"""Tripled-UA with networks whose answers are written down: three targets, three beliefs, five losses."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import Array, array, softmax
from notes import Notes
from scipy.special import expit
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import Objective
from sscl.core.plan import IGNORE
from sscl.methods.tripled_ua import TripledUA, TripledUAConfig, integrate, parts
from sscl.nets.three_decoders import ThreeDecoderVNet
from sscl.ops.distance_map import signed_distance

CONTRACT = Notes(short={"passes": 2})

# Four voxels in a row, three classes, one labelled image before one unlabelled one; the student, then K = 2 passes.
CLASSES, VOXELS, ROWS = 3, 4, 2
RNG = np.random.default_rng(0)
SEGMENTATION = RNG.normal(size=(3, ROWS, CLASSES, VOXELS))
SEGMENTATION[0, 1] = [[0, 0, 2, 2], [2, 2, 0, 0], [0, 0, 0, 0]]  # unlabelled: class 1, 1, 0, 0
DISTANCE = RNG.normal(size=(3, ROWS, CLASSES - 1, VOXELS))
RECONSTRUCTION = RNG.normal(size=(3, ROWS, CLASSES, VOXELS))
IMAGES = RNG.normal(size=(ROWS, VOXELS))
LABEL = np.array([2, 2, 2, 1])
# By hand: -1 is the deepest voxel, 1 the farthest one, 0 the organ's last one; what lies beyond the crop is unknown.
# Class 2 lies 3, 2, 1 deep in voxels 0 to 2; class 1 is 3, 2, 1 away from them, and at its only voxel at the surface.
TARGET = np.array([[1, 2 / 3, 1 / 3, 0], [-1, -2 / 3, 0, 1]])
CROSS_TARGET = np.array([[-1, 0, 0.5, 1], [0, 0, 0, 0]])  # there is no class 2


class Says(nn.Module):
    """Given logits and parts, pass after pass, which are its parameters; keeps what it is shown."""

    def __init__(self, passes: slice) -> None:
        super().__init__()
        self.answers = nn.ParameterList(
            nn.Parameter(torch.tensor(z[passes], dtype=torch.float32)[..., None, None])
            for z in (SEGMENTATION, DISTANCE, RECONSTRUCTION)
        )
        self.given: list[Tensor] = []

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        self.given.append(images)
        return tuple(answer[len(self.given) - 1] for answer in self.answers)


def step(iteration: int = 50, label: Array = LABEL, **settings: float) -> tuple[TripledUA, Objective]:
    settings = {"noise": 0.0, "passes": 2, **settings}
    method = TripledUA(TripledUAConfig(width=1, **settings), 1, CLASSES)  # type: ignore[arg-type]
    method.student, method.teacher = Says(slice(0, 1)), Says(slice(1, 3))  # type: ignore[assignment]
    labelled, unlabelled = torch.tensor(IMAGES, dtype=torch.float32).reshape(ROWS, 1, 1, VOXELS, 1, 1)
    y = torch.from_numpy(label).reshape(1, VOXELS, 1, 1)
    batch = Batch(labelled, y, unlabelled, {"signed_distance": signed_distance(y, CLASSES)})
    (objective,) = method.step(batch, Clock(iteration, 100, "train", iteration, 100))
    return method, objective


def onehot(label: Array) -> Array:
    return (np.arange(CLASSES)[:, None] == label).astype(float)


def entropy(p: Array) -> Array:
    """Over the axis of classes, in units of the largest: base 3."""
    return -(p * np.log(p + 1e-6)).sum(-2, keepdims=True) / np.log(CLASSES)


P = np.stack([softmax(z) for z in SEGMENTATION])
S = expit(DISTANCE)
R = RECONSTRUCTION


def expected_consistencies(voxels: list[int] | None = None) -> dict[str, float]:
    """voxels: those of the labelled image that count."""
    certainty = np.exp(1 - entropy(P[1:]))
    p_mean = (certainty * P[1:]).sum(0) / certainty.sum(0)
    s_mean, r_mean = (S[1] + S[2]) / 2, (R[1] + R[2]) / 2
    s_var = (S[1] - S[2]) ** 2 / 2  # sum of both squared deviations, by K - 1 = 1
    r_std = np.abs(R[1] - R[2]) / np.sqrt(2)
    errors = {
        "segmentation": (P[0] - p_mean) ** 2 * (1 - entropy(p_mean)),
        "distance": (S[0] - s_mean) ** 2 * np.exp(-s_var),
        "reconstruction": (R[0] - r_mean) ** 2 * np.exp(-r_std),
    }
    counted = slice(None) if voxels is None else voxels
    return {f"consistency_{task}": error[0][:, counted].mean() + error[1].mean() for task, error in errors.items()}


def expected_terms() -> dict[str, float]:
    y, p = onehot(LABEL), P[0, 0]
    dice = [1 - (2 * (p[c] * y[c]).sum() + 1e-5) / (p[c].sum() + y[c].sum() + 1e-5) for c in range(CLASSES)]
    return {
        "dice": sum(dice),
        "distance": ((2 * S[0, 0] - (1 + TARGET)) ** 2).mean(),
        "reconstruction": ((R[0, 0] - IMAGES[0] * y) ** 2).mean(),
        **expected_consistencies(),
        "cross_distance": ((2 * S[0, 1] - (1 + CROSS_TARGET)) ** 2).mean(),
        "cross_reconstruction": ((R[0, 1] - IMAGES[1] * onehot(np.array([1, 1, 0, 0]))) ** 2).mean(),
    }


def total(terms: dict[str, float], weight: float, distance: float = 1, rec: float = 1, cross: float = 0.1) -> float:
    consistency = sum(term for name, term in terms.items() if name.startswith("consistency"))
    supervised = terms["dice"] + distance * terms["distance"] + rec * terms["reconstruction"]
    return supervised + weight * consistency + cross * (terms["cross_distance"] + terms["cross_reconstruction"])


def values(objective: Objective) -> dict[str, float]:
    return {name: term.item() for name, term in objective.terms.items()}


def test_every_term() -> None:
    # the student's distances are doubled against their target only; the paper's code doubles them before the labelled
    # consistency as well, and not the teacher's
    _, objective = step()
    assert values(objective) == pytest.approx(expected_terms(), abs=1e-5)


@pytest.mark.parametrize(
    ("iteration", "ramp"), [(0, math.exp(-5)), (25, math.exp(-1.25)), (50, 1.0), (75, 1.0), (99, 1.0)]
)
def test_loss_and_a_ramp_that_stays_up(iteration: int, ramp: float) -> None:
    """The paper's code lets the weight fall again in the second half: (1 - epoch / 100)^2 of 200 epochs."""
    _, objective = step(iteration)
    assert objective.gauges["weight"] == pytest.approx(0.1 * ramp)
    assert objective.loss.item() == pytest.approx(total(expected_terms(), 0.1 * ramp), abs=1e-5)


def test_weights() -> None:
    _, objective = step(25, distance=0.3, reconstruction=2.0, cross_task=0.5, lam=0.7, ramp_share=0.25)
    assert objective.loss.item() == pytest.approx(total(expected_terms(), 0.7, 0.3, 2, 0.5), abs=1e-5)
    _, without = step(cross_task=0.0)
    assert not [name for name in without.terms if name.startswith("cross")]
    assert without.loss.item() == pytest.approx(total(expected_terms(), 0.1, cross=0), abs=1e-5)


def test_ignored_voxels_take_part_in_no_term() -> None:
    counted = [0, 1, 2]
    method, objective = step(label=np.array([2, 2, 2, IGNORE]))
    y, p = onehot(LABEL)[:, counted], P[0, 0][:, counted]
    dice = [1 - (2 * (p[c] * y[c]).sum() + 1e-5) / (p[c].sum() + y[c].sum() + 1e-5) for c in range(CLASSES)]
    found = values(objective)
    assert found["dice"] == pytest.approx(sum(dice), abs=1e-5)
    target = np.array([[0, 0, 0], [-1, -2 / 3, 0]])  # class 1 is now nowhere, and the ignored voxel outside of class 2
    assert found["distance"] == pytest.approx(((2 * S[0, 0, :, counted].T - (1 + target)) ** 2).mean(), abs=1e-5)
    rec = (R[0, 0][:, counted] - IMAGES[0, counted] * y) ** 2
    assert found["reconstruction"] == pytest.approx(rec.mean(), abs=1e-5)
    consistencies = expected_consistencies(counted)
    assert {name: found[name] for name in consistencies} == pytest.approx(consistencies, abs=1e-5)
    for gradient in torch.autograd.grad(objective.loss, list(method.student.answers)):
        assert not gradient[0, 0, :, 3].any()
        assert gradient[0, 0, :, :3].any()


class Random(nn.Module):
    """Answers of the right shape, the same for any image."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(3)
        shape = images.shape[2:]
        return tuple(torch.randn(len(images), n, *shape, generator=generator) for n in (CLASSES, 2, CLASSES))


def test_each_map_meets_the_target_of_its_own_crop_and_organ() -> None:
    """The paper's code has one target without a channel for two channels, which fits a batch of 1 only. Dice, too, is
    of each crop by itself."""
    method = TripledUA(TripledUAConfig(width=1, passes=2), 1, CLASSES)
    method.student = method.teacher = Random()  # type: ignore[assignment]
    labelled, unlabelled = torch.randn(2, 1, VOXELS, 1, 1), torch.randn(1, 1, VOXELS, 1, 1)
    label = torch.tensor([[2, 2, 2, 1], [1, 1, 0, 0]]).reshape(2, VOXELS, 1, 1)
    batch = Batch(labelled, label, unlabelled, {"signed_distance": signed_distance(label, CLASSES)})
    objective = next(method.step(batch, Clock(0, 100, "train", 0, 100)))
    z, s = (array(answer)[:2, :, :, 0, 0] for answer in Random()(batch.images)[:2])
    p, s = softmax(z), expit(s)
    expected = ((2 * s - (1 + np.stack([TARGET, CROSS_TARGET]))) ** 2).mean()
    assert objective.terms["distance"].item() == pytest.approx(expected, abs=1e-5)
    y = np.stack([onehot(np.array(row)) for row in ([2, 2, 2, 1], [1, 1, 0, 0])])
    losses = 1 - (2 * (p * y).sum(2) + 1e-5) / (p.sum(2) + y.sum(2) + 1e-5)
    assert objective.terms["dice"].item() == pytest.approx(losses.sum(1).mean(), abs=1e-5)


def test_surer_passes_count_more_and_belief_is_between_0_and_1() -> None:
    p = np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3]])  # entropies 0 and 1, whatever the number of classes
    mean = array(integrate(torch.tensor(p, dtype=torch.float32).reshape(2, 1, 3, 1, 1, 1))).ravel()
    w = math.e / (math.e + 1)  # softmax of (1, 0)
    np.testing.assert_allclose(mean, w * p[0] + (1 - w) * p[1], atol=1e-5)
    # in bits, as in the paper's code, 1 - U would be 1 - log2(3) < 0 where three classes are equally likely
    method = TripledUA(TripledUAConfig(width=1, passes=2), 1, CLASSES)
    method.teacher = says = Says(slice(1, 3))  # type: ignore[assignment]
    nn.init.zeros_(says.answers[0])
    _, belief = method._teach(torch.zeros(ROWS, 1, VOXELS, 1, 1))[0]
    np.testing.assert_allclose(belief, 0, atol=1e-5)


def test_the_parts_of_an_image_add_up_to_it() -> None:
    x = torch.randn(2, 2, 3, 1, 1)
    label = torch.tensor([[0, 1, 2], [1, IGNORE, 1]]).reshape(2, 3, 1, 1)
    cut = parts(x, label, 3)
    assert cut.shape == (2, 6, 3, 1, 1)
    assert torch.equal(cut.unflatten(1, (3, 2)).sum(1), x)
    assert torch.equal(cut[0, 2:4, 1], x[0, :, 1])  # class 1 has channels 2 and 3
    assert not cut[0, 2:4, [0, 2]].any()


def test_everyone_sees_noise_of_its_own_and_the_reconstruction_is_of_the_student_s() -> None:
    torch.manual_seed(0)
    method, objective = step(noise=0.1)
    clean = torch.tensor(IMAGES, dtype=torch.float32)
    shown = [*method.student.given, *method.teacher.given]
    assert len(shown) == 3
    noise = [images.reshape(ROWS, VOXELS) - clean for images in shown]
    assert all(0 < one.abs().max() <= 0.25 + 1e-6 for one in noise)  # clipped at 2.5 standard deviations
    assert len({float(one[0, 0]) for one in noise}) == 3
    x = array(clean + noise[0])
    expected = ((R[0, 0] - x[0] * onehot(LABEL)) ** 2).mean()
    assert objective.terms["reconstruction"].item() == pytest.approx(expected, abs=1e-5)


def test_only_the_teacher_has_dropout_and_only_at_its_bottleneck() -> None:
    method = TripledUA(TripledUAConfig(width=1, dropout=0.25), 1, 2)
    active = {name: m.p for name, m in method.named_modules() if isinstance(m, nn.Dropout3d) and m.p}
    assert active == {"teacher.dropout": 0.25}
    assert torch.equal(method.student.encoder.stages[0][0].weight, method.teacher.encoder.stages[0][0].weight)


def test_predict_is_the_student_s_segmentation() -> None:
    torch.manual_seed(0)
    method = TripledUA(TripledUAConfig(width=2), 2, 4).eval()
    images = torch.randn(2, 2, 32, 16, 16)
    segmentation, distance, reconstruction = method.student(images)
    assert [tuple(answer.shape[1:2]) for answer in (segmentation, distance, reconstruction)] == [(4,), (3,), (8,)]
    assert torch.equal(method.predict(images), segmentation.softmax(1))


def test_network() -> None:
    net: Any = ThreeDecoderVNet()
    encoder, decoder = 7_376_896, 2_071_936  # the V-Net's 9,448,866 less its head of 34
    heads = (16 * 2 + 2) + (16 * 1 + 1) + (16 * 2 + 2)
    assert sum(weight.numel() for weight in net.parameters()) == encoder + 3 * decoder + heads == 13_592_789
    assert encoder + decoder + 34 == 9_448_866
    assert [net.segmentation.skips, net.distance.skips, net.reconstruction.skips] == [True, True, False]
