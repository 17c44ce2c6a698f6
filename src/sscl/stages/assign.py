"""Which case is for what, and by what its files are known."""

import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from sscl.core.errors import UserError
from sscl.data.source import Source
from sscl.data.split import Split, read_lists, split_from_lists, split_from_options
from sscl.stages.folder import digest
from sscl.volumes.h5 import read_h5

logger = logging.getLogger("sscl")

NAMED = 16
"""So many labelled cases are named when they are announced."""


def choose(
    found: Source,
    split_file: Path | None,
    labelled: int | str | None,
    unlabelled: int | str | None,
    development: str | None,
    test: str | None,
) -> tuple[Split, Path | None]:
    """The split, and the file it comes from, if any: the user's file, the user's options, or nnU-Net's own file."""
    options = {"labelled": labelled, "unlabelled": unlabelled, "development": development, "test": test}
    given = ", ".join(f"--{name}" for name, value in options.items() if value is not None)
    if split_file and given:
        raise UserError(f"--split {split_file} names the cases of every list. Leave out {given}.")
    path = split_file or found.split_file
    if path and not given:
        logger.info("split: %s", path)
        lists = {**found.lists, **read_lists(path)}
        return split_from_lists(lists, found.order, found.cases.keys(), found.masked, str(path)), path
    if path:
        logger.warning("%s is not used, because %s was given.", path, given)
    split = split_from_options(
        found.order,
        found.cases.keys(),
        found.masked,
        labelled=labelled,
        unlabelled=unlabelled,
        development=development,
        test=test,
        lists=found.lists,
        images_ts=found.images_ts,
    )
    return split, None


def announce(found: Source, split: Split) -> None:
    lists = split.lists()
    unused = len(found.cases) - sum(len(cases) for cases in lists.values())
    logger.info(
        "%s: %d labelled, %d unlabelled (no mask needed), %d development, %d test, %d unused",
        found.layout,
        *(len(cases) for cases in lists.values()),
        unused,
    )
    more = f", ... ({len(split.labelled)})" if len(split.labelled) > NAMED else ""
    logger.info("labelled: %s%s", ", ".join(split.labelled[:NAMED]), more)
    if not split.unlabelled:
        ways = (
            "imagesTs has some: --unlabelled imagesTs uses them"
            if found.images_ts
            else "add scans, or leave some masks out: --labelled 8 uses eight"
        )
        logger.warning("no unlabelled scans: semi-supervised methods have nothing to learn from; %s.", ways)


def digests(found: Source, described: Sequence[Path], images: Sequence[str], masks: Sequence[str]) -> dict[str, str]:
    """SHA-256 of everything that is read, by its path from the source.

    Args:
        described: files that describe the set.
        images, masks: the cases whose scans, and whose masks, are read.
    """
    scans = [path for case in images for path in found.cases[case].images]
    labels = [path for case in masks if (path := found.cases[case].label)]
    parts = [(path, "image") for path in (*described, *scans)] + [(path, "label") for path in labels]
    return {_key(path, part, found): content_digest(path, part) for path, part in parts}


def _key(path: Path, part: str, found: Source) -> str:
    return relative(path, found) + (f":{part}" if is_h5(path) else "")


def content_digest(path: Path, part: str) -> str:
    """Digest of a file; of an h5 file, which holds the image and the mask, of one of them: the other stays closed."""
    if not is_h5(path):
        return digest(path)
    array = read_h5(path, part, (1.0, 1.0, 1.0)).array  # the voxel size is no part of it
    return hashlib.sha256(f"{array.dtype} {array.shape} ".encode() + array.tobytes()).hexdigest()


def is_h5(path: Path) -> bool:
    return path.suffix.lower() == ".h5"


def relative(path: Path, found: Source) -> str:
    return Path(os.path.relpath(path.absolute(), found.root.resolve())).as_posix()
