"""Which cases the literature trains and tests on, as data, and where a data set holds them."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from sscl.data.source import Source
from sscl.data.split import Split

logger = logging.getLogger("sscl")


def _pancreas(numbers: Iterable[int]) -> tuple[str, ...]:
    return tuple(f"PANCREAS_{number:04d}" for number in numbers)


_MC_NET_LABELLED = (57, 18, 62, 31, 20, 17, 32, 79, 61, 64, 70, 19)
_MC_NET_TEST = (50, 59, 37, 60, 40, 74, 4, 46, 8, 54, 5, 73, 1, 39, 6, 67, 25, 51, 21, 9)
_MC_NET_OTHERS = tuple(number for number in range(1, 83) if number not in _MC_NET_LABELLED + _MC_NET_TEST)

# MC-Net's 62 + 20. Its first 12 are the labelled cases; the other 50 ascend here, because we do not know the published
# order: only with 12 labelled cases is this the published split.
PANCREAS_MC_NET = _pancreas(_MC_NET_LABELLED + _MC_NET_OTHERS)
PANCREAS_MC_NET_TEST = _pancreas(_MC_NET_TEST)

# CoraNet's, used by BCP and others: 62 + 18, without 25 and 70.
PANCREAS_CORANET = _pancreas(number for number in range(1, 64) if number != 25)
PANCREAS_CORANET_TEST = _pancreas(number for number in range(64, 83) if number != 70)

# The archive withdrew 25 and 70; 25 is said to repeat 2, and 70 to repeat 25.
PANCREAS_DUPLICATES = _pancreas((2, 25, 70))


def _kits19() -> tuple[str, ...]:
    """The 210 cases with masks, shuffled; NumPy promises that `RandomState` never changes what it draws."""
    return tuple(f"case_{number:05d}" for number in np.random.RandomState(0).permutation(210))


# Ours: no list of KiTS19's 160 + 50 was published.
KITS19_OURS = _kits19()[:160]
KITS19_OURS_TEST = _kits19()[160:]


def with_published_lists(found: Source, preset: str, order: Sequence[str], test: Sequence[str]) -> Source:
    """The source with a preset's lists, as far as its cases are there; as it is where it has lists of its own, or where
    it holds none of these cases.
    """
    if not order or found.lists or found.split_file:
        return found
    listed = (*order, *test)
    missing = [case for case in listed if case not in found.cases]
    if len(missing) == len(listed):
        logger.info("the lists of preset %s are not used: no case is called %s or alike", preset, listed[0])
        return found
    logger.info("lists of preset %s: %d cases to train on, %d to test on", preset, len(order), len(test))
    if missing:
        logger.warning(
            "%d of the %d cases that preset %s lists are not here, so this is not its protocol: %s",
            *(len(missing), len(listed), preset, ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")),
        )
    trained, tested = (tuple(case for case in cases if case in found.cases) for cases in (order, test))
    return replace(found, order=trained, lists={"test": tested})


def leak(split: Split, duplicates: Sequence[str]) -> str | None:
    """A warning where cases that are said to be one scan are both trained and scored on."""
    places = {case: name for name, cases in split.lists().items() for case in cases if case in duplicates}
    held_out = sorted({"development", "test"} & set(places.values()))
    if not held_out or len(set(places.values())) < 2:
        return None
    told = ", ".join(f"{case} ({name})" for case, name in sorted(places.items()))
    return (
        f"a leak: {told} are said to be one scan (two of them were withdrawn), so scores of '{held_out[-1]}' are "
        "optimistic. Another preset or --split leaves them out."
    )
