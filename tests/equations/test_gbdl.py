"""GBDL: the slices' Gaussians as dense matrices, both phases with networks whose answers are written down."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from by_hand import Array, array, cross_entropy, softmax
from notes import Notes
from torch import Tensor, nn

from sscl.core.batch import Batch, Clock
from sscl.core.method import Objective
from sscl.methods.gbdl import GBDL, GBDLConfig
from sscl.nets.bayesian import BayesianUNet, LatentModel, SliceGaussians

SMALL = {"width": 1, "latent_filters": 1}
CONTRACT = Notes(
    variants=({"kl": "slices", **SMALL},),
    short={"draws": 1, "passes": 2, **SMALL},
    values={"threshold": 0.7},  # early on the foreground of three classes has two thirds, everywhere
)

SIZE = (4, 1, 2)
"""Crops of the stubs below: eight voxels in two slices."""
MEAN = torch.tensor([[1.0, -2.0, 0.5], [0.3, 0.1, -4.0], [2.0, 2.0, 1.0], [0.0, 0.7, -0.2]])
V = torch.tensor([[0.5, 1.0, -1.0], [0.0, 0.0, 0.0], [3.0, -0.2, 1.0], [-1.0, 2.0, 0.4]])


class TestSliceGaussians:
    """Four slices, three latent dimensions."""

    q = SliceGaussians(torch.stack([MEAN, 2 * MEAN]), torch.stack([V, V.flip(0)]), 2.0)

    def dense(self, row: int) -> tuple[Array, Array]:
        """Means, and the covariances (v v' + 2 I)^2, of one volume."""
        roots = [np.outer(v, v) + 2 * np.eye(3) for v in array(self.q.v[row])]
        return array(self.q.mean[row]), np.stack([root @ root for root in roots])

    @staticmethod
    def kl(mean: Array, covariance: Array) -> float:
        """KL(N(mean, covariance) || N(0, I))."""
        return float(0.5 * (np.trace(covariance) + mean @ mean - len(mean) - np.linalg.slogdet(covariance)[1]))

    def test_slices(self) -> None:
        expected = [sum(map(self.kl, *self.dense(row))) for row in range(2)]
        assert self.q.kl_of_slices().tolist() == pytest.approx(expected, rel=1e-5)

    def test_product(self) -> None:
        for row, value in enumerate(self.q.kl_of_product().tolist()):
            means, covariances = self.dense(row)
            precisions = np.linalg.inv(covariances)
            covariance = np.linalg.inv(precisions.sum(0))
            mean = covariance @ np.einsum("zij,zj->i", precisions, means)
            assert value == pytest.approx(self.kl(mean, covariance), rel=1e-5)

    def test_a_hundred_slices_of_variance_a_hundred_are_a_standard_normal(self) -> None:
        q = SliceGaussians(torch.full((1, 100, 2), 3.0), torch.zeros(1, 100, 2), 10.0)
        assert q.kl_of_product().item() == pytest.approx(0.5 * 2 * 3**2, rel=1e-4)
        assert q.kl_of_slices().item() == pytest.approx(100 * 2 * 0.5 * (100 + 9 - 1 - math.log(100)), rel=1e-5)

    def test_a_draw_is_the_mean_and_the_root_of_the_covariance_times_noise(self) -> None:
        torch.manual_seed(3)
        eps = array(torch.randn_like(self.q.mean))
        torch.manual_seed(3)
        z = array(self.q.draw())
        for row in range(2):
            for index, (mean, v) in enumerate(zip(array(self.q.mean[row]), array(self.q.v[row]), strict=True)):
                expected = mean + (np.outer(v, v) + 2 * np.eye(3)) @ eps[row, index]
                np.testing.assert_allclose(z[row, index], expected, rtol=1e-5)

    def test_long_parallel_directions_stay_finite(self) -> None:
        v = torch.full((1, 4, 16), 1e3, requires_grad=True)
        kl = SliceGaussians(torch.zeros(1, 4, 16), v, 10.0).kl_of_product()
        kl.sum().backward()
        assert kl.isfinite().all()
        assert v.grad is not None
        assert v.grad.isfinite().all()


# ---------------------------------------------------------------- the two phases


class Latent(nn.Module):
    """A latent model with written answers: the latents' mean and v, an image, and logits for one draw after another."""

    def __init__(self, q: SliceGaussians, x_hat: Tensor, logits: Sequence[Tensor]) -> None:
        super().__init__()
        self.q, self.x_hat, self.logits, self.latents = q, x_hat, list(logits), []
        self.seen: list[Tensor] = []
        """Images that latents, then those that segmentations were asked of."""

    def infer(self, images: Tensor) -> SliceGaussians:
        self.seen.append(images)
        return self.q

    def reconstruct(self, latents: Tensor, size: torch.Size) -> Tensor:
        return self.x_hat

    def features(self, images: Tensor) -> list[Tensor]:
        self.seen.append(images)
        return [images]

    def segment(self, features: list[Tensor], latents: Tensor) -> Tensor:
        self.latents.append(latents)
        return self.logits[len(self.latents) - 1]


class Says(nn.Module):
    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, *SIZE, generator=torch.Generator().manual_seed(seed))


