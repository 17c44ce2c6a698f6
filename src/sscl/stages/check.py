"""`sscl check`: all that is wrong with a folder of scans and masks, in one list; `prepare` begins with the same."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sscl
from sscl.core.errors import UserError
from sscl.core.files import SEAL, json_digest, read_json, unsealed, write_sealed
from sscl.data.check import Finding, Pair, check_image, check_pair
from sscl.data.check_set import (
    Lists,
    check_assumed_size,
    check_channels,
    check_copies,
    check_hounsfield,
    check_masks,
    check_names,
    check_patients,
    check_places,
    check_sizes,
    check_values_scored,
    check_window,
    labels_from_values,
)
from sscl.data.facts import Facts, facts_of, from_json, to_json
from sscl.data.source import Source
from sscl.stages.assign import announce, content_digest, is_h5
from sscl.stages.cases import image_of, pair_of
from sscl.stages.folder import captured_warnings, commit, counted
from sscl.stages.request import Opened, Request, assigned, check_assigned, opened
from sscl.volumes.dicom import patient_of

logger = logging.getLogger("sscl")
T = TypeVar("T")

OPENED = ("labelled", "development", "test")
"""Lists whose masks `check` opens, to see whether they can be used; those of unlabelled cases stay closed."""


@dataclass(frozen=True)
class Seen:
    """One case, read."""

    findings: tuple[Finding, ...]
    facts: Facts | None
    """None: its scan, or its mask that was to be opened, cannot be read."""


@dataclass(frozen=True)
class CheckResult:
    """What was found, errors first, and in how many cases it was looked for."""

    source: Path
    findings: tuple[Finding, ...]
    cases: Mapping[str, int]
    """List to number."""
    unchanged: int
    """Cases that were not read again, because their files are as they were."""

    @property
    def errors(self) -> int:
        """How many findings `prepare` would stop at."""
        return sum(finding.fatal for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        found = [{"level": level(finding), "message": finding.message} for finding in self.findings]
        return {"source": str(self.source), "cases": dict(self.cases), "errors": self.errors, "findings": found}


def level(finding: Finding) -> str:
    return "error" if finding.fatal else "warning"


def check(source: Path, out: Path | None = None, **options: Any) -> CheckResult:
    """Read every scan of the split, and every mask but those of unlabelled cases; nothing in `source` is changed.

    Args:
        source: a folder of scans.
        out: a JSON file for the findings; what it holds of an earlier check is not read again if unchanged.
        options: as for `sscl.stages.prepare.prepare`.

    Raises:
        UserError: `out` cannot be used. What is wrong with the source is a finding.
    """
    before = _known(out) if out else {}
    findings: list[Finding] = []
    cases: dict[str, Seen] = {}
    keys: dict[str, str] = {}
    lists: Lists = {}
    unchanged = 0
    at = _attempt(findings, lambda: opened(source, Request(**options)))
    if at:
        lists = _lists(at, findings)
        for case, with_mask in counted(to_look_at(at.found, lists, OPENED), "read"):
            keys[case] = _key(at, case, with_mask)
            if known := before.get(keys[case]):
                cases[case] = known
                unchanged += 1
                continue
            with captured_warnings() as said:
                seen, _ = look(at, case, with_mask)
            told = (*(Finding(message, fatal=False) for message in dict.fromkeys(said)), *seen.findings)
            cases[case] = Seen(told, seen.facts)
        findings += [finding for seen in cases.values() for finding in seen.findings]
        findings += judge(at, lists, cases)
    ordered = sorted(dict.fromkeys(findings), key=lambda finding: not finding.fatal)
    result = CheckResult(source, tuple(ordered), {name: len(names) for name, names in lists.items()}, unchanged)
    if out:
        remembered = {keys[case]: _seen_to_json(seen) for case, seen in cases.items() if keys[case]}
        write_sealed(out, {**result.to_json(), "known": remembered})
    return result


# What `prepare` shares


def to_look_at(found: Source, lists: Lists, masks_of: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Cases, and whether to open their masks: those of the lists `masks_of`, as far as there are any."""
    for name, cases in lists.items():
        for case in cases:
            yield case, name in masks_of and case in found.masked


def look(at: Opened, case: str, with_mask: bool) -> tuple[Seen, Pair | None]:
    """Read one case and apply the rules for one scan and its mask."""
    found, findings, pair = at.found, [], None
    try:
        image = image_of(found, case, at.spacing_if_missing_mm)
        findings += check_image(image, str(found.cases[case].images[0]))
        if with_mask:
            pair = pair_of(found, case, image, at.spacing_if_missing_mm)
            findings += check_pair(pair, str(found.cases[case].label))
    except UserError as error:
        return Seen((*findings, *(Finding(str(message)) for message in error.args)), None), None
    return Seen(tuple(findings), facts_of(image, pair)), pair


def judge(at: Opened, lists: Lists, cases: Mapping[str, Seen]) -> list[Finding]:
    """Apply the rules for all cases together, as far as they could be read."""
    found = at.found
    facts = {case: seen.facts for case, seen in cases.items() if seen.facts}
    scans = {case: str(found.cases[case].images[0]) for case in facts}
    masks = {case: str(found.cases[case].label) for case in facts}
    findings = [*check_names(found.cases)]
    if facts:
        findings += [*check_sizes(facts), *check_hounsfield(facts, found.channels)]
        findings += [*_classes(at, lists, cases), *check_channels(facts, found.channels)]
        findings += [*check_copies(lists, facts, scans), *check_places(facts, masks)]
        findings += check_patients(lists, _patients(found, facts))
        findings += _window(at)
        findings += _assumed_size(at, {scans[case]: one.shape for case, one in facts.items()})
    return findings


