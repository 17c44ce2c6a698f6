"""The critic of SASSNet and DAN, and the two sides of its game."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sscl.nets.discriminator import PairCritic, evaluating
from sscl.ops.adversarial import critic_loss, fooling_loss


def pair(*size: int, maps: int = 1, images: int = 1, rows: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, maps, *size, generator=generator), torch.randn(rows, images, *size, generator=generator)


class TestPairCritic:
    def test_parameters(self) -> None:
        def size(critic: nn.Module) -> int:
            return sum(weight.numel() for weight in critic.parameters())

        first, rest = 64 * 64 + 64, sum(64 * n * 2 * n + 2 * n for n in (64, 128, 256))  # 4x4x4 kernels and biases
        assert size(PairCritic()) == 2 * first + rest + 512 * 2 + 2 == 11_020_290  # SASSNet
        assert size(PairCritic(map_channels=2)) == 11_020_290 + 64 * 64  # DAN: two probabilities

    @pytest.mark.parametrize("size", [(16, 16, 16), (32, 32, 16), (48, 16, 32)])
    def test_any_size_and_channels(self, size: tuple[int, ...]) -> None:
        maps, images = pair(*size, maps=3, images=2)
        assert PairCritic(3, 2, width=2)(maps, images).shape == (2, 2)

    @pytest.mark.parametrize(("size", "pool"), [((112, 112, 80), (7, 7, 5)), ((96, 96, 96), (6, 6, 6))])
    def test_the_mean_over_space_is_the_pool_of_the_originals(
        self, size: tuple[int, ...], pool: tuple[int, int, int]
    ) -> None:
        critic = PairCritic(width=1).eval()
        maps, images = pair(*size, rows=1)
        features = critic.rest(critic.of_map(maps) + critic.of_image(images))
        assert features.shape[2:] == pool
        pooled = functional.avg_pool3d(features, pool).flatten(1)
        torch.testing.assert_close(critic(maps, images), critic.verdict(pooled))

    def test_both_inputs_count_and_rows_do_not_meet(self) -> None:
        critic = PairCritic(width=2).eval()
        maps, images = pair(16, 16, 16)
        verdict = critic(maps, images)
        assert not torch.equal(verdict, critic(maps + 1, images))
        assert not torch.equal(verdict, critic(maps, images + 1))
        torch.testing.assert_close(verdict[1:], critic(maps[1:], images[1:]))

    def test_whole_channels_are_dropped_in_training(self) -> None:
        critic = PairCritic(width=4).train()
        maps, images = pair(16, 16, 16)
        assert not torch.equal(critic(maps, images), critic(maps, images))
        assert [layer.p for layer in critic.modules() if isinstance(layer, nn.Dropout3d)] == [0.5] * 3


def test_evaluating_leaves_every_part_as_it_was() -> None:
    network = nn.Sequential(nn.Dropout3d(), nn.BatchNorm3d(1), nn.ReLU()).train()
    network[1].eval()
    with evaluating(network):
        assert not any(part.training for part in network.modules())
    assert [part.training for part in network.modules()] == [True, True, False, True]
    with pytest.raises(RuntimeError), evaluating(network):
        raise RuntimeError
    assert network.training


# one row of logits of (unlabelled, labelled): p(labelled) is 1 / (1 + e^-d) of their difference d
def row(difference: float) -> Tensor:
    return torch.tensor([[0.0, difference]])


def test_the_critic_is_to_tell_the_halves_apart() -> None:
    told = critic_loss(torch.cat([row(1.0), row(2.0)]), row(3.0))
    expected = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-2)) + math.log(1 + math.exp(3))) / 3
    assert told.item() == pytest.approx(expected)


def test_the_network_is_to_make_unlabelled_rows_look_labelled() -> None:
    assert fooling_loss(torch.cat([row(1.0), row(-2.0)])).item() == pytest.approx(
        (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2))) / 2
    )
    assert fooling_loss(torch.zeros(0, 2)).item() == 0
