"""SASSNet with a network and a critic whose answers are written down: the terms, the turns, who sees what how."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from by_hand import Array, array, batch, dice, loaded
from notes import Notes
from scipy.special import expit
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.plan import IGNORE
from sscl.engine.train import Trainer
from sscl.methods.sassnet import SASSNet, SASSNetConfig
from sscl.ops.distance_map import signed_distance

CONTRACT = Notes(
    short={"critic_width": 2},
    through=("critic",),
    values={"critic.schedule.every": 1},
    under={
        "critic.schedule.power": {"critic.schedule.kind": "poly"},
        "critic.schedule.every": {"critic.schedule.kind": "step"},
    },
)

# Four voxels, the labelled image before the unlabelled one: logits of the mask, and what tanh makes distances of
MASK = np.array([[0.0, 1.0, 0.0, -1.0], [2.0, 0.0, 0.0, -2.0]])
MAP = np.array([[-1.0, 0.0, 0.5, 2.0], [-0.5, 0.0, 0.3, 1.0]])
IMAGES = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0]])
LABEL = np.array([1, 1, 0, 0])
TARGET = np.array([-1.0, 0.0, 0.5, 1.0])  # inside 2 1 voxels deep, the second on the surface; outside 1 2 away

P, S = expit(MASK), np.tanh(MAP)
DICE = 1 - (2 * (P[0] * LABEL).sum() + 1e-5) / ((P[0] ** 2).sum() + LABEL.sum() + 1e-5)
DISTANCE = ((S[0] - TARGET) ** 2).mean()


def verdicts(s: Array) -> Array:
    """p("labelled") of a critic whose logits are the image's and the map's sums."""
    return expit(s.sum(1) - IMAGES.sum(1))


FOOLING = -math.log(verdicts(S)[1])


class Says(nn.Module):
    """Given logits, which are its parameters."""

    def __init__(self, mask: Array = MASK, maps: Array = MAP) -> None:
        super().__init__()
        self.mask, self.map = (nn.Parameter(torch.tensor(z, dtype=torch.float32)) for z in (mask, maps))
        self.seen: list[tuple[Tensor, bool]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append((images, self.training))
        return torch.stack([self.mask, self.map], 1).reshape(len(images), -1, 4, 1, 1)


class Judges(nn.Module):
    """Logits: the sum of the image, the sum of the map."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: list[tuple[Tensor, Tensor, bool]] = []

    def forward(self, maps: Tensor, images: Tensor) -> Tensor:
        self.seen.append((maps, images, self.training))
        return self.scale * torch.stack([images.flatten(1).sum(1), maps.flatten(1).sum(1)], 1)


def build(**settings: float) -> tuple[SASSNet, Says, Judges]:
    method = SASSNet(SASSNetConfig(width=1, critic_width=1, **settings), 1, 2)  # type: ignore[arg-type]
    method.student, method.critic = says, judges = Says(), Judges()  # type: ignore[assignment]
    return method.train(), says, judges


def crops(label: np.ndarray = LABEL) -> Batch:
    y = torch.from_numpy(label).reshape(1, 4, 1, 1)
    first, second = torch.tensor(IMAGES, dtype=torch.float32).reshape(2, 1, 1, 4, 1, 1)
    return Batch(first, y, second, {"signed_distance": signed_distance(y, 2)})


@pytest.mark.parametrize(("iteration", "ramp"), [(0, math.exp(-5)), (50, math.exp(-1.25)), (100, 1.0)])
def test_the_network_s_loss(iteration: int, ramp: float) -> None:
    method, *_ = build()
    objective = next(method.step(crops(), Clock(iteration, 100, "train", iteration, 100)))
    assert objective.player == "student"
    assert objective.terms["dice"].item() == pytest.approx(DICE, abs=1e-6)
    assert objective.terms["distance"].item() == pytest.approx(DISTANCE, abs=1e-6)
    assert objective.terms["fooling"].item() == pytest.approx(FOOLING, abs=1e-6)
    assert objective.loss.item() == pytest.approx(DICE + 0.3 * DISTANCE + 0.01 * ramp * FOOLING, abs=1e-6)


