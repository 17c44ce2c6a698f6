"""`sscl predict`: scans to masks on their own grid, with a run or an exported model, offline."""

import io
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sscl.core.errors import UserError, unknown
from sscl.core.files import sha256, write_atomic
from sscl.core.plan import Plan, Spacing
from sscl.data.check import check_image
from sscl.data.layouts import scans_in
from sscl.data.preprocess import on_grid, preprocess, restore
from sscl.engine.run import RECIPE, only_writer, read_recipe
from sscl.engine.window import Size, sliding_window
from sscl.ops.pseudo import largest_components
from sscl.stages.dataset import is_dataset, open_dataset
from sscl.stages.device import peak_memory_bytes, pick_device, pick_precision, set_threads, told_if_memory_ends
from sscl.stages.folder import STAGE, digest, read_stage, resolved, write_stage
from sscl.stages.model import CARD, Model, Select, load_model
from sscl.stages.request import refuse_long_names
from sscl.volumes.files import read_image, write_label
from sscl.volumes.geometry import from_ras, to_ras

log = logging.getLogger("sscl")


@dataclass(frozen=True)
class _Scan:
    """Its files, and the voxel size that they have if they hold none."""

    files: Sequence[Path]
    spacing_if_missing_mm: Spacing | None


@dataclass(frozen=True)
class _Options:
    """How every scan is predicted; `plan` with the caller's stride and weighting."""

    plan: Plan
    probabilities: bool
    largest_component: bool
    batch: int
    place: torch.device
    precision: str


@dataclass(frozen=True)
class _Done:
    """A predicted case: digests of its scan's files, of its mask, and of its probabilities if they were asked for."""

    scan: list[str]
    mask: str
    maps: str | None


def predict(
    model: Path,
    inputs: Sequence[Path],
    out: Path,
    *,
    select: Select | None = None,
    split: str = "test",
    stride: Size | None = None,
    weighting: str | None = None,
    probabilities: bool = False,
    largest_component: bool = False,
    batch: int = 4,
    device: str = "auto",
    precision: str = "auto",
    threads: int | None = None,
    on_case: Callable[[str, int, int], None] = lambda case, number, total: None,
) -> list[Path]:
    """Write OUT/<case>.nii.gz for every scan; equal scans that the same model and settings have done are skipped.

    Args:
        model: a run folder or an exported model.
        inputs: scans, folders of scans, or a prepared data set, of which the cases of `split` are taken.
        select: of a run, its last weights (None: these) or those best on its validation cases; a model has its own.
        stride, weighting: instead of the plan's.
        probabilities: also write OUT/<case>.npz, float16 "probabilities" (classes, x, y, z) on the scan's own grid.
        largest_component: keep each class's largest 26-connected component.
        batch: windows a network call.
        on_case: gets each case before it is predicted, its number and how many there are.

    Raises:
        UserError: nothing to predict, an output folder with other predictions, or, after all others are done, the scans
            that could not be predicted, each with its cause.
    """
    if batch < 1:
        raise UserError(f"--batch {batch}: expected 1 or more.")
    began, place = time.monotonic(), pick_device(device)
    set_threads(threads)
    loaded = load_model(model, place, select)
    plan = _with_options(loaded.plan, stride, weighting)
    options = _Options(plan, probabilities, largest_component, batch, place, pick_precision(precision, place))
    scans = _scans(inputs, split, plan)
    _refuse_overwriting(scans, out)
    config = _config(loaded, options)
    out.mkdir(parents=True, exist_ok=True)
    failures = []
    with only_writer(out) as require_ours:
        done = _done(out, config, list(plan.labels))
        _write_stage(out, config, options, done, began)  # the folder is known as ours before its first mask
        for number, (case, scan) in enumerate(scans.items(), start=1):
            require_ours()
            try:
                known = _known_by(scan, plan)
                if _is_done(done.get(case), known, case, out, probabilities):
                    log.info("%d/%d %s: done before", number, len(scans), case)
                    continue
                on_case(case, number, len(scans))
                _forget(done.pop(case, None), case, out)
                _predict_case(loaded, case, scan, out, options)
            except UserError as error:
                failures.append(f"{case}: {error}")
                continue
            done[case] = _Done(
                known, sha256(out / f"{case}.nii.gz"), sha256(out / f"{case}.npz") if probabilities else None
            )
            _write_stage(out, config, options, done, began)
        _write_stage(out, config, options, done, began)
    if failures:
        raise UserError(f"{len(failures)} of {len(scans)} scans were not predicted:\n  " + "\n  ".join(failures))
    return [out / f"{case}.nii.gz" for case in scans]


