"""What all cases of a data set must be together: classes, sizes, copies, patients, places of masks."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from sscl.core.errors import UserError
from sscl.data.check import Finding
from sscl.data.facts import Facts
from sscl.data.matching import some
from sscl.data.placement import misplaced

Lists = Mapping[str, Sequence[str]]
_ALIKE = 0.97
"""Correlation from which on two scans of one size are told to be alike. Of different patients' it was never above 0.66
on hippocampus and left atrium; of a scan and its copy with other intensities (clipped, 8 bits), never under 0.978.
"""
_PATIENT = re.compile(r"(sub-[A-Za-z0-9]+|patient[-_]?\d+)(?![A-Za-z0-9])", re.IGNORECASE)
"""Names that say whose scan it is: BIDS's sub-01_ses-2, ACDC's patient001_frame12."""
_TOLD_APART = 5.0
"""Voxel sizes that differ from the usual one by this factor."""


def check_masks(values: Collection[tuple[int, ...]], labels: Sequence[str], where: str) -> list[Finding]:
    """All labelled masks together: every class should be there, and one at least must."""
    present = set().union(*values)
    missing = [name for value, name in enumerate(labels) if value and value not in present]
    if len(missing) == len(labels) - 1:
        return [Finding(_empty(where))]
    return [
        Finding(f"{where}: class '{name}' is in none of the labelled masks, so it cannot be learned.", fatal=False)
        for name in missing
    ]


def labels_from_values(values: Collection[tuple[int, ...]], where: str) -> tuple[str, ...]:
    """Class names where nothing declares them: the masks' values, which must be 0, 1, 2, ...

    Raises:
        UserError: a gap, for instance 0 and 255.
    """
    present = sorted(set().union({0}, *values))
    if present == [0, 255]:
        raise UserError(f"{where}: the masks hold 0 and 255, as pictures do. Replace 255 by 1.")
    if present != list(range(len(present))):
        shown = ", ".join(str(value) for value in present[:8]) + (", ..." if len(present) > 8 else "")
        raise UserError(
            f"{where}: the masks hold the values {shown}; expected 0, 1, 2, ... without a gap. Renumber them."
        )
    if len(present) == 1:
        raise UserError(_empty(where))
    return ("background", *(f"label_{value}" for value in present[1:]))


def check_assumed_size(
    shapes: Mapping[str, tuple[int, int, int]], spacing_mm: Sequence[float], longest_xy: tuple[int, int]
) -> list[Finding]:
    """A warning where files without a voxel size have another number of voxels than such files with `spacing_mm` have.

    shapes: of the scans that hold no voxel size, by file. longest_xy: see `sscl.data.presets.Preset`.
    """
    fewest, most = longest_xy
    for file, shape in shapes.items():
        if fewest <= max(shape[:2]) <= most:
            continue
        small, factor, guess = (True, 2.0, "half") if max(shape[:2]) < fewest else (False, 0.5, "full")
        limit = f"fewer than {fewest}" if small else f"more than {most}"
        other = ",".join(f"{factor * size:g}" for size in spacing_mm)
        message = (
            f"{file}: {shape[0]} x {shape[1]} voxels in x and y, {limit}: it is probably of {guess} resolution, then "
            f"add --set spacing_if_missing_mm={other}."
        )
        return [Finding(message, fatal=False)]
    return []


def check_sizes(facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """Scans that are odd among the others: where nearly all have the same number of voxels in a plane (CT: 512 x 512)
    and one has not (KiTS19's case_00160), or a voxel size that is some factor off (a wrong unit).
    """
    for plane in ((0, 1), (0, 2), (1, 2)):
        count = Counter(tuple(one.shape[axis] for axis in plane) for one in facts.values())
        (usual, number), odd = count.most_common(1)[0], len(facts) - max(count.values())
        if number < 2 or not 0 < odd <= max(1, len(facts) // 10):
            continue
        for case, one in facts.items():
            if tuple(one.shape[axis] for axis in plane) != usual:
                axes = " and ".join("xyz"[axis] for axis in plane)
                yield Finding(
                    f"case '{case}': an odd size: shape {_by(one.shape)}, where {number} of {len(facts)} scans have "
                    f"{_by(usual)} voxels in {axes}. Look at it.",
                    fatal=False,
                )
        break
    middle = np.median([one.spacing_mm for one in facts.values()], axis=0).tolist()
    for case, one in facts.items():
        factor = np.divide(one.spacing_mm, middle)
        if max(factor.max(), 1 / factor.min()) > _TOLD_APART:
            yield Finding(
                f"case '{case}': an odd voxel size: {_by(one.spacing_mm)} mm, usual are {_by(middle)} mm. "
                "Is the unit right?",
                fatal=False,
            )


def check_hounsfield(facts: Mapping[str, Facts], channels: Sequence[str]) -> list[Finding]:
    """Channels called CT are taken for Hounsfield units, in which air is -1000; every scan must have them."""
    odd = [case for case, one in facts.items() if one.lowest >= 0]
    if any(name.strip().upper() != "CT" for name in channels) or not odd:
        return []
    some_only = f"no value under 0, which others have, in {some(odd)}"
    which = "no scan has a value under 0" if len(odd) == len(facts) else some_only
    message = (
        f"channel CT: {which}, so these are no Hounsfield units, in which air is -1000. A window in Hounsfield units "
        "would be wrong: get the scans with their rescaling, or rename the channel."
    )
    return [Finding(message, fatal=False)]


def check_window(window: Sequence[float], preset: str, channels: Sequence[str]) -> list[Finding]:
    """A preset's window is in Hounsfield units: nothing but CT has them. Where nothing names the channels, they are
    called `image`, and may be CT.
    """
    other = [name for name in channels if name.strip().upper() != "CT" and not name.startswith("image")]
    if not other:
        return []
    message = (
        f"preset {preset} clips values to {window[0]:g} to {window[1]:g}, Hounsfield units of CT, but the channel is "
        f"called '{other[0]}': much may be lost. Choose another preset or --set window, or correct the channel's name."
    )
    return [Finding(message, fatal=False)]


def check_copies(lists: Lists, facts: Mapping[str, Facts], paths: Mapping[str, str]) -> Iterator[Finding]:
    """One scan under two names: a leak where the lists differ. Voxels are compared, so that a copy in another file
    format is found; a copy with other intensities is a suspicion.

    paths: the first file of each case.
    """
    known = [(name, case) for name, cases in lists.items() for case in cases if case in facts]
    first: dict[str, tuple[str, str]] = {}
    masks: dict[str, str] = {}
    for name, case in known:
        other_name, other = first.setdefault(facts[case].voxels, (name, case))
        if other_name != name:
            yield Finding(
                f"{paths[case]}: identical to case '{other}': a duplicate in '{name}' and '{other_name}' is a leak. "
                "Remove one."
            )
        elif other != case:
            yield Finding(f"{paths[case]}: identical to case '{other}': a duplicate within '{name}'.", fatal=False)
        mask = facts[case].mask
        if mask and any(mask.values):
            twin = masks.setdefault(mask.voxels, case)
            if twin != case and facts[twin].voxels != facts[case].voxels:
                yield Finding(
                    f"case '{case}': its mask is identical to that of case '{twin}', which is another scan: one of the "
                    "two has the wrong mask.",
                    fatal=False,
                )
    yield from _alike([(name, case) for name, case in known if first[facts[case].voxels][1] == case], facts)


def check_channels(facts: Mapping[str, Facts], names: Sequence[str]) -> Iterator[Finding]:
    """One file as two channels, of one case or of two that are otherwise no copies."""
    first: dict[str, tuple[str, str]] = {}
    for case, one in facts.items() if len(names) > 1 else ():
        for name, digest in zip(names, one.channels, strict=True):
            other_name, other = first.setdefault(digest, (name, case))
            if (other_name, other) != (name, case) and (other == case or facts[other].voxels != one.voxels):
                yield Finding(
                    f"case '{case}': its channel {name} is identical to channel {other_name} of case '{other}': one of "
                    "the two files is in the wrong place.",
                    fatal=False,
                )


def check_values_scored(
    facts: Mapping[str, Facts], held_out: Sequence[str], labels: Sequence[str], paths: Mapping[str, str]
) -> Iterator[Finding]:
    """Values of masks to score against, where the labelled masks are all that declares `labels`. paths: the masks'."""
    for case in held_out:
        mask = facts[case].mask if case in facts else None
        if mask and (strange := [value for value in mask.values if not 0 <= value < len(labels)]):
            yield Finding(
                f"{paths[case]}: the mask holds the label value {strange[0]}, which no labelled mask has: it cannot be "
                "learned or scored. Declare it with --set labels, or correct the mask."
            )


def _alike(known: Sequence[tuple[str, str]], facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """Scans of one size whose intensities go up and down together. known: list and case, without exact copies."""
    groups = defaultdict(list)
    for name, case in known:
        groups[facts[case].shape].append((name, case))
    for group in groups.values():
        samples = np.stack([facts[case].sample for _, case in group]).astype(np.float32)
        for k in range(1, len(group)):
            closeness = samples[:k] @ samples[k]
            near = int(closeness.argmax())
            if closeness[near] > _ALIKE:
                (name, case), (other_name, other) = group[k], group[near]
                where = f"in '{name}' and '{other_name}' a leak" if name != other_name else f"both in '{name}'"
                yield Finding(
                    f"case '{case}': nearly the same scan as case '{other}' (correlation {closeness[near]:.3f}), as a "
                    f"copy with other intensities has it: {where}. Look at both.",
                    fatal=False,
                )


def check_patients(lists: Lists, dicom: Mapping[str, str]) -> Iterator[Finding]:
    """One patient's scans both trained on and scored on. dicom: case to PatientID, which no message repeats; an ID that
    all have is taken for an anonymiser's.
    """
    whose = dict(dicom) if len(set(dicom.values())) > 1 else {}
    for cases in lists.values():
        whose |= {case: match[1].lower() for case in cases if (match := _PATIENT.match(case))}
    groups = {"labelled": "training", "unlabelled": "training"}
    seen: dict[str, tuple[str, str]] = {}
    for name, cases in lists.items():
        for case in cases:
            if case not in whose:
                continue
            first_name, first = seen.setdefault(whose[case], (name, case))
            if groups.get(first_name, first_name) != groups.get(name, name):
                yield Finding(
                    f"case '{case}' ('{name}') and case '{first}' ('{first_name}') are of one patient: scores will be "
                    "too good. Put a patient's scans into one list.",
                    fatal=False,
                )


def check_places(facts: Mapping[str, Facts], paths: Mapping[str, str]) -> Iterator[Finding]:
    """Masks that look mirrored or shifted. paths: the mask's file of each case."""
    places = {case: one.mask.place for case, one in facts.items() if one.mask and one.mask.place}
    for case, message in misplaced(places).items():
        yield Finding(f"{paths[case]}: {message}", fatal=False)


def check_names(cases: Collection[str]) -> Iterator[Finding]:
    """Names that some disks take for one: macOS and Windows do not tell case, macOS not how accents are written."""
    groups = defaultdict(list)
    for case in cases:
        groups[unicodedata.normalize("NFC", case).casefold()].append(case)
    for names in groups.values():
        if len(names) > 1:
            told = ", ".join(f"'{name}'" for name in names)
            yield Finding(
                f"cases {told} differ only in upper and lower case, or in how accents are written: some disks take "
                "them for one.",
                fatal=False,
            )


def _empty(where: str) -> str:
    return f"{where}: no foreground in any labelled mask: all are empty. Label the organ in at least one scan."


def _by(sizes: Sequence[float]) -> str:
    return "x".join(f"{size:g}" for size in sizes)
