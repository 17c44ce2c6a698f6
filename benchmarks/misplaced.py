"""How often `sscl check` calls a mask misplaced that is not, and how often it notices one that is.

python benchmarks/misplaced.py development|test     (needs SSCL_DATA; some minutes on a CPU)

Masks of the hippocampus and of the left atrium at half resolution: of the cases that thresholds were chosen on
(`development`: 1 to 150, lines 1 to 60), or of the others. Sets of 8 and 16 are drawn 200 times, and all are taken
together; in each set one mask after another is mirrored along each axis, and shifted by some voxels along a random one.
"""

import os
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sscl.data.layouts import discover
from sscl.data.placement import Place, misplaced, place
from sscl.stages.cases import image_of, label_of

SETS = {"hippocampus": (150, None), "la_half": (60, (1.25, 1.25, 1.25))}
DRAWS, TRIED, SHIFTS = 200, 3, (4, 8, 12, 16)


def main(which: str) -> None:
    for name, (first, spacing_mm) in SETS.items():
        found = discover(Path(os.environ["SSCL_DATA"]) / name)
        cases = found.order[:first] if which == "development" else found.order[first:]
        scans = {}
        for case in cases:
            image = image_of(found, case, spacing_mm)
            scans[case] = (image.array[0], label_of(found, case, image, spacing_mm).array[0] > 0)
        for number in (8, 16, len(cases)):
            print(f"{name}, {number} of {len(cases)} masks: {figures(scans, number)}", flush=True)


def figures(scans: dict[str, tuple[NDArray[np.float32], NDArray[np.bool_]]], number: int) -> str:
    rng = np.random.default_rng(0)
    places = {case: place(*scan) for case, scan in scans.items()}
    draws = DRAWS if number < len(scans) else 1
    false, alarms, noticed = 0, 0, defaultdict(list)
    for _ in range(draws):
        drawn = [str(case) for case in rng.choice(sorted(scans), number, replace=False)]
        sound = {case: one for case in drawn if (one := places[case])}
        wrong = misplaced(sound)
        false, alarms = false + len(wrong), alarms + bool(wrong)
        for case in drawn[: TRIED if draws > 1 else 20]:
            image, mask = scans[case]
            for axis in range(3):
                noticed[f"mirrored along {'xyz'[axis]}"].append(seen(sound, case, place(image, np.flip(mask, axis))))
            for by in SHIFTS:
                moved = shifted(mask, int(rng.integers(3)), by * int(rng.choice((-1, 1))))
                noticed[f"shifted by {by}"].append(seen(sound, case, place(image, moved)))
    told = ", ".join(f"{kind} {np.mean(hits):.0%}" for kind, hits in noticed.items())
    return f"{false} of {draws * number} sound masks ({alarms} of {draws} sets) called misplaced; noticed: {told}"


def seen(sound: dict[str, Place], case: str, changed: Place | None) -> bool:
    return changed is not None and case in misplaced(sound | {case: changed})


def shifted(mask: NDArray[np.bool_], axis: int, by: int) -> NDArray[np.bool_]:
    """What leaves the scan at one end does not come back at the other."""
    moved = np.roll(mask, by, axis)
    gone = [slice(None)] * 3
    gone[axis] = slice(0, by) if by > 0 else slice(by, None)
    moved[tuple(gone)] = False
    return moved


main(sys.argv[1])
