"""What every test gets: one thread, checked shapes, and a reason when the real volumes are missing."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

# Read by torch and numpy when they are first imported, here and in subprocesses.
os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

# Arguments and results are checked against their annotations, tensor shapes included; `int` passes for `float`.
# Only where tensors are handled: beartype refuses what pydantic's classes in `core` need (`Self`).
TENSOR_MODULES = ["core.batch", "core.method", "data", "engine", "methods", "nets", "ops"]
install_import_hook(
    [f"sscl.{name}" for name in TENSOR_MODULES],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `data` where the real volumes are not at hand."""
    if item.get_closest_marker("data") and "SSCL_DATA" not in os.environ:
        pytest.skip("SSCL_DATA is not set")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real volumes; for tests marked `data`."""
    return Path(os.environ["SSCL_DATA"])
