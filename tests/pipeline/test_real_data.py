"""Real scans from folder to scores: three steps of a tiny network, so the path is tested, not the learning."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sscl.data.patches import Draw, PatchLoader
from sscl.data.store import CaseStore
from sscl.engine.window import sliding_window
from sscl.stages.dataset import STORE
from sscl.stages.evaluate import evaluate
from sscl.stages.predict import predict
from sscl.stages.prepare import prepare
from sscl.stages.train import train

pytestmark = [pytest.mark.data, pytest.mark.slow]


@pytest.mark.parametrize(
    ("name", "options", "classes", "spacing_mm"),
    [
        ("la_half", {"preset": "la-quick", "development": "51:51"}, 1, (1.875, 1.875, 1.875)),
        ("hippocampus", {"development": "131:131"}, 2, (1, 1, 1)),
    ],
)
def test_from_scans_to_scores(
    data_dir: Path, tmp_path: Path, name: str, options: dict[str, Any], classes: int, spacing_mm: tuple[float, ...]
) -> None:
    result = prepare(data_dir / name, tmp_path / "dataset", labelled=2, unlabelled=2, **options)
    assert result.plan.spacing_mm == spacing_mm
    assert not [text for text in result.warnings if "resolution" in text]
    train(
        result.out, tmp_path / "run", settings={"width": 2}, iterations=3, threads=1, device="cpu", precision="float32"
    )
    (case,) = result.split.development
    predict(tmp_path / "run", [result.out], tmp_path / "masks", split="development", device="cpu")
    scores = evaluate(tmp_path / "masks", result.out, split="development").scores
    assert [score.case for score in scores] == [case] * classes
    assert all(0 <= score.values["dice"] <= 1 for score in scores if score.values["dice"] is not None)


def test_full_resolution_has_the_shapes_of_the_paper(data_dir: Path, tmp_path: Path) -> None:
    result = prepare(data_dir / "la", tmp_path / "dataset", preset="la", labelled=1, unlabelled=1)
    assert not [text for text in result.warnings if "resolution" in text]
    store, split, patch = CaseStore(result.out / STORE), result.split, (112, 112, 80)
    batch = PatchLoader(store, split.labelled, split.unlabelled, result.plan, 0).load(Draw(range(2), range(2))).batch
    assert batch.images.shape == (4, 1, *patch)
    assert set(batch.label.unique().tolist()) == {0, 1}
    image = torch.from_numpy(np.asarray(store.image(split.labelled[0])[:], dtype=np.float32))
    assert min(image.shape[1:3]) > 112
    assert image.shape[-1] == 88
    found = sliding_window(lambda x: torch.cat([x, 1 - x], 1), image, patch, patch)
    torch.testing.assert_close(found[0], image[0])  # windows are put back where they were cut
    told = prepare(data_dir / "la", tmp_path / "wrong", preset="la-quick", labelled=1, unlabelled=0).warnings
    assert ["probably of full resolution" in text for text in told if "voxels in x and y" in text] == [True]
