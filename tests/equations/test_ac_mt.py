"""AC-MT with networks whose answers are written down: what is ambiguous in each variant, and the losses."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import Array, array, batch, softmax
from notes import Notes
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.methods.ac_mt import ACMT, ACMTConfig, nearest_prototype
from sscl.ops.confident_learning import errors_expected, label_errors

P_ERR = {"variant": "p_err", "p_err_passes": 2, "width": 4}  # untrained and narrower, it knows one class only
CONTRACT = Notes(
    short={"mu_passes": 2, "p_err_passes": 2},
    variants=({"variant": "mu", "mu_passes": 2}, P_ERR, {"variant": "s_err"}),
    under={
        "mu_end": {"variant": "mu"},
        "mu_passes": {"variant": "mu"},
        "p_err_passes": P_ERR,
        "p_err_std": P_ERR,
    },
    values={"mu_end": 1.0, "p_err_std": 0.01},
)

# Four voxels of the labelled and four of the unlabelled image; their foreground probabilities:
LABEL, ANSWER = (1, 1, 0, 0), (0.6, 0.6, 0.2, 0.2)
STUDENT = (0.3, 0.8, 0.6, 0.2)  # entropies as parts of ln 2: .881, .722, .971, .722
TARGET = (0.5, 0.7, 0.1, 0.2)
SQUARES = (0.04, 0.01, 0.25, 0.0)


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


def method_that_says(
    student: Sequence[float] = STUDENT,
    target: Sequence[float] = TARGET,
    passes: Sequence[Sequence[float]] = (),
    **settings: Any,
) -> ACMT:
    method = ACMT(ACMTConfig(width=1, **settings), 1, 2)
    method.student = Says((*ANSWER, *student), *passes)  # type: ignore[assignment]
    method.teacher = Says(target)  # type: ignore[assignment]
    return method


def step(method: ACMT, iteration: int) -> tuple[dict[str, float], float]:
    images = torch.zeros(1, 1, 4, 1, 1)
    crops = Batch(images, torch.tensor(LABEL).reshape(1, 4, 1, 1), images)
    (objective,) = method.step(crops, Clock(iteration, 100, "train", iteration, 100))
    numbers = {
        name: float(torch.as_tensor(value).detach()) for name, value in {**objective.terms, **objective.gauges}.items()
    }
    return numbers, objective.loss.item()


def entropy(p: float) -> float:
    return -(p * math.log(p) + (1 - p) * math.log(1 - p)) / math.log(2)


# ---------------------------------------------------------------- all variants


def test_loss() -> None:
    numbers, loss = step(method_that_says(), 30)
    ce = -(2 * math.log(0.6) + 2 * math.log(0.8)) / 4
    foreground, background = 1 - 2 * 1.2 / (0.8 + 2), 1 - 2 * 1.6 / (1.6 + 2)
    assert numbers["ce"] == pytest.approx(ce)
    assert numbers["dice"] == pytest.approx((foreground + background) / 2, abs=1e-5)
    weight = 0.1 * math.exp(-5 * (1 - 30 / 75) ** 2)  # the ramp ends at 6000 of 8000 iterations
    assert numbers["weight"] == pytest.approx(weight)
    assert loss == pytest.approx(0.5 * (ce + numbers["dice"]) + weight * (0.04 + 0.25) / 2)
    assert step(method_that_says(), 75)[0]["weight"] == pytest.approx(0.1)


def test_one_noisy_pass_of_the_teacher_and_a_clean_one_of_the_student() -> None:
    """The published code makes a clean pass of the teacher besides, which it does not use."""
    method = method_that_says(noise=0.5)
    step(method, 0)
    (noisy,), (clean,) = method.teacher.given, method.student.given
    assert 0 < noisy.abs().max() <= 1
    assert torch.equal(clean, torch.zeros(2, 1, 4, 1, 1))


# ---------------------------------------------------------------- ent


def test_ent_looks_where_the_student_is_unsure_and_the_threshold_rises() -> None:
    assert 0.722 < 0.75 < entropy(0.3) < 0.95 < entropy(0.6)
    early, _ = step(method_that_says(), 0)
    assert early["ambiguous"] == 0.5
    assert early["consistency"] == pytest.approx((0.04 + 0.25) / 2)
    late, _ = step(method_that_says(), 100)
    assert late["ambiguous"] == 0.25
    assert late["consistency"] == pytest.approx(0.25)


def test_the_threshold_s_ramp_lasts_the_whole_run() -> None:
    # entropy(.3) = .8813 is passed where .75 + .2 exp(-5 (1 - t)^2) is as much, so at t = .7099
    assert step(method_that_says(), 70)[0]["ambiguous"] == 0.5
    assert step(method_that_says(), 72)[0]["ambiguous"] == 0.25


def test_the_paper_s_threshold_falls_to_sixty_percent() -> None:
    late, _ = step(method_that_says(ent_end=0.6), 100)
    assert late["ambiguous"] == 1
    assert late["consistency"] == pytest.approx(sum(SQUARES) / 4)


def test_without_an_ambiguous_voxel_the_consistency_is_zero() -> None:
    numbers, loss = step(method_that_says(ent_end=1.0), 100)
    assert numbers["ambiguous"] == numbers["consistency"] == 0
    assert loss == pytest.approx(0.5 * (numbers["ce"] + numbers["dice"]))


def test_entropy_is_a_part_of_ln_c() -> None:
    method = ACMT(ACMTConfig(width=1, ent_end=0.999), 1, 3)
    method.student = method.teacher = nn.Conv3d(1, 3, 1)  # type: ignore[assignment]
    nn.init.zeros_(method.student.bias)  # on an image of zeros: 1/3 each
    numbers, _ = step(method, 100)
    assert numbers["ambiguous"] == 1


# ---------------------------------------------------------------- mu

PASSES = ((0.9, 0.6, 0.5, 0.0), (0.9, 0.2, 0.3, 0.2))  # mean .9, .4, .4, .1: entropies .469, .971, .971, .469


def test_mu_looks_where_the_mean_of_noisy_passes_is_unsure() -> None:
    method = method_that_says(passes=PASSES, variant="mu", mu_passes=2)
    numbers, _ = step(method, 100)
    assert numbers["ambiguous"] == 0.5
    assert numbers["consistency"] == pytest.approx(2 * (0.01 + 0.25) / 2)  # summed over both classes
    clean, *noisy = method.student.given
    assert clean.abs().max() == 0
    assert all(x.shape == (1, 1, 4, 1, 1) and 0 < x.abs().max() <= 0.2 for x in noisy)
    assert not torch.equal(*noisy)


def test_mu_has_its_own_threshold() -> None:
    assert step(method_that_says(passes=PASSES, variant="mu", mu_passes=2, mu_end=0.98), 100)[0]["ambiguous"] == 0
    assert step(method_that_says(passes=PASSES, variant="mu", mu_passes=2, ent_end=0.98), 100)[0]["ambiguous"] == 0.5


# ---------------------------------------------------------------- p_err


def line(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, -1, 1, 1)


def test_prototypes_are_weighted_means_over_certain_voxels() -> None:
    features, p = line(0, 1, 10, 11, 5.46, 5.42), line(0.1, 0.2, 0.9, 0.6, 0.7, 0.3)
    certain = line(1, 1, 1, 1, 0, 0).bool().expand(1, 2, 6, 1, 1)
    # (.9 0 + .8 1) / 1.7 = .47 and (.9 10 + .6 11) / 1.5 = 10.4, with the middle at 5.435; without the weights at 5.5
    nearest = nearest_prototype(features, torch.cat([1 - p, p], 1), certain)
    assert nearest.flatten().tolist() == [0, 0, 1, 1, 1, 0]


def test_a_class_without_certain_voxels_is_nobody_s_nearest() -> None:
    features, p = line(0, 1, 10, 11), line(0.1, 0.2, 0.9, 0.6)
    certain = torch.cat([line(0, 0, 0, 0), line(1, 1, 1, 1)], 1).bool()
    assert nearest_prototype(features, torch.cat([1 - p, p], 1), certain).flatten().tolist() == [1, 1, 1, 1]


def test_p_err_is_drawn_to_the_teacher_where_the_prototype_disagrees_and_to_certainty_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # the student says 0, 1, 1, 0
    monkeypatch.setattr(ACMT, "_nearest_class", lambda *_: torch.tensor([0, 0, 1, 0]).reshape(1, 1, 4, 1, 1))
    numbers, loss = step(method_that_says(variant="p_err"), 100)
    assert numbers["ambiguous"] == 0.25
    assert numbers["consistency"] == pytest.approx(0.01)
    assert numbers["entropy"] == pytest.approx((entropy(0.3) + entropy(0.6) + entropy(0.2)) / 3, abs=1e-5)
    supervised = 0.5 * (numbers["ce"] + numbers["dice"])
    assert loss == pytest.approx(supervised + 0.1 * (numbers["consistency"] + numbers["entropy"]))


def test_p_err_is_certain_where_its_noisy_passes_vary_little(monkeypatch: pytest.MonkeyPatch) -> None:
    images, seen, asked = torch.zeros(1, 1, 4, 2, 2), [], []

    def one_pass(_: ACMT, x: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x)
        organ = ((2.0, 2.0, 3.0, 3.0), (1.0, 1.0, 0.0, 0.0))[len(seen) - 1]  # logits of the two passes
        wide = torch.tensor(organ).reshape(1, 1, 4, 1, 1).expand(1, 1, 4, 2, 2)
        return torch.full((1, 1, 2, 1, 1), float(len(seen))), torch.cat([torch.zeros_like(wide), wide], 1)

    def ask(features: Tensor, p: Tensor, certain: Tensor) -> Tensor:
        asked.extend([features, p[:, 1], certain])
        return torch.tensor([0, 1]).reshape(1, 2, 1, 1)

    monkeypatch.setattr(ACMT, "_pass", one_pass)
    monkeypatch.setattr("sscl.methods.ac_mt.nearest_prototype", ask)
    nearest = ACMT(ACMTConfig(width=1, variant="p_err", p_err_passes=2), 1, 2)._nearest_class(images)
    assert nearest.shape == (1, 1, 4, 2, 2)
    assert nearest[0, 0, :, 0, 0].tolist() == [0, 0, 1, 1]
    assert not torch.equal(*seen)
    assert all(0 < x.abs().max() <= 0.2 for x in seen)
    features, p, certain = asked
    assert features.flatten().tolist() == [1.5, 1.5]
    sigmoid = {z: 1 / (1 + math.exp(-z)) for z in (0.5, 1.0, 1.5, 2.0, 3.0)}
    assert p.flatten().tolist() == pytest.approx([(sigmoid[2] + sigmoid[1]) / 2, (sigmoid[3] + 0.5) / 2])
    # standard deviations of two are differences over root 2: of halved logits .077 and .22; of whole ones .106 and .32
    assert (sigmoid[1] - sigmoid[0.5]) / math.sqrt(2) < 0.1 < (sigmoid[1.5] - 0.5) / math.sqrt(2)
    assert (sigmoid[2] - sigmoid[1]) / math.sqrt(2) > 0.1
    assert certain.flatten(2)[0].tolist() == [[True, True], [True, False]]


def test_p_err_reads_features_of_half_the_resolution() -> None:
    torch.manual_seed(0)
    method = ACMT(ACMTConfig(width=2, dropout=0.0, noise=0.0, variant="p_err", p_err_passes=2), 1, 2)
    seen: list[Array] = []
    method.teacher.decoder.stages[2].register_forward_hook(lambda *given: seen.append(array(given[-1])))
    images = batch().unlabelled
    with torch.no_grad():
        nearest = method._nearest_class(images)
        p = softmax(array(method.teacher(images)))
    f = seen[0]
    assert f.shape == (2, 4, 16, 16, 8)  # at width 16: 32 channels
    p = p.reshape(2, 2, 16, 2, 16, 2, 8, 2).mean((3, 5, 7))  # both passes alike: every voxel is certain
    distances = []
    for c in range(2):
        w = p[:, c : c + 1] * (p.argmax(1) == c)[:, None]
        prototype = (w * f).sum((0, 2, 3, 4)) / w.sum()
        distances.append(((f - prototype[:, None, None, None]) ** 2).sum(1))
    expected = np.argmin(distances, 0).repeat(2, 1).repeat(2, 2).repeat(2, 3)
    assert 0 < expected.mean() < 1
    assert np.array_equal(nearest[:, 0].numpy(), expected)


# ---------------------------------------------------------------- s_err

GIVEN = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 1])
P1 = torch.tensor([0.1, 0.2, 0.2, 0.3, 0.9, 0.6, 0.9, 0.8, 0.75, 0.4])


def test_confident_learning_by_hand() -> None:
    # t_0 = .617, t_1 = .7125. Labelled 0: four reach t_0, one reaches t_1 (.9), one (.6) neither; that one in five is
    # an error makes 1.2 of six. Labelled 1: three reach t_1, .4 reaches neither; no errors.
    p = torch.stack([1 - P1, P1], 1)
    assert errors_expected(p, GIVEN).tolist() == [[0, 1], [0, 0]]
    assert label_errors(p, GIVEN).nonzero().flatten().tolist() == [4]


def test_a_class_that_nobody_is_labelled_with_gets_no_errors() -> None:
    p = torch.tensor([[0.6, 0.4, 0.0], [0.5, 0.1, 0.4], [0.2, 0.7, 0.1]])
    assert not label_errors(p, torch.tensor([0, 0, 1])).any()


def again(p: Array, label: Array) -> tuple[set[int], set[int]]:
    """Pruned by class and by noise rate, example by example."""
    n, classes = p.shape
    t = [p[label == j, j].mean() for j in range(classes)]
    confident = np.zeros((classes, classes))
    for x in range(n):
        reached = [j for j in range(classes) if p[x, j] >= t[j]]
        if reached:
            confident[label[x], max(reached, key=lambda j: p[x, j])] += 1
    by_class: set[int] = set()
    by_noise_rate: set[int] = set()
    for i in range(classes):
        rows = [x for x in range(n) if label[x] == i]
        errors = [0 if j == i else round(confident[i, j] / confident[i].sum() * len(rows)) for j in range(classes)]
        by_class |= set(sorted(rows, key=lambda x: p[x, i])[: sum(errors)])
        for j in range(classes):
            by_noise_rate |= set(sorted(rows, key=lambda x: p[x, i] - p[x, j])[: errors[j]])
    return by_class, by_noise_rate


def test_confident_learning_is_what_both_prunings_agree_on() -> None:
    rng = np.random.default_rng(0)
    p = rng.dirichlet((1, 1, 1), 300)
    label = np.array([rng.choice(3, p=row) for row in p])
    by_class, by_noise_rate = again(p, label)
    assert by_class - by_noise_rate
    assert by_noise_rate - by_class
    errors = label_errors(torch.from_numpy(p), torch.from_numpy(label))
    assert set(errors.nonzero().flatten().tolist()) == by_class & by_noise_rate != set()


def s_err(student: Tensor, target: Tensor) -> dict[str, float]:
    method = ACMT(ACMTConfig(width=1, variant="s_err"), 1, 2)
    method.student = Says([0.5] * 10 + student.tolist())  # type: ignore[assignment]
    method.teacher = Says(target.tolist())  # type: ignore[assignment]
    images = torch.zeros(1, 1, 10, 1, 1)
    crops = Batch(images, GIVEN.reshape(1, 10, 1, 1), images)
    (objective,) = method.step(crops, Clock(0, 100, "train", 0, 100))
    return {"consistency": objective.terms["consistency"].item(), "ambiguous": float(objective.gauges["ambiguous"])}


def test_s_err_looks_where_the_student_s_class_is_an_error() -> None:
    numbers = s_err(0.2 + 0.6 * GIVEN, P1)
    assert numbers["ambiguous"] == pytest.approx(0.1)
    assert numbers["consistency"] == pytest.approx((0.2 - 0.9) ** 2)


def test_s_err_looks_everywhere_where_there_is_no_error() -> None:
    numbers = s_err(0.2 + 0.6 * GIVEN, 0.1 + 0.8 * GIVEN)
    assert numbers["ambiguous"] == 1
    assert numbers["consistency"] == pytest.approx(0.01)
