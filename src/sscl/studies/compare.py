"""`sscl compare`: did the unlabelled scans help? Scored runs in, an answer in words and numbers out."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sscl.core.errors import UserError
from sscl.engine.run import FREE
from sscl.methods import METHODS, method_class
from sscl.report.statistics import Interval, Scores, holm, paired_difference, wilcoxon
from sscl.report.tables import dice_by_case, num_failed
from sscl.stages.record import Result, read_result


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only."""

    label: str
    method: str
    config: Mapping[str, Any]
    masks: int
    unlabelled: int
    iterations: int
    selection: str
    """How its weights were chosen; empty: the last ones."""
    dice: Scores
    not_ok: int
    """Cases, over all seeds, of which a mask was empty or missing."""

    @property
    def mean(self) -> float:
        """Dice over cases and seeds."""
        return fmean(fmean(cases.values()) for cases in self.dice.values())

    @property
    def by_case(self) -> dict[str, float]:
        """Each case's mean over seeds."""
        return {case: fmean(seed[case] for seed in self.dice.values()) for case in next(iter(self.dice.values()))}

    @property
    def spread(self) -> float | None:
        """Standard deviation over cases, each case's mean over seeds first."""
        cases = list(self.by_case.values())
        return stdev(cases) if len(cases) > 1 else None


@dataclass(frozen=True)
class Gain:
    """What a group is ahead of its baseline: by its unlabelled scans, or, on the masks alone, by its network. p:
    Wilcoxon's, corrected by Holm over all gains of the call."""

    ours: Group
    baseline: Group
    interval: Interval
    p: float

    def words(self) -> str:
        """The answer."""
        low, high, mean = self.interval.low, self.interval.high, self.interval.mean
        verb = "raised" if low > 0 else "lowered" if high < 0 else "changed"
        sure = "" if low > 0 or high < 0 else " The interval holds 0: it may be nothing."
        seeds = f"{self.interval.num_seeds} seed{'s' if self.interval.num_seeds > 1 else ''}"
        one = " One seed says nothing about the spread between trainings." if self.interval.num_seeds == 1 else ""
        what, against = f"the {self.ours.unlabelled} unlabelled scans", "the same network trained on the masks alone"
        if not self.ours.unlabelled:
            what, against = "and nothing else, its network and schedule", "the plain V-Net"
        return (
            f"{self.ours.label}: with {self.ours.masks} masks, {what} {verb} Dice "
            f"by {mean:+.3f} (95 % interval {low:+.3f} to {high:+.3f}; {self.interval.num_cases} cases, {seeds}; "
            f"Wilcoxon over cases, Holm: p {_p(self.p)}), against {against} ({self.baseline.label}).{sure}{one}"
        )