IMAGES = noise(3, 1, seed=0)
"""Two labelled crops, an unlabelled one."""
LABEL = torch.tensor([[0, 1, 2, 1, -1, 2, 0, 0], [1, 1, 0, -1, 0, 1, 1, 1]]).reshape(2, *SIZE)
GAUSSIANS = SliceGaussians(MEAN[:2].expand(3, 2, 3), V[:2].expand(3, 2, 3), 10.0)


def step(phase: str, latent: Latent, student: Tensor, **settings: object) -> Objective:
    method = GBDL(GBDLConfig.read({**SMALL, **settings}, "test"), 1, 3)
    method.latent, method.student = latent, Says(student)  # type: ignore[assignment]
    (objective,) = method.step(Batch(IMAGES[:2], LABEL, IMAGES[2:]), Clock(0, 10, phase, 0, 5))
    return objective


def dice(p: Array, y: Array, counted: Array) -> float:
    """Of organs 1 and 2 in each crop, then the mean; y "b classes x y z"."""
    losses = []
    for p_i, y_i, where in zip(p, y, counted, strict=True):
        for c in (1, 2):
            pc, yc = p_i[c][where], y_i[c][where]
            losses.append(1 - (2 * (pc * yc).sum() + 1e-5) / ((pc**2).sum() + (yc**2).sum() + 1e-5))
    return float(np.mean(losses))


def one_hot(label: Array) -> Array:
    return np.stack([label == c for c in range(3)], 1).astype(float)


def supervised(logits: Tensor) -> tuple[float, float]:
    p, y = softmax(array(logits)), LABEL.numpy()
    return cross_entropy(p, y), dice(p, one_hot(y), y >= 0)


@pytest.mark.parametrize("kl", ["product", "slices"])
def test_loss_of_the_latent_model(kl: str) -> None:
    x_hat, logits = noise(3, 1, seed=1), noise(2, 3, seed=2)
    latent = Latent(GAUSSIANS, x_hat, [logits])
    objective = step("latent", latent, noise(3, 3, seed=3), kl=kl)
    ce, overlap = supervised(logits)
    rec = ((array(x_hat) - array(IMAGES)) ** 2).mean()
    divergence = (GAUSSIANS.kl_of_product() if kl == "product" else GAUSSIANS.kl_of_slices()).mean().item()
    expected = {"ce": ce, "dice": overlap, "rec": rec, "kl": divergence}
    assert {name: term.item() for name, term in objective.terms.items()} == pytest.approx(expected, rel=1e-5)
    assert objective.loss.item() == pytest.approx(ce + 2 * overlap + rec + 0.005 * divergence, rel=1e-5)
    assert objective.player == "latent"
    assert [len(z) for z in latent.latents] == [2]  # the mask is drawn for labelled crops only
    assert list(map(torch.equal, latent.seen, (IMAGES, IMAGES[:2]))) == [True, True]


def test_reconstruction_counts_every_channel() -> None:
    method = GBDL(GBDLConfig.read(SMALL, "test"), 2, 3)
    method.latent = Latent(GAUSSIANS, torch.zeros(3, 2, *SIZE), [noise(2, 3, seed=2)])  # type: ignore[assignment]
    images = torch.ones(3, 2, *SIZE)
    (objective,) = method.step(Batch(images[:2], LABEL, images[2:]), Clock(0, 10, "latent", 0, 5))
    assert objective.terms["rec"].item() == 2


def test_loss_of_the_segmentation_network() -> None:
    towards_background = torch.tensor([1.0, 0, 0]).reshape(3, 1, 1, 1)
    draws, logits = [noise(1, 3, seed=seed) + towards_background for seed in (4, 5, 6)], noise(3, 3, seed=7)
    latent = Latent(SliceGaussians(MEAN[None, :2], V[None, :2], 10.0), IMAGES, draws)
    objective = step("segment", latent, logits, draws=3)
    p_u = np.mean([softmax(array(z)) for z in draws], 0)
    hard = np.where(1 - p_u[:, 0] > 0.5, 1 + p_u[:, 1:].argmax(1), 0)
    assert 0 < (hard > 0).mean() < 1
    z_l, p = logits[:2], softmax(array(logits[2:]))
    ce, overlap = supervised(z_l)
    pseudo_ce, pseudo_overlap = cross_entropy(p, hard), dice(p, p_u, hard >= 0)
    expected = {"ce": ce, "dice": overlap, "pseudo_ce": pseudo_ce, "pseudo_dice": pseudo_overlap}
    assert {name: term.item() for name, term in objective.terms.items()} == pytest.approx(expected, rel=1e-5)
    # sums over the crops, by all three of them
    total = 2 / 3 * (ce + 2 * overlap) + 1 / 3 * (pseudo_ce + 2 * pseudo_overlap)
    assert objective.loss.item() == pytest.approx(total, rel=1e-5)
    assert objective.player == "student"
    assert len({float(z.sum()) for z in latent.latents}) == 3  # another latent for every draw
    assert list(map(torch.equal, latent.seen, (IMAGES[2:], IMAGES[2:]))) == [True, True]  # for those it labels


