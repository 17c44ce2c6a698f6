"""From the case store to batches. Crop k of a stream is a pure function of (seed, stream, k), whoever asks for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from sscl.core.batch import Batch
from sscl.core.method import Target
from sscl.core.plan import Plan
from sscl.data.augment import crop, random_start, start_around, turn_and_flip
from sscl.data.store import CaseStore
from sscl.ops.distance_map import signed_distance

LABELLED, UNLABELLED = 1, 2
MAKERS: dict[Target, Callable[[torch.Tensor, int], torch.Tensor]] = {"signed_distance": signed_distance}
"""From a batch's label and the number of classes; here, so that loader processes do the work."""
FLIPS = {True: (None, None, 0, 1), "x": (None, None, 0, 0), "y": (None, None, 1, 1)}
"""Half of the crops are mirrored. UA-MT's RandomRotFlip mirrors all of them, so that its network never sees a crop the
way scans are at test time: 8 Dice worse in one pair of development runs with 8 masks (docs/decisions/0007).
"""


@dataclass(frozen=True)
class Draw:
    """Which crops a batch holds: positions in the endless labelled and unlabelled streams."""

    labelled: range
    unlabelled: range


@dataclass(frozen=True)
class Loaded:
    """A batch and the cases it was cut from, labelled first, for the log and for error messages."""

    batch: Batch
    cases: tuple[str, ...]


class PatchLoader:
    """Cuts batches from a prepared data set."""

    def __init__(
        self,
        store: CaseStore,
        labelled: Sequence[str],
        unlabelled: Sequence[str],
        plan: Plan,
        seed: int,
        targets: tuple[Target, ...] = (),
    ) -> None:
        self.store, self._plan, self._seed, self._targets = store, plan, seed, targets
        self._cases = {LABELLED: tuple(labelled), UNLABELLED: tuple(unlabelled)}
        self._order = lru_cache(maxsize=8)(self._shuffled)  # both streams, now and next: a run has endless epochs
        self._foreground = cache(self._foreground_voxels)

    def load(self, draw: Draw) -> Loaded:
        """The crops of one batch."""
        pairs = [self._cut(LABELLED, k) for k in draw.labelled]
        alone = [self._cut(UNLABELLED, k)[:2] for k in draw.unlabelled]
        empty = np.zeros((0, len(self._plan.channels), *self._plan.patch), dtype=np.float32)
        label = torch.from_numpy(
            np.array([label for _, _, label in pairs], dtype=np.int64).reshape(-1, *self._plan.patch)
        )
        batch = Batch(
            labelled=_images([image for _, image, _ in pairs], empty),
            label=label,
            unlabelled=_images([image for _, image in alone], empty),
            targets={name: MAKERS[name](label, self._plan.num_classes) for name in self._targets},
        )
        return Loaded(batch, tuple(case for case, *_ in pairs) + tuple(case for case, _ in alone))

    def _cut(self, stream: int, k: int) -> tuple[str, NDArray[np.generic], NDArray[np.generic] | None]:
        """Crop k of a stream: case, image (c, x, y, z), label (x, y, z) if the stream is the labelled one."""
        cases = self._cases[stream]
        epoch, position = divmod(k, len(cases))
        case = cases[self._order(stream, epoch)[position]]
        rng = np.random.default_rng((self._seed, stream, k))
        # a quarter turn would swap the sides of voxels that are not square; twice a quarter is always possible
        turn = 1 if self._plan.square_voxels else 2
        turns = turn * int(rng.integers(0, 4)) if self._plan.rotate else 0
        flip_axis = FLIPS[self._plan.flip][int(rng.integers(0, 4))] if self._plan.flip else None
        x, y, z = self._plan.patch
        size = (y, x, z) if turns % 2 else (x, y, z)
        image = self.store.image(case)
        shape = image.shape[-3:]
        start = random_start(rng, shape, size)
        if stream == LABELLED and rng.random() < self._plan.foreground_share and len(self._foreground(case)):
            centre = np.unravel_index(rng.choice(self._foreground(case)), shape)
            start = start_around((int(centre[0]), int(centre[1]), int(centre[2])), shape, size)
        arrays = [image] if stream == UNLABELLED else [image, self.store.label(case)]
        cut, *label = (turn_and_flip(crop(array, start, size), turns, flip_axis) for array in arrays)
        return case, cut, label[0] if label else None

    def _shuffled(self, stream: int, epoch: int) -> tuple[int, ...]:
        """Every case once an epoch, in a new order each time."""
        # + 2: numpy pads short seeds with zeros, so a fourth number 0 would give the seed of crop `epoch` again
        rng = np.random.default_rng((self._seed, stream + 2, epoch))
        return tuple(rng.permutation(len(self._cases[stream])).tolist())

    def _foreground_voxels(self, case: str) -> NDArray[np.intp]:
        return np.flatnonzero(np.asarray(self.store.label(case)[:]) > 0)


def _images(crops: list[NDArray[np.generic]], empty: NDArray[np.float32]) -> torch.Tensor:
    return torch.from_numpy(np.stack(crops).astype(np.float32) if crops else empty)
