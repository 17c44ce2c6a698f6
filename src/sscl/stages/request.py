"""What a user asks of a folder of scans, and the folder as that makes it: the beginning of `check` and `prepare`."""

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sscl.core.errors import UserError, refuse
from sscl.core.plan import Spacing
from sscl.data.layouts import discover
from sscl.data.planning import read_settings
from sscl.data.presets import Preset
from sscl.data.presets import preset as find_preset
from sscl.data.promises import check_promises, require_masks
from sscl.data.published_lists import leak, with_published_lists
from sscl.data.source import Source
from sscl.data.split import Split
from sscl.stages.assign import choose
from sscl.stages.cases import require_masks_to_crop
from sscl.stages.dataset import is_dataset
from sscl.stages.folder import resolved

logger = logging.getLogger("sscl")

LONGEST = 255 - len("._0000.nii.gz.12345678.tmp")
"""Bytes of a case's name: what file systems take, less the most that is added to it while a file is written."""


@dataclass(frozen=True)
class Request:
    """The arguments of `check` and `prepare`: see there."""

    preset: str | None = None
    split_file: Path | None = None
    labelled: int | str | None = None
    unlabelled: int | str | None = None
    development: str | None = None
    test: str | None = None
    images: Path | None = None
    labels: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def config(self, source: Path) -> dict[str, Any]:
        """As `stage.json` keeps it."""
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(self).items()}
        return {"source": str(resolved(source)), **plain}


@dataclass(frozen=True)
class Opened:
    """A folder, found and named; nothing in it is read yet but what describes it."""

    found: Source
    request: Request
    preset: Preset | None
    fixed: Mapping[str, Any]
    """Fields of the plan that the preset and the user set."""

    @property
    def spacing_if_missing_mm(self) -> Spacing | None:
        """The voxel size of files that hold none."""
        spacing: Spacing | None = self.fixed.get("spacing_if_missing_mm")
        return spacing

    @property
    def crops(self) -> bool:
        """Whether every scan is cropped to its mask, for which all masks are opened."""
        return self.preset is not None and self.preset.mask_crop is not None


def opened(source: Path, request: Request) -> Opened:
    """Raises UserError for a folder that is no data set, and settings that cannot be."""
    if is_dataset(source):
        raise UserError(
            f"{source}: is a prepared data set. Train on it, sscl train {source} -o RUN, or name the folder of scans "
            "that it was made from."
        )
    fields = read_settings(request.settings)
    known = find_preset(request.preset) if request.preset else None
    fixed = _merged(known.plan if known else {}, fields)
    found = _renamed(_relabelled(discover(source, request.images, request.labels), known, fields), fixed)
    return Opened(found, request, known, fixed)


def assigned(at: Opened) -> tuple[Split, Path | None]:
    """Which case is for what, and the file that says so, if one does.

    Raises:
        UserError: a split that cannot be.
    """
    request, found = at.request, at.found
    if at.preset and not request.split_file:
        found = with_published_lists(found, request.preset or "", at.preset.order, at.preset.test)
    return choose(
        found, request.split_file, request.labelled, request.unlabelled, request.development, request.test
    )  # fmt: skip


def check_assigned(at: Opened, split: Split) -> None:
    """Raises UserError for a mask that is promised and not there, and names that no file can have."""
    request = at.request
    refuse_long_names(case for cases in split.lists().values() for case in cases)
    check_promises(at.found, explicit=request.split_file is not None or request.labelled is not None)
    require_masks(at.found, split)
    if at.crops:
        require_masks_to_crop(at.found, split, request.preset or "")
    if at.preset and (message := leak(split, at.preset.duplicates)):
        logger.warning(message)


def refuse_long_names(cases: Iterable[str]) -> None:
    """Raises UserError for cases after which no file can be called."""
    refuse(
        f"case '{case}': the name has {len(os.fsencode(case))} bytes, and with more than {LONGEST} the files that are "
        "called after it cannot be written. Rename its files."
        for case in cases
        if len(os.fsencode(case)) > LONGEST
    )


def inputs_read(at: Opened, split: Split) -> tuple[Sequence[str], Sequence[str]]:
    """The cases whose scans, and whose masks, are stored: all cases' only where a preset crops to them."""
    if at.crops:
        every = [case for cases in split.lists().values() for case in cases]
        return every, every
    return (*split.labelled, *split.unlabelled), split.labelled


def _relabelled(found: Source, known: Preset | None, fields: Mapping[str, Any]) -> Source:
    """With the preset's classes, unless the user names others."""
    if known is None or known.labels is None or "labels" in fields:
        return found
    merged = ", ".join(f"{stored} is read as {value}" for stored, value in known.label_map.items())
    logger.info("labels of the preset: %s; in masks %s (--set labels=... keeps all)", ", ".join(known.labels), merged)
    return replace(found, labels=known.labels, label_map={**found.label_map, **known.label_map})


def _renamed(found: Source, fixed: dict[str, Any]) -> Source:
    """Channels, labels and the ignore label as the user names them; taken out of `fixed`."""
    named = {key: fixed.pop(key) for key in ("channels", "labels", "ignore_label") if key in fixed}
    return replace(found, **named)


def _merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """`second` wins; of `intensity`, field by field."""
    merged = {**first, **second}
    if "intensity" in merged:
        merged["intensity"] = {**first.get("intensity", {}), **second.get("intensity", {})}
    return merged