def test_literature() -> None:
    settings = GBDL.literature.settings
    nested = {name: value for name, value in settings.items() if "." not in name}
    optimiser = {name.removeprefix("optimiser."): value for name, value in settings.items() if "." in name}
    optimiser["schedule"] = {"kind": optimiser.pop("schedule.kind")}
    method = GBDL(GBDLConfig.read({**SMALL, **nested, "optimiser": optimiser}, "test"), 1, 2)
    own = method.optimisers()
    assert {(o.kind, o.schedule.kind) for o in own.values()} == {("adam", "cosine")}
    assert (own["latent"].learning_rate, own["latent"].weight_decay) == (1e-4, 1e-4)
    assert (own["student"].learning_rate, own["student"].weight_decay) == (5e-4, 1e-5)


# ---------------------------------------------------------------- the networks


def test_widths_are_the_code_s() -> None:
    with torch.device("meta"):
        latent, student = LatentModel(1, 2, 16), BayesianUNet(1, 2, 16)
    filters = lambda encoder: [stage[-3].out_channels for stage in encoder.stages]  # noqa: E731
    assert filters(latent.image_encoder) == filters(latent.mask_encoder) == [64, 128, 256, 512, 512]
    assert filters(student.encoder) == [32, 64, 96, 192, 384]
    assert latent.from_latent.in_features == 256
    assert latent.to_latent.out_features == 2 * 256


@torch.no_grad()
def test_every_slice_has_its_latent_and_keeps_its_place() -> None:
    model, images = LatentModel(2, 3, 1, 1), torch.randn(2, 2, 48, 32, 6)
    q = model.infer(images)
    assert q.mean.shape == q.v.shape == (2, 6, 16)
    features = model.features(images)
    assert [tuple(x.shape[2:]) for x in features] == [(48 // n, 32 // n, 6) for n in (1, 2, 4, 8, 16)]
    assert model.segment(features, q.mean).shape == (2, 3, 48, 32, 6)
    x_hat = model.reconstruct(q.mean, images.shape[2:])
    assert x_hat.shape == images.shape
    assert x_hat.abs().max() <= 1


@torch.no_grad()
def test_without_dropout_the_mean_is_one_pass() -> None:
    network, images = BayesianUNet(1, 3, 1, dropout=0.0), torch.randn(1, 1, 32, 32, 3)
    torch.testing.assert_close(network.mean(images, 3), network(images).softmax(1))


@torch.no_grad()
def test_dropout_takes_whole_channels_and_at_test_the_same_ones_of_every_image() -> None:
    torch.manual_seed(0)
    network, images = BayesianUNet(1, 3, 4, dropout=0.6), torch.randn(4, 1, 32, 32, 3)
    made: list[Tensor] = []
    given: list[Tensor] = []
    network.decoder.stages[-1].register_forward_hook(lambda _, __, x: made.append(x))
    network.head.register_forward_pre_hook(lambda _, x: given.append(x[0]))
    network(images)
    mean = network.mean(images, 2)
    gone = [x.flatten(2).eq(0).all(2) for x in given]
    for before, after, channels in zip(made, given, gone, strict=True):
        assert 0 < channels.float().mean() < 1
        torch.testing.assert_close(after, before / 0.4 * ~channels[:, :, None, None, None])
    assert not torch.equal(gone[0][0], gone[0][1])  # in training another network for each image
    assert all(torch.equal(channels[0], channels[row]) for channels in gone[1:] for row in range(4))
    expected = np.mean([softmax(array(network.head(x))) for x in given[1:3]], 0)
    np.testing.assert_allclose(array(mean), expected, atol=1e-6)


@torch.no_grad()
def test_ten_passes_at_test_and_five_draws_for_a_pseudo_label() -> None:
    method, images = GBDL(GBDLConfig.read(SMALL, "test"), 1, 2).eval(), torch.randn(1, 1, 32, 32, 3)
    assert torch.equal(method.predict(images), method.student.mean(images, 10))
    assert not torch.equal(method.predict(images), method.student.mean(images, 9))
    assert method.config.draws == 5


@torch.no_grad()
def test_the_test_phase_is_stochastic_in_itself_and_draws_nothing_from_the_generator_of_training() -> None:
    network, images = BayesianUNet(1, 3, 1, dropout=0.5).eval(), torch.randn(1, 1, 32, 32, 3)
    assert not torch.equal(network(images), network(images))  # dropout in evaluation mode
    before = torch.get_rng_state()
    first, second = network.mean(images, 1), network.mean(images, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first, second)
    assert torch.equal(network.mean(images, 2), second)
