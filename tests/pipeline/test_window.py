"""The sliding window against one that visits every voxel by itself."""

import math

import numpy as np
import pytest
import torch

from sscl.engine.window import Size, sliding_window, window_starts


def test_strides_are_whole_numbers() -> None:
    """Where an overlap given as a fraction makes 15 out of 16."""
    assert window_starts(160, 96, 16) == [0, 16, 32, 48, 64]
    assert window_starts(161, 96, 16) == [0, 16, 32, 48, 64, 65]
    assert window_starts(96, 96, 16) == [0]
    assert window_starts(10, 96, 16) == [0]


@pytest.mark.parametrize(("patch", "stride"), [(96, 16), (112, 18), (80, 4), (5, 5), (7, 3)])
def test_number_of_windows_is_that_of_the_literature(patch: int, stride: int) -> None:
    for length in range(patch, patch + 60):
        starts = window_starts(length, patch, stride)
        assert len(starts) == math.ceil((length - patch) / stride) + 1
        assert starts[-1] + patch == length
        covered = {voxel for start in starts for voxel in range(start, start + patch)}
        assert covered == set(range(length))


def position_dependent(windows: torch.Tensor) -> torch.Tensor:
    """Probabilities that differ with the place of a voxel in its window, as a network's do near borders."""
    ramp = torch.linspace(-2, 2, windows[0, 0].numel()).reshape(windows.shape[2:])
    return torch.stack([windows[:, 0], ramp * windows[:, 0], ramp.expand_as(windows[:, 0])], dim=1).softmax(1)


def starts_of(length: int, patch: int, stride: int) -> list[int]:
    starts = [0]
    while starts[-1] + patch < length:
        starts.append(min(starts[-1] + stride, length - patch))
    return starts


@pytest.mark.parametrize("weighting", ["average", "gaussian"])
@pytest.mark.parametrize("batch", [1, 4])
def test_equals_voxel_by_voxel_averaging(weighting: str, batch: int) -> None:
    patch, stride, shape = (4, 5, 3), (2, 5, 1), (9, 8, 5)
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32))
    found = sliding_window(position_dependent, image, patch, stride, weighting, batch)
    total, seen = np.zeros((3, *shape)), np.zeros(shape)
    for x in starts_of(9, 4, 2):
        for y in starts_of(8, 5, 5):
            for z in starts_of(5, 3, 1):
                window = image[:, x : x + 4, y : y + 5, z : z + 3]
                p = position_dependent(window[None])[0].numpy()
                for i, j, k in np.ndindex(patch):
                    d = sum(((index - (n - 1) / 2) / (n / 8)) ** 2 for index, n in zip((i, j, k), patch, strict=True))
                    weight = max(math.exp(-d / 2), 1e-3) if weighting == "gaussian" else 1.0
                    total[:, x + i, y + j, z + k] += weight * p[:, i, j, k]
                    seen[x + i, y + j, z + k] += weight
    np.testing.assert_allclose(found.numpy(), total / seen, atol=1e-5)
    np.testing.assert_array_equal(found.numpy().argmax(0), (total / seen).argmax(0))
    np.testing.assert_allclose(found.sum(0).numpy(), 1, atol=1e-5)


@pytest.mark.parametrize("weighting", ["average", "gaussian"])
@pytest.mark.parametrize("shape", [(3, 4, 2), (9, 2, 3), (1, 1, 1)])
def test_images_smaller_than_the_window_come_back_in_place(shape: Size, weighting: str) -> None:
    image = torch.from_numpy(np.random.default_rng(1).uniform(0.1, 0.9, (1, *shape)).astype(np.float32))
    found = sliding_window(lambda w: torch.cat([w, 1 - w], 1), image, (4, 4, 4), (2, 2, 2), weighting)
    np.testing.assert_allclose(found[0].numpy(), image[0].numpy(), atol=1e-6)
    np.testing.assert_allclose(found[1].numpy(), 1 - image[0].numpy(), atol=1e-6)


def test_windows_come_in_batches() -> None:
    sizes = []

    def predict(windows: torch.Tensor) -> torch.Tensor:
        sizes.append(len(windows))
        return windows

    image = torch.zeros(1, 6, 4, 4)
    sliding_window(predict, image, (4, 4, 4), (1, 1, 1), batch=2)
    assert sizes == [2, 1]
