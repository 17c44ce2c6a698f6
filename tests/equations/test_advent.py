"""ADVENT: entropies of written-down probabilities, a critic of two weights, and its patches."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import Array, array, batch, cross_entropy, dice, loaded, weights
from checks import leaves
from notes import Notes
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.errors import UserError
from sscl.core.method import Objective
from sscl.engine.train import Trainer
from sscl.methods.advent import Advent, AdventConfig, mean_entropy, self_information
from sscl.nets.discriminator import PatchCritic

ADVERSARIAL: dict[str, Any] = {"form": "adversarial"}
CRITIC = [path for path in leaves(AdventConfig()) if path.startswith("critic.")]
CONTRACT = Notes(
    variants=({**ADVERSARIAL, "critic_width": 2},),
    short={"critic_width": 2},
    mixed=("halves",),
    through=("critic",),
    values={"critic.schedule.every": 1},
    under={
        **dict.fromkeys([*CRITIC, "adversarial", "critic_width"], ADVERSARIAL),
        "critic.schedule.every": {**ADVERSARIAL, "critic.schedule.kind": "step"},
    },
)

LABELLED = (0.5, 0.25, 0.9, 0.6)  # foreground probabilities of the four voxels of one crop
LABEL = (1, 0, 1, -1)
UNLABELLED = (0.5, 0.75, 0.2, 1.0)


class Says(nn.Module):
    """The logits of these probabilities, whatever it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        p = torch.tensor((LABELLED, UNLABELLED)).reshape(2, 1, 4, 1, 1)
        return self.scale * torch.cat([1 - p, p], 1).clamp(min=1e-12).log()


