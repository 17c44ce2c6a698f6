"""Double-UA as we reconstruct it, with networks whose answers are written down: both uncertainties, their weight."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from notes import Notes
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.plan import IGNORE
from sscl.methods import METHODS
from sscl.methods.double_ua import DoubleUA, DoubleUAConfig
from sscl.stages.explain import explain

# Inconsistency and uncertainty are means over both halves, without the voxels that the label ignores.
CONTRACT = Notes(variants=({"u_term": "none"},), short={"passes": 2})

# Two voxels of the labelled image, then two of the unlabelled one: foreground probabilities and features (u, v)
STUDENT = (0.3, 0.8, 0.6, 0.2)
TARGETS = ((0.9, 0.6, 0.5, 0.1), (0.7, 0.2, 0.3, 0.1))
MU = (0.8, 0.4, 0.4, 0.1)
U = ((1.0, 2.0, 3.0, 0.0), (2.0, 1.0, 6.0, 0.0))
V = ((1.0, 0.0, 0.0, 1.0), (2.0, 0.0, 0.0, 2.0))
# A = u^2 + v^2 by its mean in the image: 2 4 -> 2/3 4/3 and 9 1 -> 1.8 .2; second pass 8 1 -> 16/9 2/9, and 1.8 .2
FIRST, SECOND = (2 / 3, 4 / 3, 1.8, 0.2), (16 / 9, 2 / 9, 1.8, 0.2)


class Says(nn.Module):
    """Given foreground probabilities and features, one row of them after another."""

    def __init__(self, answers: Sequence[Sequence[float]], features: Sequence[Any] = ()) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.answers = [torch.tensor(answer) for answer in answers]
        self.features = [torch.tensor(feature) for feature in features]
        self.given: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.given.append(images)
        p = self.answers[len(self.given) - 1].reshape(len(images), 1, -1, 1, 1)
        return self.scale * torch.cat([1 - p, p], 1).log()

    def embedded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features[len(self.given)].reshape(2, len(images), -1, 1, 1).movedim(0, 1)
        return self(images), features


def step(iteration: int = 100, label: tuple[int, int] = (1, 0), **settings: Any) -> tuple[DoubleUA, dict[str, float]]:
    method = DoubleUA(DoubleUAConfig(width=1, passes=2, **settings), 1, 2)
    method.student = Says([STUDENT])  # type: ignore[assignment]
    method.teacher = Says(TARGETS, list(zip(U, V, strict=True)))  # type: ignore[assignment]
    image = torch.zeros(1, 1, 2, 1, 1)
    batch = Batch(image, torch.tensor(label).reshape(1, 2, 1, 1), image)
    (objective,) = method.step(batch, Clock(iteration, 100, "train", iteration, 100))
    numbers = {**objective.terms, **objective.gauges, "loss": objective.loss}
    return method, {name: float(torch.as_tensor(value).detach()) for name, value in numbers.items()}


def entropy(p: float) -> float:
    return -(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)


def feature_uncertainty(first: float, second: float) -> float:
    """Half the difference is the deviation of two; by their mean."""
    return min(abs(first - second) / (first + second), 1)


U_SEG = [entropy(p) for p in MU]
U_FEAT = [feature_uncertainty(*pair) for pair in zip(FIRST, SECOND, strict=True)]
INCONSISTENCY = [math.exp(-(s + f)) * 2 * (p - mu) ** 2 for s, f, p, mu in zip(U_SEG, U_FEAT, STUDENT, MU, strict=True)]


def test_uncertainties() -> None:
    assert pytest.approx([5 / 11, 5 / 7, 0, 0]) == U_FEAT  # features that only grow as a whole are sure
    _, numbers = step()
    assert numbers["u_seg"] == pytest.approx(np.mean(U_SEG), abs=1e-5)
    assert numbers["u_feat"] == pytest.approx(np.mean(U_FEAT), abs=1e-5)


def test_one_pass_has_no_feature_uncertainty_and_many_at_most_1() -> None:
    method = DoubleUA(DoubleUAConfig(width=1, passes=1), 1, 2)
    method.teacher = Says(TARGETS[:1], [(U[0], V[0])])  # type: ignore[assignment]
    assert method._teach(torch.zeros(2, 1, 2, 1, 1))[2].abs().max() == 0
    # one of five passes is active at the first voxel: mean .2, deviation .4, a ratio of 2
    method = DoubleUA(DoubleUAConfig(width=1, passes=5), 1, 2)
    once, never = (((1.0, 0.0),), (0.0, 0.0)), (((0.0, 1.0),), (0.0, 0.0))
    features = [(first, (second,)) for first, second in (once, never, never, never, never)]
    method.teacher = Says([TARGETS[0][:2]] * 5, features)  # type: ignore[assignment]
    torch.testing.assert_close(
        method._teach(torch.zeros(1, 1, 2, 1, 1))[2].flatten(), torch.tensor([1.0, 0.5]), rtol=1e-4, atol=0
    )


def test_consistency_counts_less_where_the_teacher_is_unsure() -> None:
    _, numbers = step()
    assert numbers["consistency"] == pytest.approx(np.mean(INCONSISTENCY), abs=1e-5)
    assert numbers["uncertainty"] == pytest.approx(np.mean([entropy(p) for p in STUDENT]), abs=1e-5)


def test_ignored_voxels_take_no_part() -> None:
    _, numbers = step(label=(1, IGNORE))
    kept = [0, 2, 3]
    assert numbers["consistency"] == pytest.approx(np.mean([INCONSISTENCY[i] for i in kept]), abs=1e-5)
    assert numbers["uncertainty"] == pytest.approx(np.mean([entropy(STUDENT[i]) for i in kept]), abs=1e-5)
    assert numbers["u_feat"] == pytest.approx(np.mean([U_FEAT[i] for i in kept]), abs=1e-5)
    assert numbers["ce"] == pytest.approx(-math.log(0.3), abs=1e-5)


@pytest.mark.parametrize(("iteration", "ramp"), [(0, math.exp(-5)), (50, math.exp(-1.25)), (100, 1.0)])
@pytest.mark.parametrize("u_term", ["student", "teacher", "none"])
def test_loss(iteration: int, ramp: float, u_term: str) -> None:
    ce = -(math.log(0.3) + math.log(0.2)) / 2
    dice = 1 - 2 * 0.3 / (0.3**2 + 0.8**2 + 1)
    u = {"student": [entropy(p) for p in STUDENT], "teacher": np.add(U_SEG, U_FEAT), "none": [0.0]}[u_term]
    consistency = np.mean(INCONSISTENCY) + 0.1 * np.mean(u)
    _, numbers = step(iteration, u_term=u_term)
    assert numbers["ce"] == pytest.approx(ce, abs=1e-5)
    assert numbers["dice"] == pytest.approx(dice, abs=1e-5)
    assert numbers["weight"] == pytest.approx(0.1 * ramp)
    assert numbers["loss"] == pytest.approx(0.5 * (ce + dice) + 0.1 * ramp * consistency, abs=1e-5)
    assert ("uncertainty" in numbers) == (u_term == "student")  # the teacher's has no gradient: no term


def test_three_classes_have_ln_3() -> None:
    method = DoubleUA(DoubleUAConfig(width=2, passes=1), 1, 3)
    nn.init.zeros_(method.teacher.decoder.head.weight)
    nn.init.zeros_(method.teacher.decoder.head.bias)  # type: ignore[arg-type]
    mu, u_seg, _ = method._teach(torch.randn(1, 1, 32, 32, 16))
    torch.testing.assert_close(mu, torch.full_like(mu, 1 / 3))
    torch.testing.assert_close(u_seg, torch.ones_like(u_seg), rtol=1e-5, atol=0)


def test_every_pass_sees_both_halves_with_noise_of_its_own() -> None:
    method, _ = step()
    first, second = method.teacher.given
    assert first.shape == (2, 1, 2, 1, 1)
    assert all(0 < x.abs().max() <= 0.2 for x in (first, second))
    assert not torch.equal(first, second)
    assert torch.equal(method.student.given[0], torch.zeros(2, 1, 2, 1, 1))


def test_the_teacher_ends_as_the_average() -> None:
    method = DoubleUA(DoubleUAConfig(width=1, passes=2), 1, 2)
    method.student = Says([STUDENT])  # type: ignore[assignment]
    method.teacher = Says(TARGETS, list(zip(U, V, strict=True)))  # type: ignore[assignment]
    image = torch.zeros(1, 1, 2, 1, 1)
    label = torch.ones(1, 2, 1, 1, dtype=torch.long)
    steps = method.step(Batch(image, label, image), Clock(3, 100, "train", 3, 100))
    next(steps)
    nn.init.constant_(method.student.scale, 2.0)  # what an optimiser would do
    assert next(steps, None) is None
    assert method.teacher.scale.item() == pytest.approx(0.75 * 1 + 0.25 * 2)  # 1 - 1 / 4 < .99


def test_who_asks_is_told_that_it_is_a_reconstruction() -> None:
    text, _ = explain("double_ua")
    assert "our reconstruction" in text
    assert "cannot be compared" in text
    assert "reconstructed by us" in METHODS["double_ua"].paper
