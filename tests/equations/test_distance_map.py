"""Signed distances on rows and cubes small enough to count, and the way from organs back to classes."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sscl.core.plan import IGNORE
from sscl.ops.distance_map import distance_loss, distribution, signed_distance, two_tasks


def row(*classes: int) -> Tensor:
    """One crop of n x 1 x 1 voxels."""
    return torch.tensor(classes).reshape(1, -1, 1, 1)


def along(maps: Tensor, organ: int = 0) -> list[float]:
    return [round(value, 6) for value in maps[0, organ].flatten().tolist()]


class TestSignedDistance:
    def test_negative_inside_zero_at_the_edge_positive_outside(self) -> None:
        # inside: 0 0 0 1 2 3 2 1 0, in thirds; outside: 3 2 1 0 0 0 0 0 1, in thirds; 0 on both end voxels of the organ
        expected = [1, 2 / 3, 1 / 3, 0, -2 / 3, -1, -2 / 3, 0, 1 / 3]
        assert along(signed_distance(row(0, 0, 0, 1, 1, 1, 1, 1, 0), 2)) == pytest.approx(expected, abs=1e-6)

    def test_each_organ_has_its_own_map(self) -> None:
        maps = signed_distance(row(0, 0, 1, 1, 1, 2), 3)
        assert maps.shape == (1, 2, 6, 1, 1)
        assert maps.dtype == torch.float32
        assert along(maps, 0) == [1, 0.5, 0, -1, 0, 0.5]
        assert along(maps, 1) == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0])

    def test_each_crop_is_scaled_by_itself(self) -> None:
        first, second = row(1, 1, 0, 0), row(0, 0, 1, 0)
        maps = signed_distance(torch.cat([first, second]), 2)
        assert torch.equal(maps[:1], signed_distance(first, 2))
        assert torch.equal(maps[1:], signed_distance(second, 2))

    def test_the_crop_s_edge_is_no_edge_of_the_organ(self) -> None:
        # the organ goes on beyond the left end: its first voxel is its deepest; only the third is on its surface
        assert along(signed_distance(row(1, 1, 1, 0, 0), 2)) == pytest.approx([-1, -2 / 3, 0, 0.5, 1], abs=1e-6)

    def test_distances_are_straight_lines(self) -> None:
        label = torch.zeros(1, 4, 5, 1, dtype=torch.long)
        label[0, 0, 0, 0] = 1
        maps = signed_distance(label, 2)
        assert maps[0, 0, 3, 4, 0] == 1  # 5 away
        assert maps[0, 0, 1, 1, 0].item() == pytest.approx(2**0.5 / 5)

    def test_an_absent_organ_gives_zeros(self) -> None:
        maps = signed_distance(row(0, 1, 0), 3)
        assert along(maps, 0) == [1, 0, 1]
        assert along(maps, 1) == [0, 0, 0]
        assert not signed_distance(torch.zeros(2, 4, 4, 4, dtype=torch.long), 2).any()

    def test_an_organ_that_fills_the_crop_is_measured_to_the_crop_s_edge(self) -> None:
        # the code that this target is from divides 0 by 0 here
        maps = signed_distance(torch.ones(1, 3, 3, 3, dtype=torch.long), 2)[0, 0]
        expected = torch.full((3, 3, 3), -0.5)
        expected[1, 1, 1] = -1  # 2 from the outside, all others 1
        assert torch.equal(maps, expected)

    def test_ignored_voxels_count_as_outside(self) -> None:
        assert torch.equal(signed_distance(row(IGNORE, 1, 1, 0), 2), signed_distance(row(0, 1, 1, 0), 2))
        assert along(signed_distance(row(IGNORE, IGNORE, IGNORE), 2)) == [0, 0, 0]

    def test_against_every_pair_of_voxels(self) -> None:
        organ = np.random.default_rng(0).random((5, 6, 4)) < 0.6
        voxels = np.argwhere(np.ones_like(organ))
        apart = np.linalg.norm(voxels[:, None] - voxels[None], axis=2)
        within, outside = (
            np.where(side.ravel(), apart[:, ~side.ravel()].min(1), 0.0).reshape(organ.shape) for side in (organ, ~organ)
        )
        expected = outside / outside.max() - within / within.max()
        touches = (apart[:, ~organ.ravel()] == 1).any(1).reshape(organ.shape)
        expected[organ & touches] = 0
        found = signed_distance(torch.from_numpy(organ).long()[None], 2)
        np.testing.assert_allclose(found[0, 0], expected, atol=1e-6)


def test_distance_loss_leaves_ignored_voxels_out_of_every_organ() -> None:
    label = row(IGNORE, 0, 1)
    target = torch.zeros(1, 2, 3, 1, 1)
    maps = torch.tensor([[9.0, 1.0, 2.0], [9.0, 0.0, 1.0]]).reshape(1, 2, 3, 1, 1).requires_grad_()
    loss = distance_loss(maps, target, label)
    assert loss.item() == pytest.approx((1 + 4 + 0 + 1) / 4)
    loss.backward()  # type: ignore[no-untyped-call]
    assert maps.grad is not None
    assert not maps.grad[:, :, 0].any()
    assert distance_loss(maps, target, row(IGNORE, IGNORE, IGNORE)).item() == 0


def test_two_tasks_reads_masks_before_maps() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -3.0]).reshape(1, 4, 1, 1, 1).bfloat16()
    masks, maps = two_tasks(logits)
    assert masks.dtype == maps.dtype == torch.float32
    assert masks.flatten().tolist() == pytest.approx([0.5, 1 / (1 + np.exp(-1))])
    assert maps.flatten().tolist() == pytest.approx([np.tanh(2), -np.tanh(3)])


def test_distribution() -> None:
    two = distribution(torch.tensor([0.5, 0.8]).reshape(1, 2, 1, 1, 1)).flatten()
    # background .5 x .2 = .1; the sum .1 + .5 + .8 is 1.4
    assert two.tolist() == pytest.approx([0.1 / 1.4, 0.5 / 1.4, 0.8 / 1.4])
    one = distribution(torch.tensor([0.7]).reshape(1, 1, 1, 1, 1)).flatten()
    assert one.tolist() == pytest.approx([0.3, 0.7])  # the sigmoid itself
