"""The numbers that the SSCL paper prints, row by row, and what to know before comparing with one.

Tables 1 to 6 of Liu et al., "SSCL: A Spatial-Spectral and Commonality Learning Network for Semi-Supervised Medical
Image Segmentation". Dice and Jaccard from 0 to 1. Distances in voxels, convention `medpy`: inferred from the code that
the paper builds on, the paper names neither. docs/methods/<name>.md tells each method's caveats at length.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sscl.core.errors import unknown

Setting = bool | float | str
Settings = frozenset[tuple[str, Setting]]
"""What departs from the method's defaults: names and values."""


@dataclass(frozen=True)
class Row:
    """One printed row. name: as printed. method: our command-line name of it. settings: with which it is that row.
    masks, unlabelled: scans with and without a mask. caveats: keys of `CAVEATS`."""

    table: str
    name: str
    method: str
    masks: int
    unlabelled: int
    settings: Settings
    dice: float
    jaccard: float
    hd95: float
    asd: float
    caveats: tuple[str, ...]


def published(table: str) -> tuple[Row, ...]:
    """The rows of `table1` to `table6` in printed order; none for `fig6`.

    Raises:
        UserError: no such table.
    """
    if table not in TITLES:
        raise unknown("table", table, TITLES)
    return tuple(row for row in ROWS if row.table == table)


def match(table: str, method: str, masks: int, settings: Settings = frozenset()) -> Row | None:
    """The row that such a run of ours stands beside. Naming a setting's default is the same as leaving it out.

    Table 2 prints V-Net with 12 masks twice: the first is taken, of 62 and 20 scans as in our preset `pancreas`.

    Raises:
        UserError: no such table.
    """
    wanted = (method, masks, departing(settings))
    rows = (row for row in published(table) if (row.method, row.masks, departing(row.settings)) == wanted)
    return next(rows, None)


def departing(settings: Settings) -> Settings:
    """Without the settings that SSCL has anyway."""
    return settings - DEFAULTS


DEFAULTS: Settings = frozenset({("lam", 0.5), ("alpha", 0.999), ("threshold", 0.5)})
"""Of `SSCLConfig`, for what Tables 5, 6 and Figure 6 vary."""

TITLES = {
    "table1": "Comparison with state-of-the-art semi-supervised segmentation methods on the LA dataset.",
    "table2": "Comparison with state-of-the-art semi-supervised segmentation methods on the NIH-Pancreas dataset.",
    "table3": "Comparison with state-of-the-art semi-supervised segmentation methods on the Kits19 dataset.",
    "table4": "Ablation studies of different parts in SSCL on LA dataset.",
    "table5": "Ablation studies of weights λ in the loss function with 10% labeled data.",
    "table6": "Ablation studies of weights α in EMA with 10% and 20% labeled data.",
    "fig6": "The results of SSCL with different thresholds on the LA datasets.",
}
"""The paper's captions."""

_SOURCES = "4000 + 30,000 iterations for SSCL, the sources' schedules for the rest"
TRAINED = {
    "table1": f"80 for training, {_SOURCES}",
    "table2": f"62 for training, {_SOURCES}",
    "table3": f"160 for training, {_SOURCES}",
    **dict.fromkeys(("table4", "table5", "table6", "fig6"), "80 for training, 4000 + 30,000 iterations for SSCL"),
}
"""Section 4.1: on what and how long."""

OF_TABLE: Mapping[str, tuple[str, ...]] = {
    "table1": ("many_engines", "cropped"),
    "table2": ("many_engines", "two_protocols"),
    "table3": ("many_engines", "lists_lost"),
    "table4": ("cropped",),
    "table5": ("cropped",),
    "table6": ("cropped",),
    "fig6": ("cropped", "picture_only"),
}
"""Caveats of all rows of a table: keys of `CAVEATS`."""

