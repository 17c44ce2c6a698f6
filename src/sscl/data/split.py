"""Which case is for what: `DATASET/split.json`, the only truth after `prepare`."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path, PurePath

from pydantic import field_validator

from sscl.core.config import Config
from sscl.core.errors import UserError, unknown
from sscl.core.files import read_json
from sscl.data.matching import nearest

Lists = Mapping[str, tuple[str, ...]]


class Split(Config):
    """Names of the cases of each list; no case is in two."""

    labelled: tuple[str, ...]
    """Trained on with their masks."""
    unlabelled: tuple[str, ...] = ()
    """Trained on without masks: a mask that exists is never opened."""
    development: tuple[str, ...] = ()
    """For choosing settings."""
    test: tuple[str, ...] = ()
    """For the final figures."""

    @field_validator("*")
    @classmethod
    def _are_names(cls, cases: tuple[str, ...]) -> tuple[str, ...]:
        """Files are called by them: none may lead out of its folder."""
        if paths := [case for case in cases if PurePath(case).name != case or "\0" in case]:
            raise ValueError(f"names of cases, and '{paths[0]}' is none, because it leads to another folder")
        return cases

    def lists(self) -> dict[str, tuple[str, ...]]:
        """List name to case names."""
        return {name: getattr(self, name) for name in LISTS}


LISTS = tuple(Split.model_fields)
_FOLD = {"train": "labelled", "val": "development", "unlabelled": "unlabelled", "test": "test"}


def read_lists(path: Path) -> dict[str, tuple[str, ...]]:
    """The lists that a split file names: `{"labelled": [...], "test": [...]}`, or nnU-Net's `splits_final.json`,
    of which the first fold is taken: `train` is labelled, `val` is development.

    Raises:
        UserError: not such a file, or a name twice in one list.
    """
    content = read_json(path)
    known = {name: name for name in LISTS}
    if isinstance(content, list) and content:
        content, known = content[0], _FOLD
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object with the lists {', '.join(LISTS)}, or nnU-Net's list of folds.")
    lists = {}
    for key, names in content.items():
        if key not in known:
            raise unknown(f"{path}: list", key, known)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise UserError(f"{path}: '{key}' must be a list of case names in quotes.")
        lists[known[key]] = tuple(names)
    return lists


def split_from_lists(
    lists: Lists, order: Sequence[str], known: Collection[str], masked: Collection[str], where: str
) -> Split:
    """A split as a file states it. Without a list `unlabelled`, the cases of `order` that are in no list and have no
    mask are the unlabelled ones; without a list `labelled`, those that have one are labelled.

    Args:
        order: the cases that positions count, in order.
        known: every case there is.
        masked: the cases with a mask.
        where: names the file in errors.

    Raises:
        UserError: an unknown case, or one named twice.
    """
    lists = dict(lists)
    rest = [case for case in order if case not in {name for names in lists.values() for name in names}]
    lists.setdefault("labelled", tuple(case for case in rest if case in masked))
    lists.setdefault("unlabelled", tuple(case for case in rest if case not in masked))
    return _checked(lists, known, where)


def split_from_options(
    order: Sequence[str],
    known: Collection[str],
    masked: Collection[str],
    *,
    labelled: int | str | None = None,
    unlabelled: int | str | None = None,
    development: str | None = None,
    test: str | None = None,
    lists: Lists | None = None,
    images_ts: Sequence[str] = (),
) -> Split:
    """A split by numbers and positions.

    Ranges ("first:8", "last:20", "51:60": 1-based, both ends in) count in `order` and are taken first. A number takes
    that many of the cases left, in order: first `labelled`, then `unlabelled`. Without `labelled`: all cases left that
    have a mask. Without `unlabelled`: all cases left. `unlabelled="imagesTs"`: the cases left and those of `images_ts`.

    Args:
        lists: what the source itself fixes (the LA benchmark's test list); an option of the same name wins.
        order, known, masked: as in `split_from_lists`.

    Raises:
        UserError: a specification that cannot be read or reaches beyond the cases, or a case in two lists.
    """
    chosen = dict(lists or {})
    options = {"labelled": labelled, "unlabelled": unlabelled, "development": development, "test": test}
    for name, option in options.items():
        if isinstance(option, str) and (name, option) != ("unlabelled", "imagesTs"):
            chosen[name] = _range(option, order, name)
    left = _without(order, chosen)
    if isinstance(labelled, int):
        with_mask = [case for case in left if case in masked]
        if labelled > len(with_mask):
            raise UserError(f"--labelled {labelled}: {len(with_mask)} of the cases left have a mask. Ask for fewer.")
        chosen["labelled"] = _first(labelled, left, "labelled")
    elif "labelled" not in chosen:
        chosen["labelled"] = tuple(case for case in left if case in masked)
    left = _without(order, chosen)
    if isinstance(unlabelled, int):
        chosen["unlabelled"] = _first(unlabelled, left, "unlabelled")
    elif unlabelled == "imagesTs":
        if not images_ts:
            raise UserError(
                "--unlabelled imagesTs: the source has no scans in imagesTs. Leave the option out, or add them."
            )
        chosen["unlabelled"] = (*left, *images_ts)
    elif "unlabelled" not in chosen:
        chosen["unlabelled"] = tuple(left)
    return _checked(chosen, known, "split")


def _range(text: str, order: Sequence[str], option: str) -> tuple[str, ...]:
    match = re.fullmatch(r"(first|last|\d+):(\d+)", text)
    if not match:
        hint = f" For a number of cases write last:{text}." if text.isdigit() else ""
        raise UserError(f"--{option} {text}: expected first:N, last:N or A:B (positions from 1, both included).{hint}")
    start, number = match[1], int(match[2])
    if start == "first":
        first, last = 1, number
    elif start == "last":
        first, last = len(order) - number + 1, len(order)
    else:
        first, last = int(start), number
    if not 1 <= first <= last <= len(order):
        raise UserError(
            f"--{option} {text}: there are {len(order)} cases, positions 1 to {len(order)}. Choose among them."
        )
    return tuple(order[first - 1 : last])


def _first(number: int, left: Sequence[str], option: str) -> tuple[str, ...]:
    if number < 0 or number > len(left):
        raise UserError(f"--{option} {number}: {len(left)} cases are left for it. Ask for at most {len(left)}.")
    return tuple(left[:number])


def _without(order: Iterable[str], chosen: Lists) -> list[str]:
    taken = {case for names in chosen.values() for case in names}
    return [case for case in order if case not in taken]


def _checked(lists: Lists, known: Collection[str], where: str) -> Split:
    seen: dict[str, str] = {}
    for name, cases in lists.items():
        for case in cases:
            if case not in known:
                hint = nearest(case, known, " Did you mean '{}'?")
                raise UserError(f"{where}: case '{case}' ({name}) is unknown: no scan of that name was found.{hint}")
            if case in seen:
                both = f"in both '{seen[case]}' and '{name}': a leak" if seen[case] != name else f"twice in '{name}'"
                raise UserError(f"{where}: case '{case}' is {both}. List every case once.")
            seen[case] = name
    if not lists["labelled"]:
        raise UserError(f"{where}: no labelled case. Training needs at least one scan with a mask.")
    return Split.read(dict(lists), where)
