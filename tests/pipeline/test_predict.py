"""`predict` and `export`: masks on the scan's own grid, from a run or an exported model, and what is refused."""

import json
import logging
import os
import pickletools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_set import TEST, Tiny, ball, save_nifti

from sscl.core.errors import UserError
from sscl.core.files import read_sealed, sha256, write_sealed
from sscl.engine import checkpoint
from sscl.engine.run import read_recipe, recipe_digest, write_recipe
from sscl.stages.model import export, info, load_model
from sscl.stages.predict import predict

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


def test_every_orientation_gives_the_same_mask_in_the_patient(
    predicted: Path, trained: Path, tiny: Tiny, tmp_path: Path
) -> None:
    scan, expected = nibabel.load(tiny.scan("t1")), nibabel.load(predicted / "t1.nii.gz")
    for code in ("LPS", "PIR", "ASL", "SRP"):
        turned = scan.as_reoriented(_to(scan, code))
        nibabel.save(turned, tmp_path / f"{code}.nii.gz")
        (path,) = run_predict(trained, [tmp_path / f"{code}.nii.gz"], tmp_path / "out" / code)
        found = nibabel.load(path)
        assert found.shape == turned.shape
        np.testing.assert_allclose(found.affine, turned.affine, atol=1e-6)
        np.testing.assert_array_equal(mask(path), np.asanyarray(expected.as_reoriented(_to(expected, code)).dataobj))


def _to(image: Any, code: str) -> NDArray[np.float64]:
    axes = nibabel.orientations
    return axes.ornt_transform(axes.io_orientation(image.affine), axes.axcodes2ornt(code))


@pytest.mark.parametrize("shape", [(10, 9, 8), (17, 21, 5)])
def test_small_oblique_scans_of_another_spacing(shape: tuple[int, ...], trained: Path, tmp_path: Path) -> None:
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag([0.8, -1.3, 1.9]), (-30, 12, 7)
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
    with pytest.raises(UserError) as caught:
        run_predict(trained, [scans], tmp_path / "out")
    message = str(caught.value)
    assert message.startswith("3 of 5 scans were not predicted:")
    assert all(f"\n  {case}: {scans / case}.nii.gz: " in message for case in "bde")
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
    refused("does not exist", trained, [tmp_path / "void"], tmp_path / "out")
    refused("--split 'tset' is unknown. Did you mean 'test'", trained, [tiny.dataset], tmp_path / "out", split="tset")
    refused("list 'development' is empty", trained, [tiny.dataset], tmp_path / "out", split="development")
    refused("stride.* longer than the window", trained, [one], tmp_path / "out", stride=(17, 8, 8))
    refused(r"stride = \(0, 8, 8\): expected more than 0", trained, [one], tmp_path / "out", stride=(0, 8, 8))
    refused("--batch 0", trained, [one], tmp_path / "out", batch=0)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in scans.iterdir()] == ["a.nii.gz"]


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
