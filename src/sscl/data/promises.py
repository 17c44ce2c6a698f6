"""Masks that something promises: the layout, `dataset.json`, or the split."""

import logging

from sscl.core.errors import UserError
from sscl.data.matching import some
from sscl.data.source import Source
from sscl.data.split import Split

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
