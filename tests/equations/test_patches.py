"""Crops: which case, which box, which turn; and that image and label stay on top of each other."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sscl.core.plan import IGNORE, Plan
from sscl.data.augment import crop, random_start, start_around, turn_and_flip
from sscl.data.patches import Draw, PatchLoader
from sscl.data.store import CaseStore

SHAPE = (20, 18, 14)
LABELLED, UNLABELLED = ("a", "b", "c"), ("u", "v", "w", "x", "y")
Array = NDArray[Any]


def codes(shape: tuple[int, int, int]) -> Array:
    """Each voxel's own number, from 1: an image in which every place can be told."""
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(1, *shape)


class Memory(CaseStore):
    """A store whose images hold the place and, as second channel, the case; its labels the place."""

    def __init__(self, shape: tuple[int, int, int] = SHAPE) -> None:
        super().__init__(Path("nowhere"))
        self.shape = shape
        self.labels_opened: set[str] = set()

    def image(self, case_id: str) -> Array:
        place = codes(self.shape)
        return np.concatenate([place, np.full_like(place, ord(case_id))])

    def label(self, case_id: str) -> Array:
        self.labels_opened.add(case_id)
        return codes(self.shape)[0].astype(np.int64)


def plan(patch: tuple[int, int, int] = (16, 16, 16), **settings: Any) -> Plan:
    values = {"channels": ("place", "case"), "labels": ("background", "organ"), "spacing_mm": (1.0, 1.0, 1.0)}
    return Plan.read({**values, "patch": patch, "stride": patch, **settings}, "test")


def loader(store: Any, a_plan: Plan, seed: int = 0) -> PatchLoader:
    return PatchLoader(store, LABELLED, UNLABELLED, a_plan, seed)


# ---------------------------------------------------------------- boxes


def test_a_crop_is_the_box_and_zero_outside() -> None:
    array = codes((4, 5, 6))
    assert np.array_equal(crop(array, (1, 2, 3), (2, 3, 2)), array[:, 1:3, 2:5, 3:5])
    around = crop(array, (-1, 4, -2), (6, 3, 10))
    assert np.array_equal(around[:, 1:5, :1, 2:8], array[:, :, 4:5, :])
    assert np.count_nonzero(around) == 4 * 1 * 6


def test_random_starts_reach_every_box_inside_and_no_other() -> None:
    rng = np.random.default_rng(0)
    starts = {random_start(rng, (6, 4, 3), (4, 4, 8)) for _ in range(200)}
    assert starts == {
        (x, 0, -2) for x in range(3)
    }  # z is smaller than the box: centred, the odd voxel of padding behind


def test_a_box_about_a_voxel_holds_it_and_stays_inside() -> None:
    shape, size = (9, 7, 3), (4, 3, 8)
    for centre in product(*map(range, shape)):
        start = start_around(centre, shape, size)
        assert all(s <= c < s + p for s, c, p in zip(start, centre, size, strict=True))
        assert all(0 <= s <= n - p for s, n, p in zip(start[:2], shape[:2], size[:2], strict=True))
    assert start_around((4, 3, 1), shape, size)[:2] == (2, 2)


def test_turns_and_flips_by_hand() -> None:
    array = np.array([[1, 2, 3], [4, 5, 6]])[..., None]  # x down, y to the right
    assert turn_and_flip(array, 1, None)[..., 0].tolist() == [[3, 6], [2, 5], [1, 4]]
    assert turn_and_flip(array, 2, None)[..., 0].tolist() == [[6, 5, 4], [3, 2, 1]]
    assert turn_and_flip(array, 0, 0)[..., 0].tolist() == [[4, 5, 6], [1, 2, 3]]
    assert turn_and_flip(array, 0, 1)[..., 0].tolist() == [[3, 2, 1], [6, 5, 4]]
    assert turn_and_flip(array, 1, 0)[..., 0].tolist() == [[1, 4], [2, 5], [3, 6]]  # first the turn


# ---------------------------------------------------------------- batches


def same(one: Any, other: Any) -> bool:
    pairs = [(one.batch.labelled, other.batch.labelled), (one.batch.label, other.batch.label)]
    pairs += [(one.batch.unlabelled, other.batch.unlabelled)]
    return one.cases == other.cases and all(torch.equal(a, b) for a, b in pairs)