def default_inputs(model: Path) -> list[Path]:
    """The data set that a run was trained on.

    Raises:
        UserError: an exported model, which does not know any; or none at all.
    """
    if (model / RECIPE).is_file():
        return [Path(read_recipe(model).dataset)]
    if not (model / CARD).is_file():
        raise UserError(f"{model} is neither a run nor a model. `sscl train` makes a run, `sscl export` a model.")
    raise UserError("predict needs scans: sscl predict MODEL SCANS... -o MASKS.")


def _predict_case(model: Model, case: str, files: _Scan, out: Path, options: _Options) -> None:
    plan, place = options.plan, options.place
    scan = read_image(files.files, len(plan.channels), files.spacing_if_missing_mm)
    ras = to_ras(scan)
    for finding in check_image(ras, str(files.files[0])):
        if finding.fatal:
            raise UserError(finding.message)
        log.warning(finding.message)
    try:
        image = torch.from_numpy(preprocess(ras, plan))
    except UserError as error:
        raise UserError(f"{files.files[0]}: {error}") from None
    with (
        told_if_memory_ends("Try --batch 1, or --device cpu."),
        torch.autocast(place.type, torch.bfloat16, enabled=options.precision == "bf16"),
    ):
        p = sliding_window(
            model.method.predict, image, plan.patch, plan.stride, plan.weighting, options.batch, place
        ).numpy()
    if not np.isfinite(p).all():
        raise UserError("the network's output is not finite. Try --precision float32.")
    label = restore(p, ras, plan)
    if options.largest_component:
        label = largest_components(torch.from_numpy(label).long().unsqueeze(0))[0].numpy()
    if options.probabilities:
        maps = np.stack([from_ras(channel, scan) for channel in on_grid(p, ras, plan)]).astype(np.float16)
        packed = io.BytesIO()
        np.savez_compressed(packed, probabilities=maps)
        write_atomic(out / f"{case}.npz", lambda file: file.write(packed.getbuffer()))
    write_label(out / f"{case}.nii.gz", from_ras(label, scan), scan)


def _with_options(plan: Plan, stride: Size | None, weighting: str | None) -> Plan:
    chosen: dict[str, Any] = {}
    if stride is not None:
        chosen["stride"] = stride
    if weighting is not None:
        chosen["weighting"] = weighting
    plan = plan.override(chosen, "predict")
    if any(step > length for step, length in zip(plan.stride, plan.patch, strict=True)):
        raise UserError(f"stride {plan.stride} is longer than the window {plan.patch}: it would leave voxels out.")
    return plan


def _scans(inputs: Sequence[Path], split: str, plan: Plan) -> dict[str, _Scan]:
    """All scans by case name.

    Raises:
        UserError: two scans that would be written to one file, or a name that no file can have.
    """
    scans: dict[str, _Scan] = {}
    for path in inputs:
        for case, scan in _found(path, split, plan).items():
            if case in scans:
                raise UserError(
                    f"{scans[case].files[0]} and {scan.files[0]} would both become {case}.nii.gz. Predict them apart."
                )
            scans[case] = scan
    refuse_long_names(scans)
    return scans


def _found(path: Path, split: str, plan: Plan) -> dict[str, _Scan]:
    """The scans of one input. A data set says what its channels are, and how large the voxels of files without a size
    are; of other scans both are taken to be as those that the model was trained on.
    """
    if not is_dataset(path):
        if plan.intensity.scaling == "none":
            log.warning(
                "%s: this model takes intensities as they are, so the scans must be normalised as its training scans "
                "were (preset la-literature: z-scores of the whole scan).",
                path,
            )
        found = scans_in(path, len(plan.channels))
        return {case: _Scan(files, plan.spacing_if_missing_mm) for case, files in found.items()}
    data = open_dataset(path, with_store=False)
    lists = data.split.lists()
    if split not in lists:
        raise unknown("--split", split, lists)
    if not lists[split]:
        raise UserError(f"{path}: its list '{split}' is empty. Choose another --split.")
    _refuse_other_channels(path, data.plan.channels, plan.channels)
    return {case: _Scan(data.image_paths(case), data.plan.spacing_if_missing_mm) for case in lists[split]}