CAVEATS: Mapping[str, str] = {
    # of whole tables
    "many_engines": "Most rows are copied from other papers; they were not run on one engine.",
    "cropped": "LA as the literature has it is cropped around the true mask, test cases too (UA-MT, issue 6).",
    "two_protocols": "Table 2 mixes two protocols, other scans and other crops: DTC's and CoraNet's.",
    "lists_lost": "KiTS19: 160 and 50 scans as in GBDL, whose lists are lost. Voxel size and window are not given, nor "
    "whether the tumour counts as kidney.",
    "picture_only": "Of Figure 6 only the picture exists; its numbers are not known.",
    # other cases
    "other_cases": "Of another list of LA test cases: 4 of 20 in common with the usual one.",
    "gbdl_la": "Probably re-run by GBDL's author (inferred), then on another list of test cases: 4 of 20 in common "
    "with the usual one.",
    "gbdl_kits": "Probably re-run by GBDL's author (inferred), on its own preprocessing.",
    "five_splits": "Mean of five random splits, whose lists are lost.",
    "dtc_scans": "Equal, up to rounding, to DTC's table, so probably re-run by its authors (inferred) on their "
    "preparation of the scans; neither data nor script of it are public (DTC, issue 11).",
    "coranet_scans": "Of CoraNet's own preparation of the scans: 18 test cases, not 20, cropped around the true "
    "mask in all axes.",
    "comwin_lists": "The authors' code has 60 and 20 scans and 3 masks unless told otherwise; how 12 of 62 came about "
    "is not known to us.",
    "pancreas_lists": "The text says 62 and 20 scans as in CoraNet, whose lists are 62 and 18. It says that scans were "
    "turned and mirrored; DTC's issue 10 reports a Dice of .409 with that, against .783.",
    "own_masks": "The authors' code draws its labelled scans at random, where others take the first of the list.",
    # other runs than one would think
    "best_on_test": "Best on test: the authors' code scores the test cases during training and keeps the best.",
    "iteration_unknown": "The authors' test script prints four iterations; which one was published is not known to us.",
    "component": "Only the largest component was kept.",
    "component_recalled": "Only the largest component was kept (from memory, unchecked).",
    "component_unknown": "Whether only the largest component was kept is not known.",
    "dtc_readme": "Copied: equal, up to rounding, to the table in DTC's README.",
    "mcnet_run": "Re-run by MC-Net's authors, says DTC's README.",
    "third_party": "Re-run by somebody else; the settings are not published.",
    "source_unknown": "Where the row is from is not known to us.",
    "vnet_copied": "Looks copied from earlier papers (inferred); probably MC-Net+'s re-run (from memory, unchecked).",
    "network_unknown": "Which network, weight and length it is from is not known to us.",
    "entropy": "Not ADVENT's adversarial form: it is DTC's row for entropy minimisation (from memory, unchecked).",
    "reconstructed": "Reconstructed: ours was written without the authors' program; this row is of another one.",
    "other_network": "Other network: the U-Net of URPC's paper, not V-Net (from memory, unchecked).",
    "own_2d": "The authors' code is for 2-D data sets only; the adaptation to 3-D that was run is not known.",
    "slices": "Slices without foreground were left out at test; distances in pixels of a coarser grid.",
    "wide_cases": "The Jaccard index is high for its Dice: the pair needs cases that differ widely.",
    "rerun_higher": "Somebody who ran the published code got about .92; its validation is on the test scans (UCMT, "
    "issue 9).",
    "rerun_lower": "Somebody who ran the published code got .69, its authors .797 after a mend (CoraNet, issue 1).",
    # of the paper itself
    "one_seed": "One fixed seed. The choice of the iteration and a component filter are not mentioned.",
    "two_baselines": "Printed twice: V-Net has a Dice of .786 in Table 1 and .831 in Table 4 with 8 masks, .914 and "
    ".911 with 80.",
    "two_vnets": "Table 2 prints V-Net with 12 masks twice, from two sources.",
    "merged_cell": "Printed beside 50 unlabelled scans, which a V-Net cannot use.",
    "mean_teacher_in": "Uses the unlabelled scans, so it contains the mean teacher, which the paper never shows alone.",
    "header_lambda": "The table's head says λ where α is meant. That the first pair is of 8 masks, the second of 16, "
    "is inferred from the rows of Table 1.",
    "two_alphas": "Section 3.4 calls .999 the default, section 4.4 .99.",
}

