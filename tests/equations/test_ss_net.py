"""SS-Net: the divergence, the adversarial direction and the pull to the prototypes, worked out again."""

import math
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import Array, array, batch, softmax
from notes import Notes
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.plan import IGNORE
from sscl.methods.ss_net import SSNet, SSNetConfig, divergence
from sscl.nets.voxel_heads import VoxelHeads

# The pull of the unlabelled half is to prototypes of the labelled one; ignored voxels are left out of L_vat.
CONTRACT = Notes(mixed=("contrast_unlabelled",))


class Slope(nn.Module):
    """p(organ) = sigmoid(w x) at each voxel; the embedding is x."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach())
        return torch.cat([torch.zeros_like(images), self.w * images], 1)

    def embedded(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self(images), images


def step(method: SSNet, crops: Batch, iteration: int = 0) -> Any:
    torch.manual_seed(3)
    (objective,) = method.step(crops, Clock(iteration, 100, "train", iteration, 100))
    return objective


def build(classes: int = 2, **settings: Any) -> SSNet:
    torch.manual_seed(0)
    return SSNet(SSNetConfig(width=2, dropout=0.0, **settings), 1, classes).train()


def bd(a: Array, b: Array) -> float:
    return float(1 - (2 * (a * b).sum() + 1e-8) / (a.sum() + b.sum() + 1e-8))


def voxels(*values: float) -> Tensor:
    return torch.tensor(values).reshape(1, 1, -1, 1, 1)


# ---------------------------------------------------------------- L_seg and L_vat


def test_divergence() -> None:
    a, b = torch.tensor([1.0, 0.5]), torch.tensor([1.0, 0.0])
    assert divergence(a, b).item() == pytest.approx(1 - 2 * 1 / (1.5 + 1))
    assert divergence(b, b).item() == pytest.approx(0)
    assert divergence(0 * a, 0 * b).item() == 0
    half = torch.tensor([0.5, 0.5])
    assert divergence(half, half).item() == pytest.approx(0.5)  # unsure predictions disagree with themselves


def test_seg_is_the_organs_mean_without_ignored_voxels() -> None:
    method = build(classes=3)
    crops = batch(classes=3)
    crops.label[:, 8:12] = 1
    crops.label[:, :8] = IGNORE
    p = softmax(array(deepcopy(method).student(crops.images)))[:2].transpose(0, 2, 3, 4, 1)[:, 8:]
    y = crops.label.numpy()[:, 8:]
    expected = (bd(p[..., 1], y == 1) + bd(p[..., 2], y == 2)) / 2
    assert step(method, crops).terms["seg"].item() == pytest.approx(expected, rel=1e-5)


def vat_by_hand(x: Array, d: Array, w: float, counted: Array, xi: float, magnitude: float) -> float:
    """For p = sigmoid(w x): channels sum to 1, so BD = 1 - sum over channels of p p_0 / N, and its slope is closed."""

    def p(x: Array) -> Array:
        return 1 / (1 + np.exp(-w * x))

    def unit(x: Array) -> Array:
        return x / np.sqrt((x**2).sum((1, 2, 3, 4), keepdims=True))

    def both(q: Array) -> Array:
        return np.stack([1 - q, q]) * counted

    p_0, p_d = p(x), p(x + xi * unit(d))
    g = -(2 * p_0 - 1) / counted.sum() * xi * w * p_d * (1 - p_d) * counted
    return bd(both(p(x + magnitude * unit(g))), both(p_0))


@pytest.mark.parametrize(("settings", "xi", "magnitude"), [({}, 10.0, 10.0), ({"xi": 2.0, "magnitude": 3.0}, 2.0, 3.0)])
def test_vat_follows_the_gradient_of_its_divergence(settings: dict[str, float], xi: float, magnitude: float) -> None:
    method = build(**settings)
    method.student = Slope(0.7)  # type: ignore[assignment]
    method.heads = VoxelHeads(1, 1)
    labelled, unlabelled = voxels(0.5, -1.0, 2.0, 0.1), voxels(-0.3, 1.2, 0.4, -2.0)
    crops = Batch(labelled, torch.tensor([1, 0, IGNORE, 0]).reshape(1, 4, 1, 1), unlabelled)
    objective = step(method, crops)
    torch.manual_seed(3)
    d = array(torch.rand(2, 1, 4, 1, 1)) - 0.5
    counted = np.ones((2, 1, 4, 1, 1))
    counted[0, 0, 2] = 0  # what the label ignores
    expected = vat_by_hand(array(crops.images), d, 0.7, counted, xi, magnitude)
    assert objective.terms["vat"].item() == pytest.approx(expected, rel=1e-4)
    lengths = [(x - crops.images).flatten(1).norm(dim=1) for x in method.student.seen]
    torch.testing.assert_close(torch.stack(lengths), torch.tensor([0.0, 0.0, xi, magnitude])[:, None].expand(4, 2))


def test_vat_leaves_no_gradient_and_no_statistics_behind() -> None:
    method, crops = build(), batch()
    expected = deepcopy(method.student)
    with torch.no_grad():
        expected(crops.images)
        expected(crops.images)  # the two passes of undisturbed images
    step(method, crops)
    assert all(weight.grad is None for weight in method.parameters())
    for mine, theirs in zip(method.student.buffers(), expected.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert all(norm.track_running_stats for norm in method.modules() if isinstance(norm, nn.BatchNorm3d))


def test_disturbed_passes_use_the_statistics_of_their_batch() -> None:
    method, crops = build(), batch()
    before = step(deepcopy(method), crops).terms["vat"]
    for name, buffer in method.student.named_buffers():
        if name.endswith("running_mean"):
            buffer.fill_(5.0)
    assert torch.equal(step(method, crops).terms["vat"], before)


# ---------------------------------------------------------------- prototypes


def remembered(rank: str, memory: int = 2) -> list[list[float]]:
    """Prototypes when embeddings are (u, v), projected to themselves and scored by u."""
    method = build(classes=3, memory=memory, memory_rank=rank)
    method.heads.project = nn.Identity()  # type: ignore[assignment]
    method.heads.select = nn.ModuleList([_First(), _First()])
    u, v = torch.tensor([3.0, 1.0, 4.0, 2.0, 9.0, 8.0]), torch.ones(6)
    features = torch.stack([u, v]).reshape(1, 2, 6, 1, 1)
    correct = torch.tensor([1, 1, 1, 1, 0, IGNORE]).reshape(1, 6, 1, 1)
    prototypes = method._remember(features, correct)
    assert [len(m) for m in prototypes] == [2, 0]  # two organs, of which one has no voxel; none for the background
    torch.testing.assert_close(prototypes[0].norm(dim=1), torch.ones(2))
    return sorted((prototypes[0] / prototypes[0][:, 1:]).tolist())


class _First(nn.Module):
    def forward(self, rows: Tensor) -> Tensor:
        return rows[:, :1]


def test_the_paper_s_highest_scores_are_remembered_and_the_code_s_lowest_only_on_request() -> None:
    assert (SSNetConfig().memory_rank, SSNetConfig().memory) == ("highest", 32)
    assert remembered("highest") == [pytest.approx([3, 1]), pytest.approx([4, 1])]
    assert remembered("lowest") == [pytest.approx([1, 1]), pytest.approx([2, 1])]


def test_only_voxels_that_are_labelled_right_are_remembered() -> None:
    method = build()
    method.student = Slope(1.0)  # type: ignore[assignment]
    method.heads = VoxelHeads(1, 1)
    given: list[Tensor] = []
    method.heads.select[0].register_forward_pre_hook(lambda _, rows: given.append(rows[0]))
    # right, wrong (background), right, wrong (organ), ignored, right (background)
    label = torch.tensor([1, 1, 1, 0, IGNORE, 0]).reshape(1, 6, 1, 1)
    image = voxels(2.0, -1.0, 3.0, 1.0, 4.0, -2.0)
    project = deepcopy(method.heads.project).eval()  # statistics as they were stored
    step(method, Batch(image, label, image))
    torch.testing.assert_close(given[0], project(torch.tensor([[2.0], [3.0]])))
    assert method.heads.training


# ---------------------------------------------------------------- L_cl


def mlp(head: nn.Sequential, rows: Array) -> Array:
    """Linear, batch norm with the statistics of the rows, (leaky) ReLU, linear."""
    first, norm, activation, last = head
    h = rows @ array(first.weight).T + array(first.bias)
    h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) * array(norm.weight) + array(norm.bias)
    h = np.where(h > 0, h, getattr(activation, "negative_slope", 0.0) * h)
    return h @ array(last.weight).T + array(last.bias)


def pull_by_hand(heads: VoxelHeads, features: Array, label: Array, prototypes: list[Array]) -> float:
    """Every pair on its own, as in the code: a sum over organs by two classes, here for one organ."""
    rows = features.transpose(0, 2, 3, 4, 1).reshape(-1, features.shape[1])
    q = mlp(heads.predict, mlp(heads.project, rows))
    losses = []
    for organ, m in enumerate(prototypes, start=1):
        mine = q[label.reshape(-1) == organ]
        a = 1 / (1 + np.exp(-mlp(heads.select[organ - 1], mine)))[:, 0]
        b = 1 / (1 + np.exp(-mlp(heads.select_prototypes[organ - 1], m)))[:, 0]
        a, b = len(a) / a.sum() * a, len(b) / b.sum() * b
        pairs = [
            a[i] * b[j] * (1 - mine[i] @ m[j] / np.linalg.norm(mine[i]) / np.linalg.norm(m[j]))
            for i in range(len(mine))
            for j in range(len(m))
        ]
        losses.append(np.mean(pairs))
    return float(np.mean(losses) / 2)


@pytest.mark.parametrize("organs", [1, 2])
def test_pull(organs: int) -> None:
    method = build(classes=organs + 1)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(1, 2, 10, 2, 1, generator=generator)
    label = torch.randint(IGNORE, organs + 1, (1, 10, 2, 1), generator=generator)
    prototypes = [nn.functional.normalize(torch.randn(3, 32, generator=generator)) for _ in range(organs)]
    expected = pull_by_hand(method.heads, array(features), label.numpy(), [array(m) for m in prototypes])
    assert method._pull(features, label, prototypes).item() == pytest.approx(expected, rel=1e-5)


def test_an_organ_without_voxels_or_prototypes_takes_no_part() -> None:
    method = build(classes=3)
    features, label = torch.randn(1, 2, 6, 1, 1), torch.tensor([1, 1, 1, 0, 0, 2]).reshape(1, 6, 1, 1)
    first, second, none = (nn.functional.normalize(torch.randn(n, 32)) for n in (3, 3, 0))
    alone = method._pull(features, label, [first])
    assert alone.item() > 0
    assert torch.equal(method._pull(features, label, [first, second]), alone)  # one voxel of the second: no batch norm
    assert torch.equal(method._pull(features, label, [first, none]), alone)
    assert method._pull(features, label, [none, none]).item() == 0


def test_selectors_weigh_and_do_not_shape_the_embedding() -> None:
    """q reaches a selector detached: the pull moves q by the cosine alone."""
    method = build()
    method.heads.predict = nn.Identity()  # type: ignore[assignment]
    method.heads.project = nn.Identity()  # type: ignore[assignment]
    q = torch.randn(1, 32, 5, 1, 1, requires_grad=True)
    m = nn.functional.normalize(torch.randn(3, 32))
    method._pull(q, torch.ones(1, 5, 1, 1, dtype=torch.long), [m]).backward()
    rows = array(q)[0, :, :, 0, 0].T
    a, b = (
        1 / (1 + np.exp(-mlp(head[0], given)))[:, 0]
        for head, given in ((method.heads.select, rows), (method.heads.select_prototypes, array(m)))
    )
    pulled = (b / b.mean()) @ array(m) / 3
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    slope = -(pulled - rows * (rows @ pulled)[:, None] / length**2) / length * (a / a.mean())[:, None] / 5 / 2
    np.testing.assert_allclose(array(q.grad)[0, :, :, 0, 0].T, slope, atol=1e-6)  # type: ignore[arg-type]
    assert all(weight.grad is not None for weight in method.heads.select[0].parameters())


# ---------------------------------------------------------------- the total


@pytest.mark.parametrize(("iteration", "ramp"), [(0, math.exp(-5)), (20, math.exp(-1.25)), (40, 1.0), (99, 1.0)])
def test_loss(iteration: int, ramp: float) -> None:
    objective = step(build(), batch(), iteration)
    seg, vat, labelled, unlabelled = (objective.terms[name].item() for name in objective.terms)
    assert list(objective.terms) == ["seg", "vat", "contrast_labelled", "contrast_unlabelled"]
    assert min(seg, vat, labelled, unlabelled) > 0
    assert objective.gauges["weight"] == pytest.approx(ramp)
    assert objective.loss.item() == pytest.approx(seg + ramp * (vat + 0.1 * (labelled + unlabelled)), rel=1e-5)


def test_pseudo_labels_choose_the_unlabelled_voxels() -> None:
    method, crops = build(), batch()
    seen: list[tuple[Tensor, Tensor]] = []
    pull = method._pull
    method._pull = lambda features, label, m: seen.append((features, label)) or pull(features, label, m)  # type: ignore
    z, x9 = deepcopy(method.student).embedded(crops.images)
    step(method, crops)
    (first, label), (second, pseudo) = seen
    assert torch.equal(label, crops.label)
    assert torch.equal(pseudo, z[2:].argmax(1))
    torch.testing.assert_close(torch.cat([first, second]), x9)


def test_every_weight_learns_in_bf16_too() -> None:
    """Autocast may keep weights that it has cast under no_grad, and they would get no gradient.

    `grad` raises where there is none. Finite they need not be: oneDNN's bf16 convolutions give NaN for the smallest
    features now and then.
    """
    method, crops = build(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        objective = step(method, crops)
    weights = list(method.parameters())
    assert all(slope.ne(0).any() for slope in torch.autograd.grad(objective.loss, weights))


def test_parameters() -> None:
    assert sum(weight.numel() for weight in VoxelHeads(16, 1).parameters()) == 6146
