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
    cost: float
    """Time of a step relative to `vnet`'s on a CPU (benchmarks/bench_methods.py)."""
    baseline: str | None = "vnet"
    """The method that trains the tested network on labelled scans alone. The difference to it is what the unlabelled
    scans gave; to any other, it is the network's as well. None: no method here does.
    """
    version: int = 1
    """Raised when the method's golden trace moves: its earlier records then are of another method."""


METHODS: dict[str, Entry] = {
    "vnet": Entry("vnet:SupervisedVNet", 2016, "V-Net, supervised: Milletari et al., 3DV", "V-Net", 1.0),
    "mean_teacher": Entry(
        "mean_teacher:MeanTeacher", 2017, "Mean teacher: Tarvainen and Valpola, NeurIPS", "V-Net", 1.2
    ),
    "dan": Entry("dan:DAN", 2017, "DAN: Zhang et al., MICCAI", "V-Net, critic", 3.5, version=2),
    "ua_mt": Entry("ua_mt:UAMT", 2019, "UA-MT: Yu et al., MICCAI", "V-Net", 2.7),
    "advent": Entry(
        "advent:Advent", 2019, "ADVENT (ADVNET, entropy minimisation): Vu et al., CVPR", "V-Net", 1.2, version=2
    ),
    "sassnet": Entry("sassnet:SASSNet", 2020, "SASSNet: Li et al., MICCAI", "V-Net with two heads, critic", 3.3, None),
    "double_ua": Entry("double_ua:DoubleUA", 2020, "Double-UA: Wang et al., MICCAI; reconstructed by us", "V-Net", 4.0),
    "lg_er_mt": Entry("lg_er_mt:LGERMT", 2020, "LG-ER-MT: Hang et al., MICCAI", "V-Net", 1.6),
    "tripled_ua": Entry(
        "tripled_ua:TripledUA", 2021, "Tripled-UA: Wang et al., MICCAI", "V-Net with three decoders", 10.0
    ),
    "urpc": Entry("urpc:URPC", 2021, "URPC: Luo et al., MICCAI", "3-D U-Net with four heads", 2.7, None),
    "dtc": Entry("dtc:DTC", 2021, "DTC: Luo et al., AAAI", "V-Net with two heads", 1.0, None),
    "ss_net": Entry("ss_net:SSNet", 2022, "SS-Net: Wu et al., MICCAI", "V-Net, voxel heads", 4.8),
    "coranet": Entry(
        "coranet:CoraNet", 2022, "CoraNet: Shi et al., TMI", "V-Net with three heads", 2.0, None, version=2
    ),
    "gbdl": Entry(
        "gbdl:GBDL", 2022, "GBDL: Wang and Lukasiewicz, CVPR", "latent model, then Bayesian U-Net", 8.7, None
    ),
    "ucmt": Entry("ucmt:UCMT", 2023, "UCMT: Shen et al., IJCAI", "two V-Nets", 4.7),
    "ac_mt": Entry("ac_mt:ACMT", 2023, "AC-MT: Xu et al., MedIA", "V-Net", 1.2),
    "comwin": Entry("comwin:ComWin", 2023, "ComWin: Wu et al., TMI", "three V-Nets", 3.2),
    "bcp": Entry("bcp:BCP", 2023, "BCP: Bai et al., CVPR", "V-Net", 0.8),
    "sscl": Entry("sscl:SSCL", None, "SSCL: Liu et al.", "spatial-spectral V-Net, reconstruction V-Net", 2.5, "sscl"),
}

LABELLED_DIFFERS: dict[str, str] = {
    "dan": "its Dice loss counts the background too",
    "advent": "its Dice loss counts the background too",
    "ac_mt": "its Dice loss counts the background too",
    "tripled_ua": "two decoders more with tasks of their own, Dice without cross-entropy",
    "ss_net": "Dice without squares, no cross-entropy",
    "ucmt": "two networks whose mean is tested, Dice with the background, no cross-entropy",
    "comwin": "three networks, of which the first is tested",
    "bcp": "crops are pasted into each other, Dice of each crop",
}
"""What a method does otherwise than its baseline, beside using unlabelled scans; the difference holds this as well."""


def method_class(name: str, where: str = "method") -> "type[Method]":
    """The class of a method by its command-line name; `where` names it in errors.

    Raises:
        UserError: unknown name; tells the nearest one and the list.
    """
    if name not in METHODS:
        raise unknown(where, name, METHODS)
    module, _, cls = METHODS[name].target.partition(":")
    return getattr(import_module(f"sscl.methods.{module}"), cls)