def draws(count: int) -> list[Draw]:
    return [Draw(range(2 * k, 2 * k + 2), range(2 * k, 2 * k + 2)) for k in range(count)]


def test_batch_k_is_the_same_in_any_order_and_from_any_loader() -> None:
    straight = [loader(Memory(), plan()).load(draw) for draw in draws(6)]
    other = loader(Memory(), plan())
    for k in (5, 0, 3, 3, 1):
        assert same(other.load(draws(6)[k]), straight[k])
    larger = loader(Memory(), plan()).load(Draw(range(12), range(12)))
    assert torch.equal(larger.batch.labelled, torch.cat([one.batch.labelled for one in straight]))
    assert torch.equal(larger.batch.unlabelled, torch.cat([one.batch.unlabelled for one in straight]))


def test_another_seed_is_another_stream() -> None:
    first, second = (loader(Memory(), plan(), seed).load(draws(1)[0]) for seed in (0, 1))
    assert not same(first, second)


def test_the_two_streams_do_not_draw_alike() -> None:
    """The same case in both: crop k of one is not crop k of the other."""
    batch = PatchLoader(Memory((40, 40, 40)), ("a",), ("a",), plan(), 0).load(Draw(range(8), range(8))).batch
    alike = [torch.equal(one, other) for one, other in zip(batch.labelled, batch.unlabelled, strict=True)]
    assert not any(alike)


def test_shapes_types_and_halves() -> None:
    loaded = loader(Memory(), plan((16, 16, 32))).load(Draw(range(3), range(1)))
    batch = loaded.batch
    assert (batch.labelled.shape, batch.labelled.dtype) == ((3, 2, 16, 16, 32), torch.float32)
    assert (batch.label.shape, batch.label.dtype) == ((3, 16, 16, 32), torch.int64)
    assert batch.unlabelled.shape == (1, 2, 16, 16, 32)
    assert sorted(loaded.cases[:3]) == list(LABELLED)
    assert loaded.cases[3] in UNLABELLED
    alone = loader(Memory(), plan()).load(Draw(range(2), range(0))).batch
    assert alone.unlabelled.shape == (0, 2, 16, 16, 16)


def test_each_stream_sees_every_case_once_an_epoch_in_changing_order() -> None:
    a_loader = loader(Memory(), plan())
    orders = []
    for epoch in range(8):
        cases = a_loader.load(Draw(range(3 * epoch, 3 * epoch + 3), range(5 * epoch, 5 * epoch + 5))).cases
        assert sorted(cases[:3]) == list(LABELLED)
        assert sorted(cases[3:]) == list(UNLABELLED)
        orders.append(cases)
    assert len(set(orders)) > 4


def test_masks_of_unlabelled_cases_are_never_opened() -> None:
    store = Memory()
    loader(store, plan(foreground_share=0.5)).load(Draw(range(12), range(20)))
    assert store.labels_opened == set(LABELLED)


@pytest.mark.parametrize("patch", [(16, 16, 16), (16, 32, 16)])
def test_image_and_label_are_the_same_box_of_the_same_case(patch: tuple[int, int, int]) -> None:
    """The patch that is not square turns its box before it is cut; the volume is smaller than the longer side."""
    loaded = loader(Memory(), plan(patch, foreground_share=0.5)).load(Draw(range(16), range(0)))
    for image, label, case in zip(loaded.batch.labelled, loaded.batch.label, loaded.cases, strict=True):
        assert torch.equal(image[0].long(), label)
        assert image[1][label > 0].unique().tolist() == [ord(case)]
        assert image.shape[1:] == patch


def undone(patch: Array) -> Iterator[tuple[tuple[int, int | None], Array]]:
    """The patch before each possible turn and flip."""
    for turns, flip_axis in product(range(4), (None, 0, 1)):
        flipped = patch if flip_axis is None else np.flip(patch, flip_axis)
        yield (turns, flip_axis), np.rot90(flipped, -turns, axes=(0, 1))