_Line = tuple[str, str, Mapping[str, Setting], float, float, float, float, str]
"""Name, method, settings; Dice, Jaccard, 95HD, ASD; caveats."""


def _rows(table: str, masks: int, unlabelled: int, lines: Sequence[_Line]) -> tuple[Row, ...]:
    return tuple(
        Row(table, name, method, masks, unlabelled, frozenset(settings.items()), d, j, hd, asd, tuple(caveats.split()))
        for name, method, settings, d, j, hd, asd, caveats in lines
    )


_TABLE_1 = (
    *_rows("table1", 8, 0, [("VNet", "vnet", {}, 0.786, 0.670, 21.20, 6.07, "two_baselines vnet_copied")]),
    *_rows("table1", 16, 0, [("VNet", "vnet", {}, 0.870, 0.773, 11.85, 3.22, "vnet_copied")]),
    *_rows("table1", 80, 0, [("VNet", "vnet", {}, 0.914, 0.844, 5.48, 1.51, "two_baselines vnet_copied")]),
    *_rows(
        "table1",
        8,
        72,
        [
            ("UA-MT [38] (MICCAI 2019)", "ua_mt", {}, 0.843, 0.735, 13.83, 3.36, "dtc_readme"),
            ("SASSNet [14] (MICCAI 2020)", "sassnet", {}, 0.873, 0.777, 9.62, 2.55, "dtc_readme component_recalled"),
            ("Double-UA [32] (MICCAI 2020)", "double_ua", {}, 0.859, 0.758, 12.67, 3.31, "dtc_readme reconstructed"),
            ("LG-ER-MT [9] (MICCAI 2020)", "lg_er_mt", {}, 0.855, 0.751, 13.29, 3.77, "dtc_readme iteration_unknown"),
            ("Tripled-UA [31] (MICCAI 2021)", "tripled_ua", {}, 0.868, 0.768, 10.42, 2.98, "gbdl_la own_2d"),
            ("URPC [17] (MICCAI 2021)", "urpc", {}, 0.850, 0.744, 15.37, 3.96, "third_party other_network"),
            ("DTC [16] (AAAI 2021)", "dtc", {}, 0.875, 0.782, 8.23, 2.36, "dtc_readme mcnet_run component_unknown"),
            ("SS-Net [34] (MICCAI 2022)", "ss_net", {}, 0.886, 0.796, 7.49, 1.90, "best_on_test component"),
            ("CoraNet [25] (TMI 2022)", "coranet", {}, 0.866, 0.781, 12.11, 2.40, "gbdl_la wide_cases"),
            ("GBDL [30] (CVPR 2022)", "gbdl", {}, 0.884, 0.792, 5.89, 1.60, "other_cases slices"),
            ("UCMT [23] (IJCAI 2023)", "ucmt", {}, 0.881, 0.791, 9.14, 3.06, "own_masks component rerun_higher"),
            ("AC-MT [36] (MedIA 2023)", "ac_mt", {}, 0.891, 0.805, 11.05, 2.19, "best_on_test"),
            ("SSCL (ours)", "sscl", {}, 0.893, 0.807, 7.40, 2.03, "one_seed"),
        ],
    ),
    *_rows(
        "table1",
        16,
        64,
        [
            ("UA-MT [38] (MICCAI 2019)", "ua_mt", {}, 0.889, 0.802, 7.32, 2.26, "dtc_readme"),
            ("SASSNet [14] (MICCAI 2020)", "sassnet", {}, 0.895, 0.812, 8.24, 2.20, "dtc_readme component_recalled"),
            ("Double-UA [32] (MICCAI 2020)", "double_ua", {}, 0.897, 0.814, 7.04, 2.03, "dtc_readme reconstructed"),
            ("LG-ER-MT [9] (MICCAI 2020)", "lg_er_mt", {}, 0.896, 0.813, 7.16, 2.06, "dtc_readme iteration_unknown"),
            ("Tripled-UA [31] (MICCAI 2021)", "tripled_ua", {}, 0.893, 0.810, 7.42, 2.21, "gbdl_la own_2d"),
            ("URPC [17] (MICCAI 2021)", "urpc", {}, 0.887, 0.799, 12.73, 3.66, "third_party other_network"),
            ("DTC [16] (AAAI 2021)", "dtc", {}, 0.894, 0.810, 7.32, 2.10, "dtc_readme component_unknown"),
            ("SS-Net [34] (MICCAI 2022)", "ss_net", {}, 0.889, 0.802, 8.02, 2.36, "source_unknown"),
            ("CoraNet [25] (TMI 2022)", "coranet", {}, 0.887, 0.811, 7.55, 2.45, "gbdl_la wide_cases"),
            ("GBDL [30] (CVPR 2022)", "gbdl", {}, 0.894, 0.822, 4.03, 1.48, "other_cases slices wide_cases"),
            ("UCMT [23] (IJCAI 2023)", "ucmt", {}, 0.904, 0.825, 6.31, 1.70, "own_masks component rerun_higher"),
            ("AC-MT [36] (MedIA 2023)", "ac_mt", {}, 0.903, 0.824, 6.21, 1.76, "best_on_test"),
            ("SSCL (ours)", "sscl", {}, 0.905, 0.828, 6.39, 1.94, "one_seed"),
        ],
    ),
)
_TABLE_2 = (
    *_rows("table2", 12, 0, [("VNet", "vnet", {}, 0.706, 0.567, 22.54, 6.29, "two_vnets dtc_scans")]),
    *_rows("table2", 62, 0, [("VNet", "vnet", {}, 0.818, 0.697, 5.13, 1.34, "dtc_scans")]),
    *_rows(
        "table2",
        12,
        50,
        [
            ("VNet [18] (3DV 2016)", "vnet", {}, 0.700, 0.556, 14.27, 1.64, "two_vnets coranet_scans merged_cell"),
            ("DAN [39] (MICCAI 2017)", "dan", {}, 0.767, 0.633, 11.13, 2.97, "dtc_scans network_unknown"),
            ("ADVNET [29] (CVPR 2019)", "advent", {}, 0.753, 0.617, 11.72, 3.88, "dtc_scans network_unknown entropy"),
            ("UA-MT [38] (MICCAI 2019)", "ua_mt", {}, 0.773, 0.638, 11.90, 3.06, "dtc_scans"),
            ("SASSNet [14] (MICCAI 2020)", "sassnet", {}, 0.777, 0.641, 10.93, 3.05, "dtc_scans"),
            ("DTC [16] (AAAI 2021)", "dtc", {}, 0.783, 0.648, 8.36, 2.25, "dtc_scans"),
            ("CoraNet [25] (TMI 2022)", "coranet", {}, 0.797, 0.667, 7.59, 1.89, "coranet_scans rerun_lower"),
            ("ComWin [33] (TMI 2023)", "comwin", {}, 0.796, 0.670, 6.95, 1.34, "source_unknown comwin_lists"),
            ("SSCL (ours)", "sscl", {}, 0.806, 0.678, 5.83, 1.63, "one_seed pancreas_lists"),
        ],
    ),
)
_TABLE_3 = _rows(
    "table3",
    16,
    144,
    [
        ("UA-MT [38] (MICCAI 2019)", "ua_mt", {}, 0.883, 0.802, 9.46, 2.89, "gbdl_kits wide_cases"),
        ("SASSNet [14] (MICCAI 2020)", "sassnet", {}, 0.891, 0.822, 7.54, 2.41, "gbdl_kits wide_cases"),
        (
            "Double-UA [32] (MICCAI 2020)",
            "double_ua",
            {},
            0.895,
            0.828,
            7.42,
            2.16,
            "gbdl_kits wide_cases reconstructed",
        ),
        ("Tripled-UA [31] (MICCAI 2021)", "tripled_ua", {}, 0.887, 0.815, 7.55, 2.12, "gbdl_kits wide_cases own_2d"),
        ("CoraNet [25] (TMI 2022)", "coranet", {}, 0.898, 0.820, 7.23, 1.89, "gbdl_kits"),
        ("GBDL [30] (CVPR 2022)", "gbdl", {}, 0.911, 0.840, 6.38, 1.51, "slices five_splits"),
        ("SSCL (ours)", "sscl", {}, 0.913, 0.843, 5.08, 1.30, "one_seed"),
    ],
)
_TABLE_4 = (
    *_rows("table4", 8, 0, [("Baseline", "vnet", {}, 0.831, 0.717, 21.46, 6.55, "one_seed two_baselines")]),
    *_rows("table4", 80, 0, [("Upper-bound", "vnet", {}, 0.911, 0.836, 10.09, 2.67, "one_seed two_baselines")]),
    *_rows(
        "table4",
        8,
        72,
        [
            ("Baseline + REC", "sscl", {"spectral": False}, 0.867, 0.768, 14.86, 4.50, "one_seed mean_teacher_in"),
            ("Baseline + FFC", "sscl", {"reconstructor": False}, 0.878, 0.784, 13.48, 3.62, "one_seed mean_teacher_in"),
            ("SSCL", "sscl", {}, 0.893, 0.807, 7.40, 2.03, "one_seed"),
        ],
    ),
)
_TABLE_5 = _rows(
    "table5",
    8,
    72,
    [
        ("λ = 0.5", "sscl", {"lam": 0.5}, 0.893, 0.807, 7.40, 2.03, "one_seed"),
        ("λ = 1.0", "sscl", {"lam": 1.0}, 0.890, 0.803, 8.28, 2.56, "one_seed"),
        ("λ = 1.5", "sscl", {"lam": 1.5}, 0.888, 0.800, 9.96, 3.12, "one_seed"),
        ("λ = 2.0", "sscl", {"lam": 2.0}, 0.887, 0.797, 11.82, 3.29, "one_seed"),
        ("λ = 2.5", "sscl", {"lam": 2.5}, 0.869, 0.771, 12.02, 3.87, "one_seed"),
        ("λ = 3.0", "sscl", {"lam": 3.0}, 0.711, 0.560, 26.88, 9.43, "one_seed"),
    ],
)
_TABLE_6 = (
    *_rows(
        "table6",
        8,
        72,
        [
            ("α = 0.99", "sscl", {"alpha": 0.99}, 0.891, 0.805, 7.89, 2.04, "one_seed header_lambda two_alphas"),
            ("α = 0.999", "sscl", {"alpha": 0.999}, 0.893, 0.807, 7.40, 2.03, "one_seed header_lambda two_alphas"),
        ],
    ),
    *_rows(
        "table6",
        16,
        64,
        [
            ("α = 0.99", "sscl", {"alpha": 0.99}, 0.900, 0.820, 6.99, 2.44, "one_seed header_lambda two_alphas"),
            ("α = 0.999", "sscl", {"alpha": 0.999}, 0.905, 0.828, 6.39, 1.94, "one_seed header_lambda two_alphas"),
        ],
    ),
)

ROWS = (*_TABLE_1, *_TABLE_2, *_TABLE_3, *_TABLE_4, *_TABLE_5, *_TABLE_6)
"""Every printed row, in printed order."""