@dataclass(frozen=True)
class Comparison:
    """table: the head first. answers: one for each group that learnt from unlabelled scans, or with another network
    than `vnet` from the masks alone. curve: label budgets."""

    table: list[list[str]]
    answers: list[str]
    curve: list[list[str]]


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare scored runs (run folders, records, or folders of records).

    Only the difference to the labelled-only run of the same network, on the same masks and of the same length, is
    credited to the unlabelled scans. What else a method is ahead of `vnet` is its network's: the difference of that
    labelled-only run to `vnet`. Where a method's loss of
    the labelled scans is not its baseline's (docs/methods), the difference holds that as well.

    Raises:
        UserError: nothing scored, or runs that were scored on different cases.
    """
    groups = grouped([result for folder in folders for result in _results(folder)])
    found = gains(groups)
    by_group = {id(gain.ours): gain for gain in found}
    rows = [
        [
            "method",
            "masks",
            "unlabelled",
            "seeds",
            "Dice",
            "failed",
            "unlabelled scans gave",
            "network gave",
            "p (Holm)",
        ]
    ]
    for group in sorted(groups, key=lambda group: (group.masks, -group.mean)):
        gain = by_group.get(id(group))
        between = f"{group.mean:.3f}" + (f" +- {group.spread:.3f}" if group.spread is not None else "")
        given = f"{gain.interval.mean:+.3f} [{gain.interval.low:+.3f}, {gain.interval.high:+.3f}]" if gain else "-"
        p = _p(gain.p).removeprefix("= ") if gain else "-"
        counts = [str(group.masks), str(group.unlabelled), str(len(group.dice))]
        by_what = [given, "-"] if group.unlabelled else ["-", given]
        rows.append([group.label, *counts, between, str(group.not_ok), *by_what, p])
    open_questions = [group for group in groups if group.unlabelled and id(group) not in by_group]
    answers = [*(gain.words() for gain in found), *map(_unanswered, open_questions)]
    return Comparison(rows, answers, budget_curve(groups))


def grouped(results: Sequence[Result]) -> list[Group]:
    """Runs of one recipe but for the seed, together.

    Raises:
        UserError: none, or different test cases.
    """
    if not results:
        raise UserError("nothing to compare: no scored run was found.")
    together: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        recipe = result.recipe.model_dump_json(exclude={*FREE, "seed", "config"})
        key = recipe + repr(_config(result)) + result.select
        together[key].append(result)
    first, *others = ({row["case"] for row in result.rows} for result in results)
    for result, cases in zip(results[1:], others, strict=True):
        if odd := sorted(first ^ cases)[:3]:
            raise UserError(
                f"{results[0].name} and {result.name} were scored on different cases ({', '.join(odd)}). Compare runs "
                "with one list of test cases."
            )
    configs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        configs[result.recipe.method].append(_config(result))
    plain = {method: _plain(method, of_method) for method, of_method in configs.items()}
    return [_group(runs, plain[runs[0].recipe.method]) for runs in together.values()]


def gains(groups: Sequence[Group]) -> list[Gain]:
    """Each group against its baseline, where that is among the groups: with unlabelled scans the same network on the
    masks alone, without them `vnet`."""
    pairs = [(g, b) for g in groups if (b := _baseline(g, groups)) is not None]
    raw = [wilcoxon(ours.by_case, baseline.by_case) for ours, baseline in pairs]
    return [
        Gain(ours, baseline, paired_difference(ours.dice, baseline.dice), p)
        for (ours, baseline), p in zip(pairs, holm(raw), strict=True)
    ]


def budget_curve(groups: Sequence[Group]) -> list[list[str]]:
    """Methods that were run with several numbers of masks: one row each, the head first; empty where there is none."""
    budgets = sorted({group.masks for group in groups})
    by_label: dict[str, dict[int, float]] = defaultdict(dict)
    for group in groups:
        by_label[group.label][group.masks] = group.mean
    curves = {label: points for label, points in by_label.items() if len(points) > 1}
    if not curves:
        return []
    head = ["masks", *map(str, budgets)]
    return [
        head,
        *([label, *(f"{points[n]:.3f}" if n in points else "-" for n in budgets)] for label, points in curves.items()),
    ]


def _results(folder: Path) -> list[Result]:
    """One run, or all the records and runs in a folder of them."""
    if (folder / "recipe.yaml").is_file():
        return [read_result(folder)]
    inside = sorted(path.parent for path in folder.glob("*/recipe.yaml")) if folder.is_dir() else []
    if not inside:
        raise UserError(f"{folder}: neither a run, a record, nor a folder of them.")
    return [read_result(path) for path in inside]


def _config(result: Result) -> dict[str, Any]:
    """All settings of its method; those that have come since the run have their defaults."""
    name = result.recipe.method
    cls = method_class(name, f"{result.name}: method")
    return cls.Config.read(result.recipe.config, f"{result.name}: settings of '{name}'").model_dump()


def _group(runs: Sequence[Result], plain: Mapping[str, Any]) -> Group:
    recipe, config, dice = runs[0].recipe, _config(runs[0]), {}
    for run in runs:
        if run.recipe.seed in dice:
            raise UserError(f"{run.name}: a second run of seed {run.recipe.seed} with one recipe. Name one of them.")
        dice[run.recipe.seed] = dice_by_case(run.rows)
    return Group(
        label=_label(recipe.method, config, plain) + _selection(runs[0]), method=recipe.method, config=config,
        masks=len(recipe.labelled), unlabelled=len(recipe.unlabelled), iterations=recipe.iterations,
        selection=_selection(runs[0]), dice=dice, not_ok=sum(num_failed(run.rows) for run in runs),
    )  # fmt: skip


def _label(method: str, config: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    """The method, and where its settings depart from the plain ones of the call: `sscl lam=1.0`."""
    departing = (f"{key}={str(value).lower()}" for key, value in config.items() if value != plain[key])
    return " ".join([method, *departing])


def _selection(run: Result) -> str:
    """For its label: the masks that its weights were chosen by come on top of those that it was trained on."""
    count = len(run.recipe.validation)
    return f", best on {count} further mask{'s' if count > 1 else ''}" if run.select == "best" else ""


def _plain(method: str, configs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Of the settings that a method was run with, those of most runs, mostly the preset's; of equally many, those that
    depart least from its defaults."""
    defaults = method_class(method).Config().model_dump()
    return max(
        configs, key=lambda config: (configs.count(config), -sum(config[key] != defaults[key] for key in defaults))
    )


def _baseline(group: Group, groups: Sequence[Group]) -> Group | None:
    """The same network from the same masks, iterations and settings, without the unlabelled scans, its weights chosen
    alike; of a group without them, `vnet`."""
    name = METHODS[group.method].baseline if group.unlabelled else "vnet"
    wanted = (name, group.masks, 0, group.iterations, group.selection)
    for other in groups:
        found = (other.method, other.masks, other.unlabelled, other.iterations, other.selection)
        if found == wanted and other is not group and _same_network(group, other):
            return other
    return None


def _same_network(group: Group, other: Group) -> bool:
    """Whether settings of network and training are equal, but for what is made of the unlabelled scans."""
    if group.method == other.method:
        acts_with = method_class(group.method).Config.acts_with
        without = {name for name, needs in acts_with.items() if needs.get("unlabelled")} | {"unlabelled"}
        return all(value == other.config[name] for name, value in group.config.items() if name not in without)
    return all(group.config[key] == other.config[key] for key in ("width", "optimiser"))


def _p(value: float) -> str:
    return f"= {value:.3f}" if value >= 0.001 else "< 0.001"


def _unanswered(group: Group) -> str:
    name = METHODS[group.method].baseline
    if name is None:
        return (
            f"{group.label}, {group.masks} masks: no method here trains its network on the masks alone, so what the "
            "unlabelled scans gave cannot be told from what the network gave."
        )
    need = "sscl --set unlabelled=false" if name == "sscl" else name
    alike = " and select its weights alike" if group.selection else ""
    return (
        f"{group.label}, {group.masks} masks: run {need} on the same masks{alike}, to see what the unlabelled scans "
        "gave."
    )
