"""Masks that something promises: the layout, `dataset.json`, or the split."""

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sscl.core.errors import UserError, refuse
from sscl.data.matching import some
from sscl.data.source import Source
from sscl.data.split import Split
from sscl.volumes.files import case_stem

logger = logging.getLogger("sscl")


def check_promises(found: Source, explicit: bool) -> None:
    """Masks that the layout promises. Where the user says what is labelled (`explicit`), only that is promised.

    Raises:
        UserError: a promised mask or scan is not there.
    """
    missing = [case for case in found.order if case not in found.masked]
    if found.every_mask_promised and missing and not explicit:
        raise UserError(
            f"{found.root / missing[0]}: the label (laendo.nrrd) is missing. Restore it, or name the labelled cases "
            "with --labelled or --split."
        )
    promised, present = found.num_training, len(found.order) - len(missing)
    if promised is None or promised == present:
        return
    file = found.files[0]
    if promised > len(found.order):
        raise UserError(
            f"{file}: numTraining is {promised}, but imagesTr holds {len(found.order)} scans. Correct one of them."
        )
    who = f": no mask (label) for {some(missing)}" if promised > present else ""
    message = f"{file}: numTraining promises {promised} masks, {present} are there{who}."
    if explicit:
        logger.warning(message)
        return
    raise UserError(
        f"{message} Correct numTraining or the masks, or name the labelled cases with --labelled or --split."
    )


def check_pairs(declared: Mapping[str, Any], path: Path, found: Source) -> None:
    """The pairs that `dataset.json` states, if it does, against those of the names, which count.

    Raises:
        UserError: it states another mask for a scan.
    """
    owners = {case_stem(file): name for name, case in found.cases.items() for file in case.images}
    owners |= {name: name for name in found.cases}  # the Decathlon's names, after a conversion added _0000
    mistakes, gone, stated = [], [], set()
    for image, label in _pairs(declared):
        name = owners.get(image)
        mask = found.cases[name].label if name else None
        stated.add(name)
        if mask is None:
            gone.append(label if name else image)
        elif case_stem(mask) != label:
            mistakes.append(
                f"{path}: the mask of '{image}' is '{label}' there, but '{case_stem(mask)}' by its name. "
                "Give both one name, or correct the list."
            )
    refuse(mistakes)
    if gone:
        logger.warning("%s: names files that are not there: %s.", path, some(gone))
    if stated and (more := [name for name in found.order if name in found.masked and name not in stated]):
        logger.warning("%s: does not list %s, with a mask; used all the same.", path, some(more))


def _pairs(declared: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Scan and mask, without folder and ending, of the Decathlon's `training` and nnU-Net's `dataset`."""
    training, dataset = declared.get("training"), declared.get("dataset")
    listed = training if isinstance(training, list) else list(dataset.values()) if isinstance(dataset, dict) else []
    for pair in (pair for pair in listed if isinstance(pair, dict)):
        images, label = pair.get("image", pair.get("images")), pair.get("label")
        image = images[0] if isinstance(images, list) and images else images
        if isinstance(image, str) and isinstance(label, str):
            yield _name(image), _name(label)


def _name(file: str) -> str:
    return case_stem(Path(re.split(r"[/\\]", file)[-1]))


def require_masks(found: Source, split: Split) -> None:
    """Masks that the split promises: those of labelled and development cases. Test cases may be there to be predicted
    only, or their masks lie elsewhere, out of training's reach.

    Raises:
        UserError: one is not there.
    """
    for name, cases in (("labelled", split.labelled), ("development", split.development)):
        missing = [case for case in cases if case not in found.masked]
        if missing:
            raise UserError(
                f"{found.root}: the mask (label) is missing for {some(missing)}, but the split has it as {name}. "
                f"Add the mask, or choose other cases{_INSTEAD.get(name, '')}."
            )
    if without := [case for case in split.test if case not in found.masked]:
        logger.warning(
            "%d of %d test cases have no mask: they can be predicted, but scored only against masks from elsewhere: %s",
            len(without),
            len(split.test),
            some(without),
        )


_INSTEAD = {"labelled": "; without --labelled, all that have a mask are taken"}
