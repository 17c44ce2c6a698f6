"""The formulas again, in numpy and double precision, without a line of the package's own."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sscl.core.batch import Batch
from sscl.data.patches import Loaded
from sscl.ops.distance_map import signed_distance

Array = NDArray[np.float64]
SIZE = (32, 32, 16)


def batch(labelled: int = 2, unlabelled: int = 2, classes: int = 2, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(n, 1, *SIZE, generator=generator) for n in (labelled, unlabelled))
    label = (first[:, 0] > 0).long() * (classes - 1)
    return Batch(first, label, second, {"signed_distance": signed_distance(label, classes)})


def loaded(*args: Any, **kwargs: Any) -> Loaded:
    return Loaded(batch(*args, **kwargs), ("case",))


def array(x: Tensor) -> Array:
    return x.detach().double().numpy()


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def dice(p: Array, label: Array, first: int = 1) -> float:
    """Classes from `first` on, squared denominators, one sum over the rows; labels below 0 are left out."""
    losses = []
    for c in range(first, p.shape[1]):
        pc, yc = p[:, c][label >= 0], (label == c)[label >= 0]
        losses.append(1 - (2 * (pc * yc).sum() + 1e-5) / ((pc**2).sum() + yc.sum() + 1e-5))
    return float(np.mean(losses))


def cross_entropy(p: Array, label: Array) -> float:
    chosen = np.take_along_axis(p, np.maximum(label, 0).astype(int)[:, None], 1)[:, 0]
    return float(-np.log(chosen[label >= 0]).mean())


def dice_ce(z: Array, label: Array) -> float:
    p = softmax(z)
    return dice(p, label) + cross_entropy(p, label)


def sgd(weight: Tensor, gradient: Tensor, rate: float, velocity: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """One step of SGD with momentum .9 and weight decay 1e-4: the new weight and the new velocity."""
    step = gradient + 1e-4 * weight
    velocity = step if velocity is None else 0.9 * velocity + step
    return weight - rate * velocity, velocity


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def assert_weights(module: nn.Module, expected: Mapping[str, Tensor]) -> None:
    for name, weight in module.named_parameters():
        torch.testing.assert_close(
            weight.detach(), expected[name], rtol=1e-5, atol=1e-7, msg=lambda m, name=name: f"{name} {m}"
        )