def masks_folder(found: Source, labelled: Sequence[str]) -> str:
    """Where the masks of these cases lie."""
    return os.path.commonpath([path.parent for case in labelled if (path := found.cases[case].label)])


def _classes(at: Opened, lists: Lists, cases: Mapping[str, Seen]) -> list[Finding]:
    """Nothing where a labelled mask could not be read: it may hold what the others lack."""
    labelled, found = lists["labelled"], at.found
    facts = {case: seen.facts for case, seen in cases.items() if seen.facts}
    values = [mask.values for case in labelled if case in facts and (mask := facts[case].mask)]
    if not values or len(values) < len(labelled):
        return []
    where = masks_folder(found, labelled)
    if found.labels:
        return check_masks(values, found.labels, where)
    try:
        labels = labels_from_values(values, where)
    except UserError as error:
        return [Finding(str(error))]
    held_out = [case for name in ("development", "test") for case in lists.get(name, ())]
    return [*check_values_scored(facts, held_out, labels, {case: str(found.cases[case].label) for case in held_out})]


def _patients(found: Source, cases: Mapping[str, Facts]) -> dict[str, str]:
    """PatientID of those that are DICOM series."""
    series = {case: found.cases[case].images[0] for case in cases if found.cases[case].images[0].is_dir()}
    return {case: patient for case, folder in series.items() if (patient := patient_of(folder))}


def _window(at: Opened) -> list[Finding]:
    """Whether the preset's window, unless the user has set one, can be meant for these channels."""
    window = at.preset.plan.get("intensity", {}).get("window") if at.preset else None
    chosen = "window" in at.request.settings or "intensity" in at.request.settings
    return check_window(window, at.request.preset or "", at.found.channels) if window and not chosen else []


def _assumed_size(at: Opened, shapes: Mapping[str, tuple[int, int, int]]) -> list[Finding]:
    """Where files hold no voxel size: which one is taken, and whether it can be theirs."""
    shapes = {file: shape for file, shape in shapes.items() if is_h5(Path(file))}
    spacing = at.spacing_if_missing_mm
    if spacing is None or not shapes:
        return []
    of_preset = at.preset if "spacing_if_missing_mm" not in at.request.settings else None
    origin = f"preset {at.request.preset}" if of_preset else "--set spacing_if_missing_mm"
    size = " x ".join(f"{length:g}" for length in spacing)
    logger.info("%s holds no voxel size: taken as %s mm (%s)", Path(next(iter(shapes))).name, size, origin)
    if of_preset is None or of_preset.longest_xy is None:
        return []
    return check_assumed_size(shapes, spacing, of_preset.longest_xy)


# A list of everything, instead of a stop at the first


def _attempt(findings: list[Finding], make: Callable[[], T]) -> T | None:
    """The result; or None, and why there is none among the findings. Warnings go there, too."""
    with captured_warnings() as said:
        try:
            return make()
        except UserError as error:
            findings += [Finding(str(message)) for message in error.args]
            return None
        finally:
            findings += [Finding(message, fatal=False) for message in said]


def _lists(at: Opened, findings: list[Finding]) -> dict[str, tuple[str, ...]]:
    """The split's; where there is none, everything with a mask is labelled."""
    chosen = _attempt(findings, lambda: assigned(at))
    if chosen is None:
        labelled = tuple(case for case in at.found.cases if case in at.found.masked)
        return {"labelled": labelled, "unlabelled": tuple(case for case in at.found.cases if case not in labelled)}
    split, _ = chosen
    _attempt(findings, lambda: check_assigned(at, split))
    _attempt(findings, lambda: announce(at.found, split))
    return split.lists()


# What is known from an earlier check


def _key(at: Opened, case: str, with_mask: bool) -> str:
    """Of all that the findings of a case depend on: files, settings, program. Empty where a file cannot be read."""
    found, files = at.found, at.found.cases[case]
    parts = [(path, "image") for path in files.images]
    if with_mask and files.label:
        parts.append((files.label, "label"))
    settings = [found.channels, found.labels, found.ignore_label, found.mask_axes, at.spacing_if_missing_mm]
    try:
        content = [[str(path), part, content_digest(path, part)] for path, part in parts]
    except (UserError, OSError):
        return ""
    whole = [sscl.__version__, commit(), content, settings, sorted(found.label_map.items())]
    return json_digest(whole)


def _known(out: Path) -> dict[str, Seen]:
    """What `out` holds of an earlier check; nothing where there was none, or what it holds is damaged."""
    if not out.exists():
        return {}
    content = read_json(out)
    if not isinstance(content, dict) or "known" not in content:
        raise UserError(f"{out}: is not the result of `sscl check`, and would be overwritten. Choose another file.")
    if SEAL not in content or not unsealed(content):  # damaged facts would raise false alarms
        return {}
    try:
        return {key: _seen_from_json(value) for key, value in content["known"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _seen_to_json(seen: Seen) -> dict[str, Any]:
    findings = [[finding.message, finding.fatal] for finding in seen.findings]
    return {"findings": findings, "facts": to_json(seen.facts) if seen.facts else None}


def _seen_from_json(value: Mapping[str, Any]) -> Seen:
    findings = tuple(Finding(str(message), bool(fatal)) for message, fatal in value["findings"])
    return Seen(findings, from_json(value["facts"]) if value["facts"] else None)
