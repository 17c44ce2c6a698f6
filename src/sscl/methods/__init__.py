"""The table of methods, without torch: a method's module is imported when it is asked for."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from sscl.core.errors import unknown

if TYPE_CHECKING:
    from sscl.core.method import Method


@dataclass(frozen=True)
class Entry:
    """Where a method is and what it is from."""

    target: str
    """module:class under sscl.methods."""
    year: int | None
    """None: our copy of the paper names none."""
    paper: str
    trains: str
    """The networks that a run trains."""
    cost: float | None = None
    """Time of a step relative to `vnet`'s on a CPU (benchmarks/bench_methods.py); None: not measured."""


METHODS: dict[str, Entry] = {
    "vnet": Entry("vnet:SupervisedVNet", 2016, "V-Net, supervised: Milletari et al., 3DV", "V-Net"),
    "mean_teacher": Entry("mean_teacher:MeanTeacher", 2017, "Mean teacher: Tarvainen and Valpola, NeurIPS", "V-Net"),
    "ua_mt": Entry("ua_mt:UAMT", 2019, "UA-MT: Yu et al., MICCAI", "V-Net"),
    "sscl": Entry("sscl:SSCL", None, "SSCL: Liu et al.", "spatial-spectral V-Net, reconstruction V-Net"),
}


def method_class(name: str) -> "type[Method]":
    """The class of a method by its command-line name.

    Raises:
        UserError: unknown name; tells the nearest one and the list.
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    module, _, cls = METHODS[name].target.partition(":")
    return getattr(import_module(f"sscl.methods.{module}"), cls)
