"""What a folder holds: its scans, their masks, and what it says about them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sscl.data.split import Lists


@dataclass(frozen=True)
class Case:
    """The files of one scan: its image (one file a channel, one file with all, or a DICOM folder) and its mask."""

    images: tuple[Path, ...]
    label: Path | None


@dataclass(frozen=True)
class Source:
    """What a folder holds."""

    name: str
    root: Path
    layout: str
    channels: tuple[str, ...]
    labels: tuple[str, ...] | None
    """Class names by value, background first; None where nothing declares them."""
    cases: Mapping[str, Case]
    order: tuple[str, ...]
    """The cases that positions count: sorted names, or the order of the left atrium's train.list."""
    lists: Lists = field(default_factory=dict)
    """Lists that belong to the layout: the left atrium's test.list."""
    split_file: Path | None = None
    """nnU-Net's `splits_final.json`, where it lies beside the scans."""
    images_ts: tuple[str, ...] = ()
    """Scans in `imagesTs`: never trained on unless the user says so."""
    ignore_label: int | None = None
    label_map: Mapping[int, int] = field(default_factory=dict)
    """Stored mask value to class (the LA challenge's 255 is 1)."""
    num_training: int | None = None
    """How many masks `dataset.json` promises."""
    mask_axes: str | None = None
    """Where headers of masks cannot be trusted: what their arrays run along, "LPS" for left, posterior, superior."""
    every_mask_promised: bool = False
    """Patient folders of the LA challenge hold a mask each."""
    files: tuple[Path, ...] = ()
    """The files that describe the set."""

    @property
    def masked(self) -> frozenset[str]:
        """Cases with a mask file."""
        return frozenset(name for name, case in self.cases.items() if case.label is not None)