def test_weights_and_ramp_are_settings() -> None:
    method, *_ = build(distance=2.0, adversarial=0.5, ramp_share=0.5)
    objective = next(method.step(crops(), Clock(25, 100, "train", 25, 100)))
    expected = DICE + 2 * DISTANCE + 0.5 * math.exp(-1.25) * FOOLING
    assert objective.loss.item() == pytest.approx(expected, abs=1e-6)


def test_the_network_s_turn_then_the_critic_s() -> None:
    method, says, judges = build()
    steps = method.step(crops(), Clock(0, 100, "train", 0, 100))
    objective = next(steps)
    # the network trains, the critic has no dropout, and is shown the unlabelled image only
    assert [training for _, training in says.seen] == [True]
    ((maps, images, training),) = judges.seen
    assert not training
    np.testing.assert_allclose(array(maps).reshape(1, 4), S[1:], atol=1e-6)
    np.testing.assert_allclose(array(images).reshape(1, 4), IMAGES[1:])
    (moved,) = torch.autograd.grad(objective.terms["fooling"], [says.map])
    assert moved[1].all()
    assert not moved[0].any()

    with torch.no_grad():
        says.map.mul_(0.5)  # what an optimiser would do
    objective = next(steps)
    # now the other way round, with the new weights' own maps, of the labelled image too: no true distances
    assert objective.player == "critic"
    assert [training for _, training in says.seen] == [True, False]
    maps, images, training = judges.seen[1]
    assert training
    new = np.tanh(0.5 * MAP)
    np.testing.assert_allclose(array(maps).reshape(2, 4), new, atol=1e-6)
    np.testing.assert_allclose(array(images).reshape(2, 4), IMAGES)
    assert not maps.requires_grad
    p = verdicts(new)
    assert objective.loss.item() == pytest.approx(-(math.log(p[0]) + math.log(1 - p[1])) / 2, abs=1e-6)
    assert next(steps, None) is None
    assert all(part.training for part in method.modules())


def test_supervised_terms_leave_out_ignored_voxels() -> None:
    method, says, _ = build()
    objective = next(method.step(crops(np.array([1, 1, 0, IGNORE])), Clock(0, 100, "train", 0, 100)))
    p, y = P[0, :3], LABEL[:3]
    expected = 1 - (2 * (p * y).sum() + 1e-5) / ((p**2).sum() + y.sum() + 1e-5)
    assert objective.terms["dice"].item() == pytest.approx(expected, abs=1e-6)
    expected = ((S[0, :3] - TARGET[:3]) ** 2).mean()
    assert objective.terms["distance"].item() == pytest.approx(expected, abs=1e-6)
    for term, weight in (("dice", says.mask), ("distance", says.map)):
        (gradient,) = torch.autograd.grad(objective.terms[term], [weight])
        assert not gradient[0, 3]