class TwoWeights(nn.Module):
    """A critic whose logit at each voxel is 3 I_0 - 2 I_1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor((3.0, -2.0)).reshape(1, 2, 1, 1, 1))

    def forward(self, maps: Tensor) -> Tensor:
        return (self.weight * maps).sum(1, keepdim=True)


def step(t: int = 100, **settings: Any) -> list[Objective]:
    method = Advent(AdventConfig(width=1, critic_width=1, **settings), 1, 2)
    method.student = Says()  # type: ignore[assignment]
    if method.critic is not None:
        method.critic = TwoWeights()  # type: ignore[assignment]
    crop = torch.zeros(1, 1, 4, 1, 1)
    label = torch.tensor(LABEL).reshape(1, 4, 1, 1)
    return list(method.step(Batch(crop, label, crop), Clock(t, 100, "train", t, 100)))


def supervised() -> float:
    p, y = np.array(LABELLED), np.array(LABEL)
    both, rows = np.stack([1 - p, p])[None, ..., None, None], y.reshape(1, 4, 1, 1)
    return 0.5 * (cross_entropy(both, rows) + dice(both, rows, first=0))


def binary_entropy(p: Array) -> Array:
    q = np.clip(np.stack([p, 1 - p]), 1e-12, 1)
    return -(q * np.log2(q)).sum(0)


def test_the_entropy_is_a_share_of_the_largest_and_of_all_voxels_that_count() -> None:
    # .5: 1; .25 and .75: .5 + .75 log2(4/3) = .8113; .9: .4690; .2: .7219; 1: 0; the ignored voxel is out
    by_hand = (1 + 0.811278 + 0.468996 + 1 + 0.811278 + 0.721928 + 0) / 7
    (objective,) = step()
    counted = np.array([*LABELLED[:3], *UNLABELLED])
    assert binary_entropy(counted).mean() == pytest.approx(by_hand, abs=1e-5)
    assert objective.terms["entropy"].item() == pytest.approx(by_hand, abs=1e-5)


def test_knowing_nothing_of_any_number_of_classes_is_an_entropy_of_1() -> None:
    crops = Batch(torch.zeros(1, 1, 2, 1, 1), torch.zeros(1, 2, 1, 1, dtype=torch.long), torch.zeros(1, 1, 2, 1, 1))
    assert mean_entropy(torch.full((2, 5, 2, 1, 1), 0.2), crops).item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("t", "ramp"), [(0, math.exp(-5)), (50, math.exp(-1.25)), (100, 1.0)])
def test_loss_of_the_direct_form(t: int, ramp: float) -> None:
    (objective,) = step(t)
    assert objective.gauges["weight"] == pytest.approx(0.1 * ramp)
    assert objective.loss.item() == pytest.approx(supervised() + 0.1 * ramp * 0.687640, abs=1e-5)


def test_the_ramp_s_share_of_the_run() -> None:
    assert step(25, ramp_share=0.5)[0].gauges["weight"] == pytest.approx(0.1 * math.exp(-1.25))
    assert step(50, ramp_share=0.5)[0].gauges["weight"] == pytest.approx(0.1)


def test_self_information_and_its_gradient_where_a_class_is_impossible() -> None:
    p = torch.tensor((0.5, 0.25, 0.25, 0.0)).reshape(1, 4, 1, 1, 1).requires_grad_()
    i = self_information(p)
    # -p log2 p = .5, .5, .5, 0, over log2 4 = 2
    torch.testing.assert_close(i.flatten(), torch.tensor((0.25, 0.25, 0.25, 0.0)))
    i.sum().backward()  # type: ignore[no-untyped-call]
    assert p.grad is not None
    assert bool(p.grad.isfinite().all())


def verdicts(p: Array) -> Array:
    """3 I_0 - 2 I_1 at each voxel."""
    background, foreground = (-q * np.log2(np.clip(q, 1e-12, 1)) for q in (1 - p, p))
    return 3 * background - 2 * foreground


def test_losses_of_the_adversarial_form() -> None:
    student, critic = step(**ADVERSARIAL)
    v_l, v_u = verdicts(np.array(LABELLED)), verdicts(np.array(UNLABELLED))
    fooling = np.log1p(np.exp(v_u)).mean()  # BCE with the label 0: labelled
    halves = (np.log1p(np.exp(v_l)).mean() + np.log1p(np.exp(-v_u)).mean()) / 2
    assert (student.player, critic.player) == ("student", "critic")
    assert student.terms["fooling"].item() == pytest.approx(fooling, abs=1e-5)
    assert student.loss.item() == pytest.approx(supervised() + 0.001 * fooling, abs=1e-5)
    assert critic.terms["halves"].item() == critic.loss.item() == pytest.approx(halves, abs=1e-5)
    assert step(0, **ADVERSARIAL)[0].loss.item() == student.loss.item()  # no ramp


def test_network_and_critic_pull_in_opposite_directions() -> None:
    method = Advent(AdventConfig(width=2, dropout=0.0, critic_width=2, form="adversarial"), 1, 2).train()
    student, critic = method.step(batch(), Clock(0, 100, "train", 0, 100))
    bias = method.get_submodule("critic.convolutions.4").bias
    (lie,) = torch.autograd.grad(student.terms["fooling"], [bias], retain_graph=True)
    (truth,) = torch.autograd.grad(critic.loss, [bias])
    # d BCE / d logit = sigmoid - answer: near 1/2 for "labelled"; of the critic's halves, +1/2 and -1/2 nearly cancel
    assert lie.item() == pytest.approx(0.5, abs=0.1)
    assert truth.item() == pytest.approx(0, abs=0.1)
    reached = torch.autograd.grad(critic.loss, list(method.student.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in reached)


def test_a_step_of_the_critic_s_optimiser() -> None:
    torch.manual_seed(0)
    method = Advent(AdventConfig(width=2, critic_width=2, form="adversarial"), 1, 2)
    trainer = Trainer(method, 10, 0, torch.device("cpu"))
    critic = trainer.method.get_submodule("critic")
    before = weights(critic)
    log = trainer.step(trainer.spans[0], loaded())
    assert log["critic/lr"] == 1e-4
    moves = [(weight - before[name]).abs().max().item() for name, weight in critic.named_parameters()]
    assert moves == pytest.approx([1e-4] * len(moves), rel=0.02)  # Adam's first step is the learning rate
    assert trainer.step(trainer.spans[0], loaded())["critic/lr"] == pytest.approx(1e-4 * 0.9**0.9)  # poly


class TestPatchCritic:
    def test_parameters(self) -> None:
        # 4^3 weights for each pair of channels, and a bias
        expected = sum(64 * a * b + b for a, b in ((2, 64), (64, 128), (128, 256), (256, 512), (512, 1)))
        assert sum(weight.numel() for weight in PatchCritic().parameters()) == expected == 11_051_969

    @pytest.mark.parametrize(
        ("size", "patches"),
        [((112, 112, 80), (3, 3, 2)), ((96, 96, 96), (3, 3, 3)), ((128, 128, 64), (4, 4, 2)), ((32, 32, 16), (1,) * 3)],
    )
    def test_patches(self, size: tuple[int, ...], patches: tuple[int, ...]) -> None:
        assert PatchCritic(1, 1)(torch.zeros(1, 1, *size)).shape == (1, 1, *patches)

    def test_a_side_of_1_meets_the_kernel_s_second_place(self) -> None:
        critic = PatchCritic(1, 1)
        critic.convolutions = critic.convolutions[:1]
        weight, bias = array(critic.convolutions[0].weight), array(critic.convolutions[0].bias)  # type: ignore[arg-type]
        assert array(critic(torch.full((1, 1, 1, 1, 1), 2.0))).item() == pytest.approx(
            2 * weight[0, 0, 1, 1, 1] + bias[0], abs=1e-6
        )


def test_part_of_the_critic_s_optimiser_leaves_it_adam() -> None:
    critic = AdventConfig.read({**ADVERSARIAL, "critic": {"schedule": {"power": 1.0}}}, "test").critic
    assert (critic.kind, critic.learning_rate, critic.beta2, critic.schedule.power) == ("adam", 1e-4, 0.99, 1.0)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"critic": {"learning_rate": 1.0}}, r"critic\.learning_rate has no effect with form=minent.*form=adversarial"),
        ({"adversarial": 1.0}, "adversarial has no effect with form=minent"),
        ({**ADVERSARIAL, "entropy": 1.0}, "entropy has no effect with form=adversarial"),
        ({**ADVERSARIAL, "critic": {"kind": "sgd", "beta2": 0.9}}, r"beta2 has no effect with critic\.kind=sgd"),
    ],
)
def test_the_other_form_s_settings_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        AdventConfig.read(values, "test").refuse_ignored(values, "test")
