"""Opening a prepared data set: what every stage after `prepare` starts from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from sscl.core.errors import UserError
from sscl.core.files import Shape, json_digest, read_object
from sscl.core.plan import Plan, Spacing
from sscl.data.split import Split
from sscl.data.store import DIGESTS
from sscl.stages.folder import STAGE, read_stage, require_files
from sscl.volumes.files import read_label
from sscl.volumes.geometry import on_grid_of
from sscl.volumes.volume import Volume

STORE, PLAN, SPLIT, DATASET = "store", "plan.json", "split.json", "dataset.json"
NOTED = (DATASET, SPLIT, PLAN, f"{STORE}/{DIGESTS}")
"""The files whose digests are in stage.json; those of the store are in the last of them."""
AGAIN = "Restore it, or delete the data set and prepare it again."


class _Case(Shape):
    image: list[str] = Field(min_length=1)
    label: str | None


class Facts(Shape):
    """What is read of `dataset.json`."""

    source: str
    channels: list[str]
    labels: list[str]
    cases: dict[str, _Case]
    ignore_label: int | None = None
    label_map: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Annotated[int, Field(ge=0, le=127)]] = Field(
        default_factory=dict
    )
    mask_axes: str | None = Field(None, pattern="^[LRPAIS]{3}$")


_SHAPES: dict[str, type[Shape]] = {DATASET: Facts}


@dataclass(frozen=True)
class Dataset:
    """A DATASET folder: where it is, what it holds, how it is to be treated."""

    folder: Path
    facts: dict[str, Any]
    """dataset.json: name, source, channels, labels, cases with their files."""
    split: Split
    plan: Plan
    preset: str | None
    """The preset that it was prepared with: its training settings hold for runs on it."""
    digest: str
    """Over plan, split and the digests of the scans that were read; cropped scans are others than whole ones."""

    def image_paths(self, case: str) -> list[Path]:
        """The scan's files in the source folder, or, where `prepare` cropped them, in this one.

        Raises:
            UserError: a cropped one is not as `prepare` wrote it.
        """
        require_crops(self.folder, self.facts, self.facts["cases"][case]["image"])
        return [self.folder / self.facts["source"] / path for path in self.facts["cases"][case]["image"]]


def read_own_mask(
    path: Path,
    scan: Callable[[], Volume],
    label_map: Mapping[str, int] | Mapping[int, int],
    mask_axes: str | None,
    spacing_if_missing_mm: Spacing | None,
) -> Volume:
    """A mask of the data set's own as it is meant: classes by `label_map`, and, where the layout's masks do not say how
    they lie, on the grid of its scan. What other masks hold means what it says: `read_label` reads them.

    Args:
        scan: reads the scan of the case; called where it is needed only.
        label_map, mask_axes: of the source, or as dataset.json notes them.

    Raises:
        UserError: as `read_label` and `on_grid_of`.
    """
    mask = read_label(path, spacing_if_missing_mm, {int(stored): value for stored, value in label_map.items()})
    return on_grid_of(scan(), mask, mask_axes, path) if mask_axes else mask


def is_dataset(folder: Path) -> bool:
    """Whether `prepare` made this folder."""
    return (folder / PLAN).is_file() and (folder / DATASET).is_file()


def open_dataset(folder: Path, with_store: bool = True) -> Dataset:
    """Raises UserError if the folder is not a complete prepared data set."""
    if not folder.is_dir():
        raise UserError(f"{folder} does not exist. `sscl prepare SRC -o {folder}` makes it from a folder of scans.")
    names = (DATASET, SPLIT, PLAN, STAGE)
    if missing := [name for name in names if not (folder / name).exists()]:
        raise UserError(
            f"{folder} is not a prepared data set: {missing[0]} is missing. Run `sscl prepare {folder} -o DATASET` "
            "first, then give DATASET."
        )
    values = {name: read_object(folder / name, shape=_SHAPES.get(name, Shape)) for name in (DATASET, SPLIT, PLAN)}
    values[STAGE] = read_stage(folder, "config", "inputs")
    require_files(folder, values[STAGE], NOTED if with_store else NOTED[:-1], AGAIN)
    plan = Plan.read(values[PLAN], str(folder / PLAN))
    split = Split.read(values[SPLIT], str(folder / SPLIT))
    listed = [case for cases in split.lists().values() for case in cases]
    if stray := [case for case in listed if case not in values[DATASET]["cases"]]:
        raise UserError(f"{folder / SPLIT}: case '{stray[0]}' is not in {DATASET}. Prepare the data set again.")
    cropped = [] if Path(values[DATASET]["source"]).is_absolute() else ["cropped"]
    digest = json_digest([values[PLAN], values[SPLIT], values[STAGE]["inputs"], *cropped])
    preset = values[STAGE]["config"].get("preset")
    if not (preset is None or isinstance(preset, str)):
        raise UserError(f"{folder / STAGE}: damaged: its preset is {preset!r}. {AGAIN}")
    return Dataset(folder, values[DATASET], split, plan, preset, digest)


def read_noted(folder: Path, name: str, *keys: str) -> dict[str, Any]:
    """One of DATASET's JSON files as `prepare` left it, for stages that need no more.

    Raises:
        UserError: as `read_object`; or the file is another one.
    """
    content = read_object(folder / name, *keys, shape=_SHAPES.get(name, Shape))
    if (folder / STAGE).is_file():
        require_files(folder, read_stage(folder), (name,), AGAIN)
    return content


def require_crops(folder: Path, facts: Mapping[str, Any], paths: Sequence[str]) -> None:
    """Raises UserError for a scan or mask that `prepare` cropped and that is another one now. Those of the source are
    not ours: no digest holds them.
    """
    if not Path(facts["source"]).is_absolute():
        require_files(folder, read_stage(folder), [f"{facts['source']}/{path}" for path in paths], AGAIN)
