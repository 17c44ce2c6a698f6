"""UA-MT with networks whose answers are written down: entropy, threshold, mask, target."""

import math
from collections.abc import Sequence

import pytest
import torch
from notes import Notes
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.methods.ua_mt import UAMT, UAMTConfig

CONTRACT = Notes(short={"passes": 2})

# Four voxels of one unlabelled image; their foreground probabilities:
STUDENT = (0.3, 0.8, 0.6, 0.2)
TARGET = (0.5, 0.7, 0.1, 0.2)  # the teacher's first pass
PASSES = ((0.9, 0.6, 0.5, 0.0), (0.9, 0.2, 0.3, 0.2))  # its T = 2 further ones
MU = (0.9, 0.4, 0.4, 0.1)


class Says(nn.Module):
    """Logits of given foreground probabilities, one row of them after another."""

    def __init__(self, *answers: Sequence[float]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.answers = [torch.tensor(answer).clamp(1e-6, 1 - 1e-6) for answer in answers]
        self.given: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.given.append(images)
        p = self.answers[len(self.given) - 1].reshape(len(images), 1, -1, 1, 1)
        return self.scale * torch.cat([1 - p, p], 1).log()


def step(iteration: int, mask: bool = True) -> tuple[UAMT, dict[str, float], float]:
    method = UAMT(UAMTConfig(width=1, passes=2, mask=mask), 1, 2)
    method.student = Says((0.5,) * 4 + STUDENT)  # type: ignore[assignment]
    method.teacher = Says(TARGET, *PASSES)  # type: ignore[assignment]
    images = torch.zeros(1, 1, 4, 1, 1)
    label = torch.tensor([1, 1, 0, 0]).reshape(1, 4, 1, 1)
    (objective,) = method.step(Batch(images, label, images), Clock(iteration, 100, "train", iteration, 100))
    numbers = {
        name: float(torch.as_tensor(value).detach()) for name, value in {**objective.terms, **objective.gauges}.items()
    }
    return method, numbers, objective.loss.item()


def entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def test_the_entropy_of_the_mean_decides_and_the_threshold_rises() -> None:
    # entropies of MU: .325, .673, .673, .325; thresholds: .75 ln 2 = .520 ... ln 2 = .693
    assert entropy(0.1) < 0.75 * math.log(2) < entropy(0.4) < math.log(2)
    _, early, _ = step(0)
    assert early["sure"] == 0.5
    assert early["consistency"] == pytest.approx(((0.3 - 0.5) ** 2 + (0.2 - 0.2) ** 2) / 2, abs=1e-6)
    _, late, _ = step(100)
    assert late["sure"] == 1
    everywhere = (0.2**2 + 0.1**2 + 0.5**2 + 0) / 4
    assert late["consistency"] == pytest.approx(everywhere, abs=1e-6)
    _, unmasked, _ = step(0, mask=False)
    assert unmasked["consistency"] == pytest.approx(everywhere, abs=1e-6)


def test_the_threshold_s_ramp() -> None:
    # entropy(.4) = .6730 is passed where .75 + .25 exp(-5 (1 - t)^2) = .6730 / ln 2 = .97095, so at t = .8429
    assert step(84)[1]["sure"] == 0.5
    assert step(85)[1]["sure"] == 1


def test_loss() -> None:
    _, numbers, loss = step(50)
    ce = math.log(2)
    dice = 1 - 2 * 0.5 * 2 / (4 * 0.25 + 2)
    assert numbers["ce"] == pytest.approx(ce)
    assert numbers["dice"] == pytest.approx(dice, abs=1e-5)
    assert loss == pytest.approx(0.5 * (ce + dice) + 0.1 * math.exp(-1.25) * 0.02, abs=1e-5)


def test_every_pass_has_its_own_clipped_noise() -> None:
    method, _, _ = step(0)
    given = method.teacher.given
    assert len(given) == 3
    assert all(0 < x.abs().max() <= 0.2 for x in given)
    assert not torch.equal(given[0], given[1])
    assert torch.equal(method.student.given[0], torch.zeros(2, 1, 4, 1, 1))


def test_the_teacher_ends_as_the_average() -> None:
    method = UAMT(UAMTConfig(width=1, passes=1), 1, 2)
    method.student = Says((0.5, 0.5))  # type: ignore[assignment]
    method.teacher = Says((0.5,), (0.5,))  # type: ignore[assignment]
    image = torch.zeros(1, 1, 1, 1, 1)
    steps = method.step(Batch(image, torch.ones(1, 1, 1, 1, dtype=torch.long), image), Clock(3, 100, "train", 3, 100))
    next(steps)
    nn.init.constant_(method.student.scale, 2.0)  # what an optimiser would do
    assert next(steps, None) is None
    assert method.teacher.scale.item() == pytest.approx(0.75 * 1 + 0.25 * 2)  # 1 - 1 / 4 < .99


def test_defaults_are_those_of_the_code_and_the_largest_entropy_is_that_of_all_classes() -> None:
    assert (UAMTConfig().passes, UAMTConfig().alpha, UAMTConfig().consistency) == (8, 0.99, 0.1)

    class Even(nn.Module):
        """Three classes, (.5, .5 - d, d): an entropy between ln 2 and .75 ln 3, which only C = 3 calls sure."""

        def __init__(self) -> None:
            super().__init__()
            self.scale, self.calls = nn.Parameter(torch.ones(())), 0

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            p = torch.tensor((0.5, 0.48, 0.02)).reshape(1, 3, 1, 1, 1).expand(len(images), 3, 2, 1, 1)
            return self.scale * p.log()

    u = -sum(p * math.log(p) for p in (0.5, 0.48, 0.02))
    assert math.log(2) < u < 0.75 * math.log(3)
    method = UAMT(UAMTConfig(width=1), 1, 3)
    method.student, method.teacher = Even(), Even()  # type: ignore[assignment]
    images = torch.zeros(1, 1, 2, 1, 1)
    label = torch.zeros(1, 2, 1, 1, dtype=torch.long)
    (objective,) = method.step(Batch(images, label, images), Clock(0, 100, "train", 0, 100))
    assert float(torch.as_tensor(objective.gauges["sure"])) == 1
    assert method.teacher.calls == 1 + 8
