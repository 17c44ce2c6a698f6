"""The case store: what goes in comes out, whole or in crops, from memory or disk."""

from functools import partial
from pathlib import Path

import blosc2
import numpy as np
import pytest

from sscl.core.errors import UserError
from sscl.core.files import sha256
from sscl.core.plan import Plan
from sscl.data.patches import Draw, Loaded, PatchLoader
from sscl.data.store import CaseStore, write_case, write_digests
from sscl.data.workers import _Draws, batches_ahead

IMAGE = np.random.default_rng(0).normal(size=(2, 50, 37, 33)).astype(np.float32)
ONE = Draw(range(1), range(0))
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


def test_memory_is_shared_out_among_processes(folder: Path) -> None:
    store = CaseStore(folder, memory_bytes=IMAGE.size * 2)
    store.share_memory(2)
    assert not isinstance(store.image("a"), np.ndarray)
    assert isinstance(store.image("b"), np.ndarray)


def _loader(store: CaseStore, case: str) -> PatchLoader:
    plan = Plan(channels=("a", "b"), labels=("0", "1"), spacing_mm=(1, 1, 1), patch=(16, 16, 16), stride=(8, 8, 8))
    return PatchLoader(store, (case,), (), plan, 0)


def test_a_loader_process_takes_its_part_of_the_memory(folder: Path) -> None:
    store = CaseStore(folder, memory_bytes=IMAGE.size * 2)
    loaded = _Draws(partial(_loader, store, "a"), workers=2)[ONE]
    assert isinstance(loaded, Loaded)
    assert not isinstance(store.image("a"), np.ndarray)


def test_a_user_error_is_handed_over_not_raised(folder: Path) -> None:
    """As a value, because torch would wrap an exception in the process's traceback."""
    error = _Draws(partial(_loader, CaseStore(folder), "gone"), workers=1)[ONE]
    assert isinstance(error, UserError)


@pytest.mark.slow  # a process that imports torch
def test_what_is_wrong_in_a_loader_process_is_told_in_the_same_words(folder: Path) -> None:
    make = partial(_loader, CaseStore(folder), "gone")
    with pytest.raises(UserError, match=r"gone\.image\.b2nd: missing or damaged") as here:
        make().load(ONE)
    with pytest.raises(UserError) as there:
        next(batches_ahead(make, [ONE], workers=1))
    assert str(there.value) == str(here.value)


def test_an_unlabelled_case_has_no_label(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["a.image.b2nd", "a.label.b2nd", "b.image.b2nd"]
    with pytest.raises(UserError, match=r"b\.label\.b2nd: missing or damaged"):
        CaseStore(folder).label("b")


def damage_in_silence(path: Path) -> None:
    """Change one byte so that blosc2 reads other voxels without an error."""
    sound = path.read_bytes()
    for at in range(len(sound) // 2, len(sound)):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 1]) + sound[at + 1 :])
        try:
            if (blosc2.open(str(path))[:] != IMAGE.astype(np.float16)).any():
                return
        except RuntimeError:
            continue
    pytest.fail("blosc2 noticed every change")


def test_a_changed_byte_is_found_by_its_digest(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """blosc2 gives other voxels for it, and says nothing."""
    CaseStore(folder).image("a")
    assert "the store has no digests" in caplog.text
    write_digests(folder, {path.name: sha256(path) for path in folder.glob("*.b2nd")})
    np.testing.assert_array_equal(CaseStore(folder).image("a")[:], IMAGE.astype(np.float16))
    path = folder / "a.image.b2nd"
    damage_in_silence(path)
    for memory_bytes in (0, 2_000_000_000):
        with pytest.raises(UserError, match=r"a\.image\.b2nd: missing or damaged \(its digest"):
            CaseStore(folder, memory_bytes).image("a")


def test_a_file_that_would_run_code_is_refused(folder: Path) -> None:
    operands = [blosc2.asarray(np.ones((4, 4)), urlpath=str(folder / f"{name}.b2nd"), mode="w") for name in "xy"]
    (operands[0] + operands[1]).save(str(folder / "a.image.b2nd"), mode="w")
    with pytest.raises(UserError, match=r"a\.image\.b2nd: missing or damaged"):
        CaseStore(folder).image("a")


def test_intensities_that_float16_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"up to 7e\+04 .* at most 65504"):
        write_case(tmp_path, "a", np.full((1, 2, 2, 2), -7e4, np.float32), None)


def test_a_crop_reads_blocks_of_its_own_size(folder: Path) -> None:
    assert blosc2.open(str(folder / "a.image.b2nd")).blocks == (1, 32, 32, 32)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_cut_file_is_named(folder: Path, share: float) -> None:
    path = folder / "a.image.b2nd"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match=r"a\.image\.b2nd: missing or damaged .*Prepare the data set again"):
        CaseStore(folder).image("a")
