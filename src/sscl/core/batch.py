"""What a method sees of the data: never the mask of an unlabelled case, because there is no field for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int64
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One iteration's crops.

    labelled: images of the labelled half, "l c x y z".
    label: their class indices, "l x y z", IGNORE (-1) where no loss may look.
    unlabelled: images of the unlabelled half, "u c x y z"; u may be 0.
    targets: what a method's `targets` asks for, made from `label`; `signed_distance`: "l organs x y z".
    """

    labelled: Float[Tensor, "l c x y z"]
    label: Int64[Tensor, "l x y z"]
    unlabelled: Float[Tensor, "u c x y z"]
    targets: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def images(self) -> Float[Tensor, "b c x y z"]:
        """Both halves, labelled first."""
        return torch.cat([self.labelled, self.unlabelled])

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows that belong to `images` into labelled and unlabelled."""
        return rows[: len(self.labelled)], rows[len(self.labelled) :]


@dataclass(frozen=True)
class Clock:
    """Where in the run a step is."""

    iteration: int
    """Steps done before this one, over all phases."""
    total: int
    """Steps of the whole run."""
    phase: str
    """Name of the current phase."""
    phase_iteration: int
    """Steps done before this one in this phase."""
    phase_total: int
    """Steps of this phase."""

    @property
    def fraction(self) -> float:
        """Share of the current phase that is done, 0 to just under 1."""
        return self.phase_iteration / self.phase_total
