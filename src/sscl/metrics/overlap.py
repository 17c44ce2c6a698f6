"""How much two masks overlap, and how large they are."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sscl.core.errors import UserError

Mask = NDArray[np.bool_]


def require_masks(prediction: NDArray[Any], reference: NDArray[Any]) -> None:
    """Refuse what would give a number that means nothing.

    Shapes that numpy would broadcast give a Dice of 1.9 elsewhere, a label map instead of a mask merges all classes.

    Raises:
        UserError: shapes differ, or an array is not boolean.
    """
    if prediction.shape != reference.shape:
        raise UserError(f"masks of different shape: {prediction.shape} against {reference.shape}; they must be equal.")
    if prediction.dtype != np.bool_ or reference.dtype != np.bool_:
        raise UserError("a mask must be a boolean array: choose one class first, for instance `labels == 1`.")


def dice(prediction: Mask, reference: Mask) -> float | None:
    """Dice coefficient 2 |P and R| / (|P| + |R|), 0 to 1; None (not applicable) if both masks are empty."""
    require_masks(prediction, reference)
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    return 2 * int(np.count_nonzero(prediction & reference)) / total if total else None


def jaccard(prediction: Mask, reference: Mask) -> float | None:
    """Jaccard index |P and R| / |P or R|, 0 to 1; None (not applicable) if both masks are empty."""
    require_masks(prediction, reference)
    union = int(np.count_nonzero(prediction | reference))
    return int(np.count_nonzero(prediction & reference)) / union if union else None


def volume_ml(mask: Mask, spacing_mm: Sequence[float]) -> float:
    """Volume of the mask in millilitres; `spacing_mm` in array-axis order."""
    return int(np.count_nonzero(mask)) * float(np.prod(spacing_mm)) / 1000
