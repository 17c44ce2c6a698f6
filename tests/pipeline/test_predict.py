"""`predict` and `export`: masks on the scan's own grid, from a run or an exported model, and what is refused."""

import json
import logging
import os
import pickletools
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import h5py
import nibabel
import nrrd
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_set import SETTINGS, TEST, Tiny, ball, prepared, save_nifti

from sscl.core.errors import UserError
from sscl.core.files import read_sealed, sha256, write_sealed
from sscl.engine import checkpoint
from sscl.engine.run import read_recipe, recipe_digest, write_recipe
from sscl.engine.window import sliding_window
from sscl.stages.model import export, info, load_model
from sscl.stages.predict import predict
from sscl.stages.prepare import prepare

Train = Callable[..., Path]


def run_predict(model: Path, inputs: list[Path], out: Path, **options: Any) -> list[Path]:
    return predict(model, inputs, out, **{"threads": 1, "device": "cpu", **options})


def mask(path: Path) -> NDArray[Any]:
    return np.asanyarray(nibabel.load(path).dataobj)


@pytest.fixture(scope="module")
def trained(trained: Path, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared run, its last bias moved so that both classes are predicted: six iterations find the background."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("mixed") / "run")
    image = mask(tiny.scan("t1")).astype(np.float32)[4:20, 4:20, 2:18]
    with torch.no_grad():
        p = load_model(run, torch.device("cpu")).method.predict(
            torch.from_numpy((image - image.mean()) / image.std())[None, None]
        )
    state = checkpoint.newest(run / "checkpoints", torch.device("cpu"))
    assert state is not None
    state["method"]["student.decoder.head.bias"][1] -= (p[:, 1] / p[:, 0]).log().median()
    checkpoint.save(run / "checkpoints", state)
    return run


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(trained, tmp_path_factory.mktemp("export") / "model")


@pytest.fixture(scope="module")
def predicted(trained: Path, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("predicted") / "masks"
    paths = run_predict(trained, [tiny.dataset], out, probabilities=True)
    assert paths == [out / f"{case}.nii.gz" for case in TEST]
    return out


# The scan's own grid


def test_masks_and_probabilities_lie_on_the_scans_grid(predicted: Path, tiny: Tiny) -> None:
    for case in TEST:
        scan, found = nibabel.load(tiny.scan(case)), nibabel.load(predicted / f"{case}.nii.gz")
        assert found.shape == scan.shape == (24, 24, 20)
        np.testing.assert_array_equal(found.affine, scan.affine)
        assert found.get_data_dtype() == np.uint8
        maps = np.load(predicted / f"{case}.npz")["probabilities"]
        assert maps.shape == (2, *scan.shape)
        np.testing.assert_allclose(maps.astype(np.float32).sum(0), 1, atol=2e-3)
        sure = np.abs(maps[0].astype(np.float32) - maps[1]) > 2e-3
        np.testing.assert_array_equal(mask(predicted / f"{case}.nii.gz")[sure], maps.argmax(0)[sure])


def test_equals_a_naive_sliding_window(predicted: Path, trained: Path, tiny: Tiny) -> None:
    model = load_model(trained, torch.device("cpu")).method
    for case in TEST:
        image = mask(tiny.scan(case)).astype(np.float64)
        image = (image - image.mean()) / image.std()
        total, seen = np.zeros((2, 24, 24, 20)), np.zeros((24, 24, 20))
        for x, y, z in [(x, y, z) for x in (0, 8) for y in (0, 8) for z in (0, 4)]:
            box = (slice(x, x + 16), slice(y, y + 16), slice(z, z + 16))
            with torch.no_grad():
                p = model.predict(torch.from_numpy(image[box].astype(np.float32))[None, None])
            total[(slice(None), *box)] += p[0].numpy()
            seen[box] += 1
        maps = total / seen
        assert 0.05 < maps.argmax(0).mean() < 0.95
        stored = np.load(predicted / f"{case}.npz")["probabilities"]
        np.testing.assert_allclose(stored, maps, atol=1e-3)
        sure = np.abs(maps[0] - maps[1]) > 1e-4
        np.testing.assert_array_equal(mask(predicted / f"{case}.nii.gz")[sure], maps.argmax(0)[sure])


ORDERS = ["".join(ends) for axes in permutations(("RL", "AP", "SI")) for ends in product(*axes)]


@pytest.mark.parametrize("degrees", [0, 20])
def test_every_axis_order_gives_the_same_mask_in_the_patient(degrees: int, trained: Path, tmp_path: Path) -> None:
    """All 48, of a scan that lies straight or obliquely and has voxels of another size than the plan's."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = _turned(degrees) @ np.diag([1.1, 0.9, 1.3]), (-30, 12, 7)
    scan = nibabel.load(save_nifti(tmp_path / "scan.nii.gz", ball((18, 17, 13), 0)[0], affine))
    (path,) = run_predict(trained, [tmp_path / "scan.nii.gz"], tmp_path / "straight")
    expected = nibabel.load(path)
    assert 0.05 < mask(path).mean() < 0.95
    turned = {code: scan.as_reoriented(_to(scan, code)) for code in ORDERS}
    assert len(turned) == 48
    for code, image in turned.items():
        save_nifti(tmp_path / f"turned/{code}.nii.gz", np.asanyarray(image.dataobj), image.affine)
    for path in run_predict(trained, [tmp_path / "turned"], tmp_path / "masks"):
        found, code = nibabel.load(path), path.name.removesuffix(".nii.gz")
        assert nibabel.aff2axcodes(found.affine) == tuple(code)
        assert found.shape == turned[code].shape
        np.testing.assert_allclose(found.affine, turned[code].affine, atol=1e-5)
        np.testing.assert_array_equal(mask(path), np.asanyarray(expected.as_reoriented(_to(expected, code)).dataobj))


def _turned(degrees: float) -> NDArray[np.float64]:
    """About z."""
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


def _to(image: Any, code: str) -> NDArray[np.float64]:
    axes = nibabel.orientations
    return axes.ornt_transform(axes.io_orientation(image.affine), axes.axcodes2ornt(code))


@pytest.mark.parametrize("shape", [(10, 9, 8), (17, 21, 5)])
def test_small_oblique_scans_of_another_spacing(shape: tuple[int, ...], trained: Path, tmp_path: Path) -> None:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = _turned(20) @ np.diag([0.8, -1.3, 1.9]), (-30, 12, 7)
    scan = save_nifti(tmp_path / "s.nii.gz", ball(shape, 0)[0], affine)
    (path,) = run_predict(trained, [scan], tmp_path / "out", probabilities=True)
    assert mask(path).shape == shape
    np.testing.assert_allclose(nibabel.load(path).affine, affine, atol=1e-5)
    maps = np.load(tmp_path / "out/s.npz")["probabilities"].astype(np.float32)
    assert maps.shape == (2, *shape)
    np.testing.assert_allclose(maps.sum(0), 1, atol=2e-3)


def test_largest_component_when_asked(trained: Path, tiny: Tiny, tmp_path: Path, monkeypatch: Any) -> None:
    planted = torch.zeros(2, 24, 24, 20)
    planted[0] = 0.5
    planted[1, 2:5, 2:5, 2:5] = planted[1, 10:12, 10:12, 10:12] = 0.6
    monkeypatch.setattr("sscl.stages.predict.sliding_window", lambda *arguments, **options: planted)
    (path,) = run_predict(trained, [tiny.scan("t1")], tmp_path / "all")
    assert mask(path).sum() == 27 + 8
    (path,) = run_predict(trained, [tiny.scan("t1")], tmp_path / "largest", largest_component=True)
    assert mask(path).sum() == mask(path)[2:5, 2:5, 2:5].sum() == 27


def test_largest_component_of_each_class_by_hand() -> None:
    from sscl.ops.pseudo import largest_components

    label = np.zeros((9, 4, 2), np.int16)
    label[0:2, 0, 0], label[2, 1, 1] = 1, 1  # three voxels, the last one across a corner
    label[5:7, 0, 0] = 1
    label[8, :, 0], label[0, 3, 1] = 2, 2
    expected = label.copy()
    expected[5:7, 0, 0], expected[0, 3, 1] = 0, 0
    kept = largest_components(torch.from_numpy(label).long()[None])[0]
    np.testing.assert_array_equal(kept.numpy(), expected)


def test_weighting_and_stride_can_be_chosen(trained: Path, tiny: Tiny, predicted: Path, tmp_path: Path) -> None:
    base = np.load(predicted / "t1.npz")["probabilities"]
    for number, options in enumerate(({"weighting": "gaussian"}, {"stride": (4, 8, 8)})):
        out = tmp_path / str(number)
        run_predict(trained, [tiny.scan("t1")], out, probabilities=True, **options)
        (path,) = out.glob("*.npz")
        assert np.abs(np.load(path)["probabilities"].astype(np.float32) - base).max() > 1e-4


def test_window_batches_do_not_matter(trained: Path, tiny: Tiny, predicted: Path, tmp_path: Path) -> None:
    run_predict(trained, [tiny.dataset], tmp_path, probabilities=True, batch=3)
    for case in TEST:
        one, two = (np.load(folder / f"{case}.npz")["probabilities"] for folder in (predicted, tmp_path))
        np.testing.assert_allclose(one, two, atol=1e-3)


# Run again


def test_finished_cases_are_skipped_and_damaged_ones_made_again(
    trained: Path, tiny: Tiny, predicted: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(predicted, tmp_path / "out")
    first, second = (out / f"{case}.nii.gz" for case in TEST)
    good, before = first.read_bytes(), second.stat().st_mtime_ns
    first.write_bytes(good[: len(good) // 2])
    run_predict(trained, [tiny.dataset], out)
    np.testing.assert_array_equal(mask(first), mask(predicted / first.name))
    assert second.stat().st_mtime_ns == before
    first.unlink()
    run_predict(trained, [tiny.dataset], out)
    assert first.exists()
    assert second.stat().st_mtime_ns == before
    (out / "t2.npz").unlink()
    run_predict(trained, [tiny.dataset], out, probabilities=True)
    assert (out / "t2.npz").exists()


def test_another_scan_of_the_same_name_is_predicted_anew(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    one, two = (save_nifti(tmp_path / f"{name}/a.nii.gz", ball((16, 16, 16), name)[0]) for name in (3, 4))
    (path,) = run_predict(trained, [one], tmp_path / "out", probabilities=True)
    first = mask(path)
    run_predict(trained, [two], tmp_path / "out")
    (expected,) = run_predict(trained, [two], tmp_path / "fresh")
    np.testing.assert_array_equal(mask(path), mask(expected))
    assert (mask(path) != first).any()
    assert not path.with_name("a.npz").exists()  # of the scan before
    stage = json.loads((tmp_path / "out/stage.json").read_text())
    assert stage["inputs"] == {"a": [sha256(two)]}
    assert stage["cases"] == {"a": sha256(path)}


def test_a_scan_that_fails_does_not_leave_the_mask_of_another(trained: Path, tmp_path: Path) -> None:
    scan = save_nifti(tmp_path / "a.nii.gz", ball((16, 16, 16), 3)[0])
    (path,) = run_predict(trained, [scan], tmp_path / "out")
    scan.write_bytes(b"no scan")
    refused("1 of 1 scans were not predicted", trained, [scan], tmp_path / "out")
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_stage_file_is_named(text: str, trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "stage.json").write_text(text)
    refused(r"stage\.json: is not", trained, [tiny.scan("t1")], tmp_path)


def test_killed_during_the_first_case_the_folder_is_still_its_own(
    trained: Path, tiny: Tiny, tmp_path: Path, monkeypatch: Any
) -> None:
    """The mask is there, and the program died before noting it."""
    from sscl.stages import predict as stage

    write, written = stage.write_label, []

    def write_and_die(path: Path, *arguments: Any) -> None:
        write(path, *arguments)
        written.append(path)
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "write_label", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        run_predict(trained, [tiny.dataset], tmp_path / "out")
    assert written[0].exists()
    written[0].write_bytes(b"half")
    monkeypatch.setattr(stage, "write_label", write)
    run_predict(trained, [tiny.dataset], tmp_path / "out")
    assert all(mask(tmp_path / f"out/{case}.nii.gz").shape == (24, 24, 20) for case in TEST)


def test_dying_at_any_write_counts_no_half_file_as_done(tmp_path: Path) -> None:
    """A fork for each system call that makes a change and for the middle of each write; a threshold for the network."""
    for seed, case in enumerate(("a", "b")):
        save_nifti(tmp_path / f"scans/{case}.nii.gz", ball((8, 7, 6), seed)[0])
    script = """
import os, sys, torch
from pathlib import Path
from sscl.core import files
from sscl.core.plan import Plan
from sscl.stages import predict as stage
from sscl.stages.model import Model

def dying(function, countdown):
    def call(*arguments, **options):
        countdown[0] -= 1
        if countdown[0] < 0:
            os._exit(9)
        return function(*arguments, **options)
    return call

def torn(write, countdown):
    def call(sink, data):
        countdown[0] -= 1
        if countdown[0] < 0:
            write(sink, bytes(data)[: len(data) // 2])
            sink.flush()
            os._exit(9)
        return write(sink, data)
    return call

def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}

plan = Plan(channels=("x",), labels=("0", "1"), spacing_mm=(1, 1, 1), patch=(16, 16, 16), stride=(8, 8, 8))
network = torch.nn.Module()
network.predict = lambda x: torch.cat([x < 0, x >= 0], 1).float()
stage.load_model = lambda *arguments: Model(network, plan, "digest", "last")
root = Path(sys.argv[1])

def predict(out):
    return stage.predict(root, [root / "scans"], out, threads=1, device="cpu", probabilities=True)

predict(root / "undisturbed")
whole = contents(root / "undisturbed")
k = deaths = 0
while True:
    out = root / str(k)
    if (child := os.fork()) == 0:
        countdown = [k]
        for name in ("fsync", "replace", "rename", "unlink", "open", "chmod", "mkdir"):
            setattr(os, name, dying(getattr(os, name), countdown))
        files._Sink.write = torn(files._Sink.write, countdown)
        predict(out)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = contents(out) if out.exists() else {}
    assert all(left[name] == whole[name] for name in left if name != "stage.json"), k
    predict(out)
    again = contents(out)
    assert again.keys() == whole.keys(), (k, again.keys())
    assert all(again[name] == whole[name] for name in whole if name != "stage.json"), k
    k += 1
    if code == 0:
        break
    assert code == 9, code
print(k)
"""
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 40  # 2 masks, 2 maps, stage.json 4 times: each a temporary file, synced, renamed


@pytest.mark.slow
def test_killed_among_several_cases_it_goes_on_to_the_same_masks(trained: Path, tmp_path: Path) -> None:
    scans, out = tmp_path / "scans", tmp_path / "out"
    for seed in range(12):
        save_nifti(scans / f"c{seed:02d}.nii.gz", ball((18, 16, 16), seed)[0])
    expected = {path.name: path.read_bytes() for path in run_predict(trained, [scans], tmp_path / "undisturbed")}
    command = ["predict", trained, scans, "-o", out, "--threads", "1", "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-m", "sscl.cli", *map(str, command)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (out / "c02.nii.gz").exists():
        assert time.monotonic() < deadline, "no mask"
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -9
    noted = json.loads((out / "stage.json").read_text())["cases"]
    assert 2 <= len(noted) < 12
    before = {case: (out / f"{case}.nii.gz").stat().st_mtime_ns for case in noted}
    paths = run_predict(trained, [scans], out)
    assert {path.name: path.read_bytes() for path in paths} == expected
    assert {case: (out / f"{case}.nii.gz").stat().st_mtime_ns for case in noted} == before


def refused(words: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(UserError, match=words):
        run_predict(*arguments, **options)


def test_the_folder_of_another_model_or_of_other_settings_is_refused(
    trained: Path, train_tiny: Train, tiny: Tiny, predicted: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in predicted.iterdir()}
    other = train_tiny(tmp_path / "run", iterations=2)
    refused("another model or other settings", other, [tiny.dataset], predicted)
    refused("another model or other settings", trained, [tiny.dataset], predicted, weighting="gaussian")
    refused("another model or other settings", trained, [tiny.dataset], predicted, largest_component=True)
    assert {path: path.read_bytes() for path in predicted.iterdir()} == before
    save_nifti(tmp_path / "mine/t1.nii.gz", np.zeros((4, 4, 4), np.uint8))
    refused("did not write", trained, [tiny.dataset], tmp_path / "mine")


# Inputs


def test_one_bad_scan_does_not_stop_the_others(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    for case in ("a", "c"):
        save_nifti(scans / f"{case}.nii.gz", ball((16, 16, 16), 3)[0])
    (scans / "b.nii.gz").write_bytes(b"no scan")
    holed = ball((16, 16, 16), 3)[0].astype(np.float32)
    holed[3, 3, 3] = np.nan
    save_nifti(scans / "d.nii.gz", holed)
    save_nifti(scans / "e.nii.gz", np.stack([holed, holed], -1))
    save_nifti(scans / "b1.nii.gz", ball((16, 16, 16), 3)[0], np.diag([1000.0, 1000, 1000, 1]))
    with pytest.raises(UserError) as caught:
        run_predict(trained, [scans], tmp_path / "out")
    message = str(caught.value)
    assert message.startswith("4 of 6 scans were not predicted:")
    assert all(f"\n  {case}: {scans / case}.nii.gz: " in message for case in ("b", "b1", "d", "e"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lock", "a.nii.gz", "c.nii.gz", "stage.json",
    ]  # fmt: skip


def test_inputs_that_cannot_be_told_apart_or_would_be_overwritten(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    one = save_nifti(scans / "a.nii.gz", ball((16, 16, 16), 3)[0])
    two = save_nifti(tmp_path / "more/a.nii", ball((16, 16, 16), 4)[0])
    refused(r"would both become a\.nii\.gz", trained, [one, two], tmp_path / "out")
    refused("is the folder of the scans", trained, [scans], scans)
    refused("is the folder of the scans", trained, [one], tmp_path / "out/../scans")
    (tmp_path / "links").mkdir()
    (tmp_path / "links/a.nii.gz").symlink_to(one)
    refused("is the folder of the scans", trained, [tmp_path / "links"], tmp_path / "links")
    refused("is the folder of the scans", trained, [tmp_path / "links"], scans)
    refused("holds the scans, in imagesTr, and is left untouched", trained, [tiny.dataset], tiny.source)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused("a link that leads to itself", trained, [one], tmp_path / "loop")
    long = save_nifti(tmp_path / f"long/{'x' * 230}.nii.gz", ball((16, 16, 16), 4)[0])
    refused("case 'x{230}': the name has 230 bytes.*Rename", trained, [one, long], tmp_path / "out")
    refused("does not exist", trained, [tmp_path / "void"], tmp_path / "out")
    refused("--split 'tset' is unknown. Did you mean 'test'", trained, [tiny.dataset], tmp_path / "out", split="tset")
    refused("list 'development' is empty", trained, [tiny.dataset], tmp_path / "out", split="development")
    refused("stride.* longer than the window", trained, [one], tmp_path / "out", stride=(17, 8, 8))
    refused(r"stride = \(0, 8, 8\): expected more than 0", trained, [one], tmp_path / "out", stride=(0, 8, 8))
    refused("--batch 0", trained, [one], tmp_path / "out", batch=0)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in scans.iterdir()] == ["a.nii.gz"]


def test_scans_of_two_channels_for_a_model_of_one(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In one file: refused. In two, which may as well be two scans: told."""
    image = ball((16, 16, 16), 3)[0]
    both = save_nifti(tmp_path / "both.nii.gz", np.stack([image, image], -1))
    refused(rf"{both}: .*2 channels", trained, [both], tmp_path / "out")
    for channel in ("0000", "0001"):
        save_nifti(tmp_path / f"apart/a_{channel}.nii.gz", image)
    assert list((tmp_path / "out").glob("*.nii.gz")) == []
    run_predict(trained, [tmp_path / "apart"], tmp_path / "out")
    assert "numbers like _0001 are taken for scans, not for channels, of which the model has one" in caplog.text


def test_a_data_set_of_other_channels_is_refused(trained: Path, tiny: Tiny, tmp_path: Path) -> None:
    other = prepared(tiny.source, tmp_path / "other", channels="T2")
    words = "other: its channels are T2; the model was trained on MRI, in this order.*--set channels=MRI"
    refused(words, trained, [other], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    run_predict(trained, [prepared(tiny.source, tmp_path / "same", channels="mri")], tmp_path / "out")


def test_files_without_a_voxel_size_have_that_of_their_data_set(trained: Path, tmp_path: Path) -> None:
    """Not the model's; and another one is another scan."""
    for case in (0, 1):
        for folder, name, array in zip(("images", "labels"), ("image", "label"), ball((24, 20, 16), case), strict=True):
            (tmp_path / "scans" / folder).mkdir(parents=True, exist_ok=True)
            with h5py.File(tmp_path / f"scans/{folder}/{case}.h5", "w") as file:
                file[name] = array
    for size in (0.5, 2.0):
        settings = {**SETTINGS, "channels": "MRI", "spacing_if_missing_mm": (size, size, size)}
        data = prepare(tmp_path / "scans", tmp_path / f"{size}", test="last:1", settings=settings).out
        (path,) = run_predict(trained, [data], tmp_path / "out")
        np.testing.assert_allclose(nibabel.load(path).header.get_zooms(), size)


def test_two_formats_of_one_name_are_two_scans_for_one_mask(trained: Path, tmp_path: Path) -> None:
    image = ball((16, 16, 16), 3)[0]
    one = save_nifti(tmp_path / "scans/a.nii.gz", image)
    nrrd.write(str(one.with_name("a.nrrd")), image, {"space": "RAS", "space directions": np.eye(3)})
    refused(r"a\.nii\.gz", trained, [one, one.with_name("a.nrrd")], tmp_path / "out")
    refused(r"a\.nrrd", trained, [one.parent], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _too_much_for_a_gpu() -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize("allocate", [_too_much_for_a_gpu, lambda: torch.empty(2**60)])
def test_a_scan_that_memory_cannot_hold_does_not_stop_the_others(
    allocate: Callable[[], torch.Tensor], trained: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Of a GPU by the error that torch raises there, of a CPU by asking for an exabyte."""
    for case, size in (("a", 16), ("b", 20), ("c", 16)):
        save_nifti(tmp_path / f"scans/{case}.nii.gz", ball((size, 16, 16), 3)[0])
    window = sliding_window
    monkeypatch.setattr(
        "sscl.stages.predict.sliding_window",
        lambda predict, image, *rest: allocate() if image.shape[1] == 20 else window(predict, image, *rest),
    )
    words = (
        r"1 of 3 scans were not predicted:\n  b: the memory does not suffice \(.*\)\. Try --batch 1, or --device cpu\."
    )
    refused(words, trained, [tmp_path / "scans"], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == ["a.nii.gz", "c.nii.gz"]


def test_another_error_of_torch_is_not_taken_for_one_of_memory(
    trained: Path, tiny: Tiny, monkeypatch: Any, tmp_path: Path
) -> None:
    def fail(*arguments: Any) -> torch.Tensor:
        raise RuntimeError("Given groups=1, expected input to have 2 channels")

    monkeypatch.setattr("sscl.stages.predict.sliding_window", fail)
    with pytest.raises(RuntimeError, match="Given groups"):
        run_predict(trained, [tiny.scan("t1")], tmp_path)


def test_lists_of_a_data_set_and_single_files(trained: Path, tiny: Tiny, predicted: Path, tmp_path: Path) -> None:
    paths = run_predict(trained, [tiny.dataset], tmp_path / "u", split="unlabelled")
    assert [path.name for path in paths] == ["b1.nii.gz", "b2.nii.gz", "b3.nii.gz"]
    paths = run_predict(trained, [tiny.scan("t1"), tiny.scan("t2")], tmp_path / "t")
    for path, case in zip(paths, TEST, strict=True):
        np.testing.assert_array_equal(mask(path), mask(predicted / f"{case}.nii.gz"))


# Handing over


def test_an_exported_model_predicts_the_same(exported: Path, tiny: Tiny, predicted: Path, tmp_path: Path) -> None:
    run_predict(exported, [tiny.dataset], tmp_path, probabilities=True)
    for case in TEST:
        np.testing.assert_array_equal(mask(tmp_path / f"{case}.nii.gz"), mask(predicted / f"{case}.nii.gz"))
        one, two = (np.load(folder / f"{case}.npz")["probabilities"] for folder in (predicted, tmp_path))
        np.testing.assert_array_equal(one, two)


def test_a_model_is_what_the_test_phase_needs_and_no_pickle(exported: Path, trained: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == ["model.json", "weights.safetensors"]
    stored = load_file(exported / "weights.safetensors")
    assert {".".join(name.split(".")[:2]) for name in stored if name.startswith("rec")} == {"reconstructor.encoder"}
    assert {name.split(".")[0] for name in stored} == {"student", "reconstructor"}
    state = checkpoint.newest(trained / "checkpoints", torch.device("cpu"))
    assert state is not None
    expected = {n for n in state["method"] if n.startswith(("student.", "reconstructor.encoder."))}
    assert stored.keys() == expected
    assert any(name.startswith("teacher.") for name in state["method"])
    assert all(torch.equal(stored[name], state["method"][name]) for name in stored)
    for path in exported.iterdir():
        with pytest.raises(ValueError, match=r"opcode|pickle|exhausted|string"):
            list(pickletools.genops(path.read_bytes()))
    with safe_open(exported / "weights.safetensors", "pt") as file:
        assert not file.metadata()


def test_the_card_tells_what_the_model_is(exported: Path, trained: Path) -> None:
    card, recipe = info(exported), read_recipe(trained)
    assert card["labels"] == ["background", "organ"]
    assert card["plan"]["patch"] == [16, 16, 16]
    assert card["trained"]["iterations"] == 6
    assert card["trained"]["data_digest"] == recipe.data_digest
    assert card["weights_sha256"] == sha256(exported / "weights.safetensors")
    assert card["parameters"] == sum(
        t.numel() for n, t in load_file(exported / "weights.safetensors").items() if not _buffer(n)
    )


def _buffer(name: str) -> bool:
    return name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def changed(exported: Path, folder: Path, **card: Any) -> Path:
    model = shutil.copytree(exported, folder)
    write_sealed(model / "model.json", read_sealed(model / "model.json") | card)
    return model


def test_damaged_or_foreign_models_are_refused(exported: Path, train_tiny: Train, tiny: Tiny, tmp_path: Path) -> None:
    def check(words: str, model: Path) -> None:
        refused(words, model, [tiny.dataset], tmp_path / "out")
        assert not (tmp_path / "out").exists()

    flipped = changed(exported, tmp_path / "flipped")
    content = bytearray((flipped / "weights.safetensors").read_bytes())
    content[-5] ^= 1
    (flipped / "weights.safetensors").write_bytes(content)
    check("weights.safetensors is damaged: its digest is not the one in model.json", flipped)
    with pytest.raises(UserError, match="is damaged"):
        info(flipped)
    (flipped / "weights.safetensors").unlink()
    check("weights.safetensors is missing", flipped)
    wider = changed(exported, tmp_path / "wider")
    config = json.loads((wider / "model.json").read_text())["config"]
    check(
        r"belong to another network; the first that differ: student\.",
        changed(wider, tmp_path / "w", config=config | {"width": 4}),
    )
    save_file({"a": torch.zeros(1)}, wider / "weights.safetensors")
    digest = sha256(wider / "weights.safetensors")
    check("belong to another network", changed(wider, tmp_path / "x", weights_sha256=digest))
    check("model format 2, this version reads 1", changed(exported, tmp_path / "newer", format=2))
    check("method 'nnunet' is unknown", changed(exported, tmp_path / "method", method="nnunet"))
    for number, text in enumerate(("{", "[]", '{"format": 1}')):
        model = changed(exported, tmp_path / f"card{number}")
        (model / "model.json").write_text(text)
        check(r"model\.json: is not ", model)
    check("neither a run nor a model", tmp_path)


def forget_recipe(run: Path) -> None:
    """As the first versions wrote checkpoints: without the digest of their recipe."""
    state = checkpoint.newest(run / "checkpoints", torch.device("cpu"))
    assert state is not None
    checkpoint.save(run / "checkpoints", {key: value for key, value in state.items() if key != "recipe"})


def test_a_checkpoint_of_another_network_or_label_set_is_refused(
    trained: Path, exported: Path, train_tiny: Train, tiny: Tiny, tmp_path: Path
) -> None:
    """Of another method, of another width, of another number of classes: for `predict`, `export` and to train on."""
    other = train_tiny(tmp_path / "other", method="vnet", iterations=2)
    words = "these weights belong to another network; the first that differ: "
    recipe = read_recipe(trained)
    three = recipe.plan.model_copy(update={"labels": ("background", "organ", "vessel")})
    wider = recipe.model_copy(update={"config": recipe.config | {"width": 4}})
    for number, (checkpoints, written, first) in enumerate(
        [
            (other, recipe, r"student\."),
            (trained, wider, r"student\."),
            (trained, recipe.model_copy(update={"plan": three}), r"student\.decoder\.head"),
        ]
    ):
        run = shutil.copytree(checkpoints, tmp_path / str(number))
        write_recipe(run, written)
        refused("belongs to another run, or recipe.yaml was changed", run, [tiny.scan("t1")], tmp_path / "out")
        forget_recipe(run)
        refused(words + first, run, [tiny.scan("t1")], tmp_path / "out")
        with pytest.raises(UserError, match=words + first):
            export(run, tmp_path / "model")
    run = shutil.copytree(other, tmp_path / "resumed")
    write_recipe(run, recipe)
    forget_recipe(run)
    before = {path: path.read_bytes() for path in run.rglob("*.pt")}
    with pytest.raises(UserError, match=words):
        train_tiny(run)
    assert {path: path.read_bytes() for path in run.rglob("*.pt")} == before
    card = json.loads((exported / "model.json").read_text())["plan"] | {"labels": list(three.labels)}
    refused(
        words + r"student\.decoder\.head",
        changed(exported, tmp_path / "three", plan=card),
        [tiny.scan("t1")],
        tmp_path / "out",
    )
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "model").exists()


def test_masks_of_two_label_sets_are_not_mixed(exported: Path, predicted: Path, tiny: Tiny, tmp_path: Path) -> None:
    card = json.loads((exported / "model.json").read_text())["plan"] | {"labels": ["background", "vessel"]}
    renamed, out = changed(exported, tmp_path / "model", plan=card), shutil.copytree(predicted, tmp_path / "out")
    refused("another model or other settings", renamed, [tiny.dataset], out)


def test_a_model_is_not_written_over(
    trained: Path, train_tiny: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once more is no mistake and writes nothing; another model, one that is damaged or half copied stays as it is."""
    caplog.set_level(logging.INFO, "sscl")
    model = export(trained, tmp_path / "model")
    assert caplog.messages == []
    written = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in model.iterdir()}
    assert export(trained, model) == model
    assert caplog.messages == [f"{model}: holds this model already"]
    other = train_tiny(tmp_path / "other", seed=1, method="vnet", iterations=2)

    def refused(run: Path) -> None:
        before = {path: path.read_bytes() for path in model.iterdir()}
        with pytest.raises(UserError, match=r"holds another model, or a part of one\. Give another -o, or delete it"):
            export(run, model)
        assert {path: path.read_bytes() for path in model.iterdir()} == before

    refused(other)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in model.iterdir()} == written
    weights = model / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    refused(trained)
    weights.unlink()
    refused(trained)


def test_what_cannot_be_exported(trained: Path, tiny: Tiny, train_tiny: Train, tmp_path: Path) -> None:
    def check(words: str, run: Path, out: Path) -> None:
        with pytest.raises(UserError, match=words):
            export(run, out)

    check("is not a run folder", tiny.dataset, tmp_path / "model")
    check("is not a run folder", tmp_path / "typo", tmp_path / "model")
    empty = tmp_path / "begun"
    empty.mkdir()
    shutil.copy(trained / "recipe.yaml", empty)
    check("no complete checkpoint yet", empty, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    check("is not a model folder", trained, trained)
    check("is not a model folder", trained, trained / "recipe.yaml")
    with pytest.raises(UserError, match="is a run"):
        info(trained)


def test_a_loaded_model_holds_what_it_needs_and_no_more(
    exported: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same, from a run and from an export, whose weights file is read once."""
    expected = load_file(exported / "weights.safetensors").keys()
    assert any(name.startswith("reconstructor.encoder.") for name in expected)
    read: list[Path] = []

    def counted(path: Path) -> dict[str, torch.Tensor]:
        read.append(path)
        return load_file(path)

    monkeypatch.setattr("sscl.stages.model.load_file", counted)
    for place in (trained, exported):
        assert load_model(place, torch.device("cpu")).method.state_dict().keys() == expected
    assert read == [exported / "weights.safetensors"]


def test_an_unfinished_run_warns_wherever_it_goes(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    write_recipe(run, read_recipe(run).model_copy(update={"iterations": 9}))
    state = checkpoint.newest(run / "checkpoints", torch.device("cpu"))
    assert state is not None
    checkpoint.save(run / "checkpoints", state | {"recipe": recipe_digest(run)})
    model = export(run, tmp_path / "model")
    assert caplog.messages == [f"{run} is not finished: iteration 6 of 9"]
    caplog.clear()
    load_model(model, torch.device("cpu"))
    assert caplog.messages == [f"{model} is not finished: iteration 6 of 9"]
    caplog.clear()
    load_model(export(trained, tmp_path / "finished"), torch.device("cpu"))
    assert caplog.messages == []


@pytest.mark.slow
def test_predicts_elsewhere_without_network_or_run(exported: Path, tiny: Tiny, predicted: Path, tmp_path: Path) -> None:
    """Another folder, the run not at hand, every socket refused; files named relative to the current folder."""
    shutil.copytree(exported, tmp_path / "model")
    shutil.copy(tiny.scan("t1"), tmp_path / "t1.nii.gz")
    script = """
import socket, sys
def refuse(*arguments, **options): raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from sscl.cli import main
sys.exit(main(["predict", "model", "t1.nii.gz", "-o", "out", "--threads", "1", "--device", "cpu"]))
"""
    environment = {**os.environ, "HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    np.testing.assert_array_equal(mask(tmp_path / "out/t1.nii.gz"), mask(predicted / "t1.nii.gz"))
