"""The case store: what goes in comes out, whole or in crops, from memory or disk."""

from pathlib import Path

import numpy as np
import pytest

from sscl.core.errors import UserError
from sscl.data.store import CaseStore, write_case

IMAGE = np.random.default_rng(0).normal(size=(2, 50, 37, 33)).astype(np.float32)
LABEL = np.random.default_rng(1).integers(-1, 3, (50, 37, 33)).astype(np.int8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_case(tmp_path, "a", IMAGE, LABEL)
    write_case(tmp_path, "b", IMAGE[:1, :5, :4, :3], None)
    return tmp_path


@pytest.mark.parametrize("memory_bytes", [0, 2_000_000_000])
def test_cases_come_back_from_memory_and_from_disk(folder: Path, memory_bytes: int) -> None:
    store = CaseStore(folder, memory_bytes)
    for _ in range(2):
        image, label = store.image("a"), store.label("a")
        assert (image.shape, image.dtype, label.dtype) == (IMAGE.shape, np.float16, np.int8)
        np.testing.assert_array_equal(image[:, 30:41, 5:9, 31:33], IMAGE.astype(np.float16)[:, 30:41, 5:9, 31:33])
        np.testing.assert_array_equal(label[:], LABEL)
        np.testing.assert_array_equal(store.image("b")[:], IMAGE[:1, :5, :4, :3].astype(np.float16))
    assert isinstance(store.image("a"), np.ndarray) == (memory_bytes > 0)


def test_memory_is_used_up_to_its_limit(folder: Path) -> None:
    store = CaseStore(folder, memory_bytes=IMAGE.size * 2)
    assert isinstance(store.image("a"), np.ndarray)
    assert not isinstance(store.label("a"), np.ndarray)


def test_an_unlabelled_case_has_no_label(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["a.image.b2nd", "a.label.b2nd", "b.image.b2nd"]
    with pytest.raises(UserError, match=r"b\.label\.b2nd: missing or damaged"):
        CaseStore(folder).label("b")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_cut_file_is_named(folder: Path, share: float) -> None:
    path = folder / "a.image.b2nd"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match=r"a\.image\.b2nd: missing or damaged .*Prepare the data set again"):
        CaseStore(folder).image("a")