def _refuse_other_channels(dataset: Path, channels: Sequence[str], expected: Sequence[str]) -> None:
    if [name.strip().casefold() for name in channels] != [name.strip().casefold() for name in expected]:
        raise UserError(
            f"{dataset}: its channels are {', '.join(channels)}; the model was trained on {', '.join(expected)}, in "
            f"this order. If only their names differ, prepare the data set with --set channels={','.join(expected)}."
        )


def _known_by(scan: _Scan, plan: Plan) -> list[str]:
    """Digests of the files, and the voxel size that is taken for them, if it is not the model's own."""
    other = [] if scan.spacing_if_missing_mm == plan.spacing_if_missing_mm else [str(scan.spacing_if_missing_mm)]
    return [*map(digest, scan.files), *other]


def _refuse_overwriting(scans: Mapping[str, _Scan], out: Path) -> None:
    """Output names must not hit inputs, nor lie in the folder that holds the folders of the scans."""
    there = resolved(out)
    for scan in scans.values():
        for file in scan.files:
            own, target = file.parent.resolve(), file.resolve().parent  # of a link
            if there in (own, target):
                raise UserError(f"{out} is the folder of the scans; predictions would overwrite them. Give another -o.")
            if there == own.parent:
                raise UserError(f"{out} holds the scans, in {own.name}, and is left untouched. Give another -o.")


def _config(model: Model, options: _Options) -> dict[str, Any]:
    """What decides a mask, beside its scan: other values belong into another folder."""
    return {
        "weights": model.digest,
        "select": model.select,
        "stride": list(options.plan.stride),
        "weighting": options.plan.weighting,
        "largest_component": options.largest_component,
        "precision": options.precision,
    }


def _done(out: Path, config: Mapping[str, Any], labels: Sequence[str]) -> dict[str, _Done]:
    """Cases that this model has predicted into this folder."""
    if not (out / STAGE).exists():
        if any(file.name.endswith(".nii.gz") and not file.name.startswith(".") for file in out.iterdir()):
            raise UserError(f"{out} holds masks that `sscl predict` did not write. Give another -o.")
        return {}
    stage = read_stage(out)
    before = {"select": "last", **stage.get("config", {})}  # the first versions had no other
    if before != dict(config) or stage.get("labels") != list(labels):
        raise UserError(f"{out} holds predictions of another model or other settings. Give another -o, or empty it.")
    scans, maps = stage.get("inputs", {}), stage.get("probabilities", {})
    return {case: _Done(scans.get(case, []), mask, maps.get(case)) for case, mask in stage.get("cases", {}).items()}


def _is_done(before: _Done | None, scan: list[str], case: str, out: Path, probabilities: bool) -> bool:
    """Whether this very scan was predicted, and its files are still there as they were written."""
    mask, maps = out / f"{case}.nii.gz", out / f"{case}.npz"
    return (
        before is not None
        and before.scan == scan
        and mask.exists()
        and sha256(mask) == before.mask
        and (not probabilities or (maps.exists() and sha256(maps) == before.maps))
    )


def _forget(before: _Done | None, case: str, out: Path) -> None:
    """Remove what was predicted, perhaps from another scan of the same name: it must not stay if this one fails."""
    if before is not None:
        (out / f"{case}.nii.gz").unlink(missing_ok=True)
        (out / f"{case}.npz").unlink(missing_ok=True)


def _write_stage(
    out: Path, config: Mapping[str, Any], options: _Options, done: Mapping[str, _Done], began: float
) -> None:
    write_stage(
        out,
        "predict",
        config=config,
        inputs={case: entry.scan for case, entry in done.items()},
        began=began,
        uses_torch=True,
        labels=list(options.plan.labels),
        cases={case: entry.mask for case, entry in done.items()},
        probabilities={case: entry.maps for case, entry in done.items() if entry.maps},
        peak_memory_bytes=peak_memory_bytes(options.place),
    )