@pytest.mark.parametrize(
    ("patch", "rotate", "flip", "kinds"),
    [
        ((16, 16, 16), False, False, 1),
        ((16, 16, 16), True, False, 4),
        ((16, 16, 16), False, True, 3),
        ((16, 16, 16), False, "x", 2),
        ((16, 16, 16), False, "y", 2),
        ((16, 16, 16), True, True, 8),  # all symmetries of the square; UA-MT's code knows the four mirrored ones only
        ((32, 16, 16), True, True, 8),
        ((16, 32, 16), True, False, 4),
    ],
)
def test_a_crop_is_a_box_of_the_volume_turned_and_flipped(
    patch: tuple[int, int, int], rotate: bool, flip: bool | str, kinds: int
) -> None:
    shape = (40, 36, 20)
    whole, seen = codes(shape)[0], set()
    loaded = loader(Memory(shape), plan(patch, rotate=rotate, flip=flip)).load(Draw(range(0), range(60)))
    for cut in loaded.batch.unlabelled.numpy()[:, 0]:
        boxes = []
        for how, box in undone(cut):
            x, y, z = np.unravel_index(int(box[0, 0, 0]) - 1, shape)
            a, b, c = box.shape
            if np.array_equal(whole[x : x + a, y : y + b, z : z + c], box):
                boxes.append(how)
        assert boxes, "no box of the volume"
        seen.add(tuple(boxes))
    assert len(seen) == kinds
    if flip in ("x", "y"):
        assert {boxes[0][1] for boxes in seen} == {None, "xy".index(str(flip))}
    assert any((0, None) in boxes for boxes in seen)  # some crops are as the scan is at test time


def test_voxels_that_are_not_square_make_half_turns_only() -> None:
    """A quarter turn would lay their long side along the short one: anatomy that no scan shows."""
    shape, whole = (40, 36, 20), codes((40, 36, 20))[0]
    for spacing, kinds in (((1.0, 1.2, 1.0), {0, 2}), ((1.0, 1.00001, 3.0), {0, 1, 2, 3})):
        a_plan = plan((16, 32, 16), spacing_mm=spacing, flip=False)
        cuts = loader(Memory(shape), a_plan).load(Draw(range(0), range(40))).batch.unlabelled.numpy()[:, 0]
        seen = set()
        for cut in cuts:
            for (turns, flip_axis), box in undone(cut):
                x, y, z = np.unravel_index(int(box[0, 0, 0]) - 1, shape)
                a, b, c = box.shape
                if flip_axis is None and np.array_equal(whole[x : x + a, y : y + b, z : z + c], box):
                    seen.add(turns)
        assert seen == kinds


def test_ignored_voxels_stay_ignored_and_outside_is_background() -> None:
    class Partly(Memory):
        def label(self, case_id: str) -> Array:
            label = np.zeros(self.shape, dtype=np.int8)
            label[0], label[1] = IGNORE, 1
            return label

    loaded = loader(Partly((16, 16, 8)), plan()).load(Draw(range(6), range(0)))
    for label in loaded.batch.label:
        counts = {value: int((label == value).sum()) for value in (IGNORE, 0, 1)}
        assert counts == {IGNORE: 16 * 8, 1: 16 * 8, 0: 16**3 - 2 * 16 * 8}


def test_foreground_share() -> None:
    class Corner(Memory):
        def label(self, case_id: str) -> Array:
            label = np.zeros(self.shape, dtype=np.int8)
            label[0, 0, 0] = 1
            return label

    def hits(share: float) -> float:
        batch = loader(Corner((64, 64, 16)), plan(foreground_share=share)).load(Draw(range(120), range(0))).batch
        return float(batch.label.flatten(1).any(1).float().mean())

    assert hits(0.0) < 0.05  # the corner lies in 1 of 49 x 49 boxes
    assert 0.35 < hits(0.5) < 0.65
    assert hits(1.0) == 1


def test_a_case_without_foreground_is_cut_anywhere() -> None:
    class Empty(Memory):
        def label(self, case_id: str) -> Array:
            return np.zeros(self.shape, dtype=np.int8)

    batch = loader(Empty(), plan(foreground_share=1.0)).load(Draw(range(3), range(0))).batch
    assert not batch.label.any()
