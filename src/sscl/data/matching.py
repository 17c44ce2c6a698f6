"""Files to cases by their names: channels, masks, and what lies about."""

import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

from sscl.core.errors import UserError, refuse
from sscl.volumes.files import case_stem, is_volume, unknown_kind

log = logging.getLogger("sscl")
_NO_TEXT = ("Cc", "Cs")
"""Unicode's control characters and halves of characters: a name that another system wrote in another encoding."""
_JUNK = {"thumbs.db", "desktop.ini"}
_NOTES = {".bval", ".bvec", ".csv", ".html", ".json", ".log", ".md", ".pdf", ".tsv", ".txt", ".xml", ".yaml"}
_CHANNEL = re.compile(r"(.+)_(\d{4})")


def entries(folder: Path) -> list[Path]:
    """Everything in a folder but hidden files and what operating systems drop there, sorted."""
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror}. Check its permissions.") from None
    strange = [ascii(path.name) for path in found if any(unicodedata.category(sign) in _NO_TEXT for sign in path.name)]
    refuse(
        f"{folder}: the name {name} holds control characters, or bytes that are no text. Rename it." for name in strange
    )
    return [path for path in found if not path.name.startswith(".") and path.name.lower() not in _JUNK]


def volumes_in(folder: Path) -> dict[str, Path]:
    """The volumes of a folder (files, or DICOM folders) by name without ending; nothing if there is no folder.
    Notes beside them (.json, .txt, ...) are passed over; any other unknown file may be a scan, so it is refused.

    Raises:
        UserError: two files of one name, a broken link, a folder called like a file, or a file of unknown kind.
    """
    found: dict[str, Path] = {}
    mistakes = []
    for path in entries(folder) if folder.is_dir() else ():
        if path.is_file() and path.suffix.lower() in _NOTES:
            continue
        stem = case_stem(path)
        if wrong := _no_volume(path):
            mistakes.append(f"{path}: {wrong}")
        elif stem in found:
            mistakes.append(
                f"{path}: duplicate: {found[stem].name} is there too, and both are case '{stem}'. Keep one."
            )
        else:
            found[stem] = path
    refuse(mistakes)
    return found


def _no_volume(path: Path) -> str | None:
    """Why an entry of a folder of volumes is none."""
    if not path.exists():
        return "is a link to a file that does not exist. Mend or remove it."
    if path.is_dir() and case_stem(path) != path.name:
        return "is a folder with the name of a file. Rename or remove it."
    if path.is_dir() and not is_volume(path):
        return "is a folder without DICOM files. If scans lie in it, name this folder; else take it away."
    if not is_volume(path):
        return f"{unknown_kind(path)} Convert it, or move it elsewhere."
    return None


def has_channel_suffix(stems: Collection[str], masks: Collection[str]) -> bool:
    """Whether `case_0000` is channel 0 of `case`, and not a case of that name: the masks' names tell; without masks,
    every case must have a `_0000`.
    """
    parts = {stem: match[1] for stem in stems if (match := _CHANNEL.fullmatch(stem))}
    as_names, as_channels = len(set(masks) & set(stems)), len(set(masks) & set(parts.values()))
    if as_names > as_channels:
        _tell_if_channels(parts, masks)
    if as_names or as_channels:
        return as_channels > as_names
    return len(parts) == len(stems) > 0 and all(f"{name}_0000" in parts for name in parts.values())


def _tell_if_channels(parts: Mapping[str, str], masks: Collection[str]) -> None:
    """Scans that are taken for cases of their own, though every patient has the same numbers, and masks for _0000 only.

    parts: a scan's name to what stands before its number.
    """
    numbers = Counter(parts.values())
    sizes = set(numbers.values())
    if len(numbers) > 1 and len(sizes) == 1 and sizes != {1} and all(mask.endswith("_0000") for mask in masks):
        log.warning(
            "%s_0000 and %s_0001 are taken for two scans, because a mask is called like the first. If they are "
            "channels of one scan, call its mask %s.", *[min(numbers)] * 3,
        )  # fmt: skip


def group(stems: Mapping[str, Path], suffixed: bool, num_channels: int | None) -> dict[str, tuple[Path, ...]]:
    """Case name to its files, in the order of the channels; `num_channels` None: as many as each case has."""
    if not suffixed:
        return {stem: (path,) for stem, path in stems.items()}
    groups: dict[str, dict[int, Path]] = defaultdict(dict)
    mistakes = []
    for stem, path in stems.items():
        if match := _CHANNEL.fullmatch(stem):
            groups[match[1]][int(match[2])] = path
        else:
            mistakes.append(
                f"{path}: the name lacks the channel, as in {stem}_0000, which the other scans have. Rename it."
            )
    for name, files in groups.items():
        wanted = range(num_channels or len(files))
        if sorted(files) != list(wanted):
            found, expected = (", ".join(f"_{index:04d}" for index in numbers) for numbers in (sorted(files), wanted))
            mistakes.append(f"{files[min(files)]}: case '{name}' has the channels {found}, expected {expected}.")
    refuse(mistakes)
    return {name: tuple(files[index] for index in sorted(files)) for name, files in groups.items()}


def nearest(name: str, names: Collection[str], hint: str) -> str:
    """`hint` with the one of `names` that was probably meant; nothing where none is near."""
    written = unicodedata.normalize("NFC", name)
    if same := [other for other in names if unicodedata.normalize("NFC", other) == written]:
        return f"{hint.format(same[0])} They look alike, but accents are written in two ways (Unicode's NFC and NFD)."
    near = get_close_matches(name, names, 1)
    return hint.format(near[0]) if near else ""


def some(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more


def refuse_orphans(masks: Mapping[str, Path], images: Iterable[str]) -> None:
    names = list(images)
    mistakes = []
    for name in sorted(masks.keys() - set(names)):
        mistakes.append(
            f"{masks[name]}: a mask without an image: no scan is called '{name}'. Add the image or remove the mask."
            + nearest(name, names, " If '{}' is its scan, give both one name.")
        )
    refuse(mistakes)
