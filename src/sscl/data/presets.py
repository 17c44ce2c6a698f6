"""What is known about data sets: the settings that the literature fixes, as data. No preset: the plan is automatic."""

from typing import Any

from pydantic import Field

from sscl.core.config import Config
from sscl.core.errors import unknown
from sscl.data import published_lists
from sscl.data.mask_crop import MaskCrop


class Preset(Config):
    """Settings of one data set, as the paper or its lineage has them. Every one can be overridden."""

    plan: dict[str, Any]
    """Fields of `sscl.core.plan.Plan` that are not planned from the scans."""
    iterations: int
    """Training steps, both phases together."""
    method: dict[str, Any] = Field(default_factory=dict)
    """Settings for every method whose configuration has a field of that name."""
    methods: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Method to further settings of its own."""
    labels: tuple[str, ...] | None = None
    """Class names instead of those that the source declares."""
    label_map: dict[int, int] = Field(default_factory=dict)
    """Value in mask files to class, with `labels`."""
    longest_xy: tuple[int, int] | None = None
    """Voxels along the longer of x and y, at least and at most, of files that hold no voxel size: where there are fewer
    or more of them, they have probably another size than the preset takes.
    """
    order: tuple[str, ...] = ()
    """The published list of training cases: the first so many are the labelled ones."""
    test: tuple[str, ...] = ()
    """The published list of test cases, with `order`."""
    duplicates: tuple[str, ...] = ()
    """Cases that are said to be one scan."""
    mask_crop: MaskCrop | None = None
    """Cut every scan to a box around its mask, of test cases too: only in presets that are called `-literature`."""


# LA, 2018 Atrial Segmentation Challenge. Paper sec. 4.1; patch, stride and z-score are those of UA-MT, SS-Net
# and BCP. `mri_norm2.h5` holds no voxel size: the challenge's is 0.625 mm isotropic. 4k + 30k steps: paper sec. 4.1.
_LA = Preset(
    plan={
        "spacing_mm": (0.625, 0.625, 0.625),
        "spacing_if_missing_mm": (0.625, 0.625, 0.625),
        "intensity": {"scaling": "zscore"},
        "patch": (112, 112, 80),
        "stride": (18, 18, 4),
        "rotate": True,
        "flip": True,
        "foreground_share": 0.0,
    },
    iterations=34_000,
    longest_xy=(112, 10_000),  # UA-MT's files are padded to the patch; copies of half the resolution are smaller
)

# What runs of some hundred iterations need, chosen on development cases (docs/log.md, 2026-11-23): no dropout, all four
# crops of a pre-training step labelled.
_SHORT = {"width": 8, "dropout": 0.0, "pretrain_share": 100 / 600}

# One weight of Dice + cross-entropy for all methods, so that they differ in what they do with unlabelled scans. Where a
# method's own is 0.5, its other weights are doubled with it, which keeps the published ratio.
_DOUBLED: dict[str, dict[str, Any]] = {
    "vnet": {"supervised_weight": 1.0},
    "mean_teacher": {"supervised_weight": 1.0, "consistency": 0.2},
    "ua_mt": {"supervised_weight": 1.0, "consistency": 0.2},
    "lg_er_mt": {"supervised_weight": 1.0, "consistency": 0.2},
    "double_ua": {"supervised_weight": 1.0, "consistency": 0.2},
    "ac_mt": {"supervised_weight": 1.0, "consistency": 0.2},
    "urpc": {"supervised_weight": 1.0, "consistency": 0.2},
    "advent": {"supervised_weight": 1.0, "entropy": 0.2, "adversarial": 0.002},
    "dan": {"supervised_weight": 1.0, "adversarial": 0.2},
    "bcp": {"supervised_weight": 1.0},
    "comwin": {"supervised_weight": 1.0},
}

# A teacher with a plain 0.999 would still be half the pre-trained student after 500 steps, hence SSCL's warm-up. Of
# GBDL, UA-MT, Double-UA and Tripled-UA dropout is no regularisation: they measure by it how sure a network is
# (Tripled-UA has it in the teacher alone). UCMT's ramp takes 100 iterations in its code, not 3. Tripled-UA's code
# reconstructs images of 0 to 1; of z-scored ones the squared error is 25 times larger, and would be most of its loss.
# With the paper's filters GBDL's latent model would take 17 s a step.
_SHORT_METHODS: dict[str, dict[str, Any]] = {
    **_DOUBLED,
    "ua_mt": _DOUBLED["ua_mt"] | {"dropout": 0.3},
    "double_ua": _DOUBLED["double_ua"] | {"dropout": 0.3},
    "tripled_ua": {"dropout": 0.5, "reconstruction": 0.04},
    "gbdl": {"dropout": 0.3, "latent_filters": 1},
    "ucmt": {"ramp_share": 0.1666667},
    "sscl": {"ema_warmup": True, "pretrain_recon_unlabelled": False},
}

# Ours: LA small enough for one CPU thread (about 10 minutes). A third of the resolution, half the width. Files
# without a voxel size are taken for the half-resolution copies (1.25 mm, at most 122 voxels in x and y); for
# full-resolution h5 files: --set spacing_if_missing_mm=0.625,0.625,0.625.
_LA_QUICK = Preset(
    plan={
        "spacing_mm": (1.875, 1.875, 1.875),
        "spacing_if_missing_mm": (1.25, 1.25, 1.25),
        "intensity": {"scaling": "zscore"},
        "patch": (48, 48, 32),
        "stride": (16, 16, 16),
        "rotate": True,
        "flip": True,
        "foreground_share": 0.0,
    },
    iterations=600,
    method=_SHORT,
    methods=_SHORT_METHODS,
    longest_xy=(1, 130),
)

# The crop of the challenge's scans that made the community's h5 files (UA-MT): z-scores of the whole scan, then in x
# and y the mask's box, widened to 112, and on each side about 10 to 19 voxels more, drawn at random: here always 15.
# Those files can therefore not be made anew, only their like.
_LA_LITERATURE = _LA.model_copy(
    update={
        "plan": {**_LA.plan, "intensity": {"scaling": "none"}},
        "mask_crop": MaskCrop(margin=(15, 15, None), at_least=(112 + 2 * 15, 112 + 2 * 15, 1), zscore_first=True),
    }
)

# NIH Pancreas-CT. Window, 1 mm and 16^3 stride: paper sec. 4.1; of the two protocols that it mixes this is MC-Net's and
# DTC's (window, then z-score of the volume). Turning and mirroring off: with them DTC's 12-label run falls to 40.9 Dice
# (its issue 10), although the paper's text says that they are used. Lists: MC-Net's 62 + 20.
_PANCREAS = Preset(
    plan={
        "spacing_mm": (1.0, 1.0, 1.0),
        "intensity": {"window": (-125.0, 275.0), "scaling": "zscore"},
        "patch": (96, 96, 96),
        "stride": (16, 16, 16),
        "rotate": False,
        "flip": False,
        "foreground_share": 0.0,
    },
    iterations=34_000,
    order=published_lists.PANCREAS_MC_NET,
    test=published_lists.PANCREAS_MC_NET_TEST,
    duplicates=published_lists.PANCREAS_DUPLICATES,
)

# The other protocol: CoraNet's and BCP's 62 + 18 cases, the window to 0..1.
_PANCREAS_CORANET = _PANCREAS.model_copy(
    update={
        "plan": {**_PANCREAS.plan, "intensity": {"window": (-125.0, 275.0), "scaling": "unit"}},
        "order": published_lists.PANCREAS_CORANET,
        "test": published_lists.PANCREAS_CORANET_TEST,
    }
)

# Their crops, at 1 mm: MC-Net's box in x and y with 25 voxels on each side, at least 96, then z-scores of the crop;
# CoraNet's the same on all three axes.
_PANCREAS_LITERATURE = _PANCREAS.model_copy(update={"mask_crop": MaskCrop(margin=(25, 25, None), at_least=(96, 96, 1))})
_PANCREAS_CORANET_LITERATURE = _PANCREAS_CORANET.model_copy(
    update={"mask_crop": MaskCrop(margin=(25, 25, 25), at_least=(96, 96, 96))}
)

# KiTS19. Patch and stride: paper sec. 4.1; window: GBDL's; voxel size: nnU-Net's low-resolution plan for KiTS19, with
# which 128x128x64 covers both kidneys. The paper gives no voxel size, nor says whether the tumour (2) counts as kidney.
# Here it does, because every table of the paper has one organ. No list of 160 + 50 was published: this one is ours.
_KITS19 = Preset(
    plan={
        "spacing_mm": (1.62, 1.62, 3.22),
        "intensity": {"window": (-100.0, 250.0), "scaling": "zscore"},
        "patch": (128, 128, 64),
        "stride": (18, 18, 4),
        "rotate": True,
        "flip": True,
        "foreground_share": 0.0,
    },
    iterations=34_000,
    labels=("background", "kidney"),
    label_map={2: 1},
    order=published_lists.KITS19_OURS,
    test=published_lists.KITS19_OURS_TEST,
)

# Ours: the embedded virtual patients (phantom.py), coarse enough for minutes; method settings as in la-quick.
_DEMO = Preset(
    plan={
        "spacing_mm": (2.25, 2.25, 2.25),
        "intensity": {"scaling": "zscore"},
        "patch": (32, 32, 32),
        "stride": (8, 8, 8),
        "rotate": True,
        "flip": True,
        "foreground_share": 0.0,
    },
    iterations=600,
    method=_SHORT,
    methods=_SHORT_METHODS,
)

PRESETS: dict[str, Preset] = {
    "la": _LA,
    "la-quick": _LA_QUICK,
    "la-literature": _LA_LITERATURE,
    "pancreas": _PANCREAS,
    "pancreas-literature": _PANCREAS_LITERATURE,
    "pancreas-coranet": _PANCREAS_CORANET,
    "pancreas-coranet-literature": _PANCREAS_CORANET_LITERATURE,
    "kits19": _KITS19,
    "demo": _DEMO,
}


def preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        UserError: no such preset.
    """
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]