def test_several_organs_in_several_crops() -> None:
    """Each organ has one Dice over both labelled crops and a map in each, all of which the critic sees at once; the
    second crop lacks organ 2."""
    method, _, judges = build()
    mask, maps = np.random.default_rng(0).normal(size=(2, 3, 2, 4))
    method.student = Says(mask, maps)  # type: ignore[assignment]
    label = np.array([[1, 1, 2, 0], [0, 1, 1, IGNORE]])
    target = np.array([[[-1, 0, 0.5, 1], [1, 0.5, 0, 0.5]], [[1, 0, 0, 1], [0, 0, 0, 0]]])
    y, images = torch.from_numpy(label).reshape(2, 4, 1, 1), torch.zeros(3, 1, 4, 1, 1)
    crops = Batch(images[:2], y, images[2:], {"signed_distance": signed_distance(y, 3)})
    of_network, of_critic = method.step(crops, Clock(0, 100, "train", 0, 100))
    p, s = expit(mask), np.tanh(maps)
    counted = np.ones((2, 2, 4), bool)
    counted[1, :, 3] = False
    assert of_network.terms["dice"].item() == pytest.approx(dice(np.insert(p[:2], 0, 0, axis=1), label), abs=1e-6)
    expected = ((s[:2] - target) ** 2)[counted].mean()
    assert of_network.terms["distance"].item() == pytest.approx(expected, abs=1e-6)
    assert [tuple(maps.shape[:2]) for maps, *_ in judges.seen] == [(1, 2), (3, 2)]
    labelled = expit(s.sum((1, 2)))
    assert of_network.terms["fooling"].item() == pytest.approx(-math.log(labelled[2]), abs=1e-6)
    expected = -np.log([labelled[0], labelled[1], 1 - labelled[2]]).mean()
    assert of_critic.loss.item() == pytest.approx(expected, abs=1e-6)


def test_the_critic_moves_by_its_own_loss_alone() -> None:
    torch.manual_seed(0)
    # 1e4: what the network's turn leaves in the critic's gradients would turn the signs
    settings = {
        "adversarial": 1e4,
        "optimiser": {"learning_rate": 1e-6},
        "critic": {"kind": "adam", "learning_rate": 0.01, "weight_decay": 0},
    }
    method = SASSNet(SASSNetConfig.model_validate({"width": 1, "critic_width": 1, "dropout": 0, **settings}), 1, 2)
    for layer in method.critic.modules():
        if isinstance(layer, nn.Dropout3d):
            layer.p = 0
    critic, x = deepcopy(method.critic), batch().images
    trainer = Trainer(method, 10, 0, torch.device("cpu"))
    trainer.step(trainer.spans[0], loaded())
    with torch.no_grad():
        maps = method.student.eval()(x)[:, 1:].tanh()
    p = critic(maps, x).softmax(1)
    loss = -(p[0, 1].log() + p[1, 1].log() + p[2, 0].log() + p[3, 0].log()) / 4
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(critic.parameters()))])
    old, new = (torch.cat([w.detach().flatten() for w in net.parameters()]) for net in (critic, method.critic))
    # Adam's first step is as long as the rate, against the gradient's sign, where that is no rounding
    sure = gradient.abs() > 1e-5
    assert sure.float().mean() > 0.5
    torch.testing.assert_close((new - old)[sure], -0.01 * gradient.sign()[sure], rtol=0, atol=1e-4)


def test_optimisers() -> None:
    chosen = SASSNet(SASSNetConfig(width=1, critic_width=1), 1, 2).optimisers()
    assert chosen["student"].kind == "sgd"
    adam = chosen["critic"]
    assert (adam.kind, adam.learning_rate, adam.momentum, adam.beta2) == ("adam", 1e-4, 0.9, 0.99)
    assert adam.weight_decay == 0
    assert {adam.schedule.factor(Clock(t, 100, "train", t, 100)) for t in (0, 50, 99)} == {1.0}


def test_predict_is_the_mask_head() -> None:
    method, *_ = build()
    p = method.predict(torch.zeros(2, 1, 4, 1, 1)).detach()
    np.testing.assert_allclose(p[:, 1, :, 0, 0], P, atol=1e-6)


def test_sizes_of_the_networks() -> None:
    method = SASSNet(SASSNetConfig(), 1, 2)
    sizes = {name: sum(w.numel() for w in player.parameters()) for name, player in method.players().items()}
    assert sizes == {"student": 9_448_866, "critic": 11_020_290}
    several = SASSNet(SASSNetConfig(width=1, critic_width=1), 2, 4)
    assert several.student.decoder.head.out_channels == 6
    assert (several.critic.of_map.in_channels, several.critic.of_image.in_channels) == (3, 2)
