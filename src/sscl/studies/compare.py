"""`sscl compare`: did the unlabelled scans help? Scored runs in, an answer in words and numbers out."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sscl.core.errors import UserError
from sscl.engine.run import FREE
from sscl.methods import LABELLED_DIFFERS, METHODS, method_class
from sscl.report.statistics import Interval, Scores, holm, paired_difference, same_seeds, wilcoxon
from sscl.report.tables import dice_by_case, num_failed
from sscl.stages.reading import refuse_part, require_same_references
from sscl.stages.record import Result, read_result, read_results


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only."""

    label: str
    method: str
    config: Mapping[str, Any]
    masks: int
    unlabelled: int
    iterations: int
    data: str
    """Digest of the prepared data set: its plan, lists and scans."""
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
    def spread(self) -> float | None:
        """Standard deviation over cases, each case's mean over seeds first."""
        cases = list(by_case(self.dice).values())
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
        verb, by = "changed", f"{mean:+.3f}"
        if low > 0 or high < 0:
            verb, by = ("raised" if low > 0 else "lowered"), f"{abs(mean):.3f}"
        sure = "" if low > 0 or high < 0 else " The interval holds 0: it may be nothing."
        seeds = f"{self.interval.num_seeds} seed{'s' if self.interval.num_seeds > 1 else ''}"
        if self.ours.dice.keys() != self.baseline.dice.keys():
            seeds += f" that both have of {len(self.ours.dice)} and {len(self.baseline.dice)}"
        one = " One seed says nothing about the spread between trainings." if self.interval.num_seeds == 1 else ""
        differs = LABELLED_DIFFERS.get(self.ours.method) if self.ours.unlabelled else None
        more = f" Not only they differ: {differs}." if differs else ""
        what, against = f"the {self.ours.unlabelled} unlabelled scans", "the same network trained on the masks alone"
        if not self.ours.unlabelled:
            what, against = "and nothing else, its network and schedule", "the plain V-Net"
        return (
            f"{self.ours.label}: with {self.ours.masks} masks, {what} {verb} Dice "
            f"by {by} (95 % interval {low:+.3f} to {high:+.3f}; {self.interval.num_cases} cases, {seeds}; "
            f"Wilcoxon over cases, Holm: p {_p(self.p)}), against {against} ({self.baseline.label}).{sure}{one}{more}"
        )


@dataclass(frozen=True)
class Comparison:
    """table: the head first. answers: one for each group that learnt from unlabelled scans, or with another network
    than `vnet` from the masks alone. curve: label budgets. note: how to read the table."""

    table: list[list[str]]
    answers: list[str]
    curve: list[list[str]]
    note: str = (
        "Gains: mean difference of Dice over the seeds that both have, with a 95 % bootstrap interval over cases and "
        "seeds. p: Wilcoxon over cases, corrected for all gains of this call; whether most cases changed alike with "
        "these trainings. It can be small where the interval, which is of the mean and of other trainings, holds 0."
    )


def compare(folders: Sequence[Path]) -> Comparison:
    """Compare scored runs (run folders, records, or folders of records).

    Only the difference to the labelled-only run of the same network, on the same masks and of the same length, is
    credited to the unlabelled scans. What else a method is ahead of `vnet` is its network's: the difference of that
    labelled-only run to `vnet`. Where a method treats the labelled scans otherwise than its baseline, the answer says
    so: the difference holds that as well.

    Raises:
        UserError: nothing scored, or runs that were scored on different cases.
    """
    return compared([result for folder in folders for result in _results(folder)])


def compared(results: Sequence[Result]) -> Comparison:
    """As `compare`, of results that have been read."""
    groups = sorted(grouped(results), key=lambda group: (group.masks, -group.mean))
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
    for group in groups:
        gain = by_group.get(id(group))
        between = f"{group.mean:.3f}" + (f" +- {group.spread:.3f}" if group.spread is not None else "")
        given = f"{gain.interval.mean:+.3f} [{gain.interval.low:+.3f}, {gain.interval.high:+.3f}]" if gain else "-"
        p = _p(gain.p).removeprefix("= ") if gain else "-"
        counts = [str(group.masks), str(group.unlabelled), str(len(group.dice))]
        by_what = [given, "-"] if group.unlabelled else ["-", given]
        rows.append([group.label, *counts, between, str(group.not_ok), *by_what, p])
    open_questions = [group for group in groups if group.unlabelled and id(group) not in by_group]
    answers = [*(gain.words() for gain in found), *(_unanswered(group, groups) for group in open_questions)]
    return Comparison(rows, answers, budget_curve(groups))


def grouped(results: Sequence[Result]) -> list[Group]:
    """Runs of one recipe but for the seed, together.

    Raises:
        UserError: none, or different test cases, or other reference masks of them.
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
    require_same_references((result.name, result.scored_against) for result in results)
    configs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        configs[result.recipe.method].append(_config(result))
    plain = {method: _plain(method, of_method) for method, of_method in configs.items()}
    return _told_apart([_group(runs, plain[runs[0].recipe.method]) for runs in together.values()])


def gains(groups: Sequence[Group]) -> list[Gain]:
    """Each group against its baseline, where that is among the groups: with unlabelled scans the same network on the
    masks alone, without them `vnet`."""
    pairs = [(group, found[0]) for group in groups if len(found := _baselines(group, groups)) == 1]
    raw = [wilcoxon(*map(by_case, same_seeds(ours.dice, baseline.dice))) for ours, baseline in pairs]
    return [
        Gain(ours, baseline, paired_difference(ours.dice, baseline.dice), p)
        for (ours, baseline), p in zip(pairs, holm(raw), strict=True)
    ]


def by_case(dice: Scores) -> dict[str, float]:
    """Each case's mean over seeds."""
    return {case: fmean(seed[case] for seed in dice.values()) for case in next(iter(dice.values()))}


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
        refuse_part(folder)
        raise UserError(f"{folder}: neither a run, a record, nor a folder of them.")
    return read_results(inside)


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
        data=recipe.data_digest, selection=_selection(runs[0]), dice=dice,
        not_ok=sum(num_failed(run.rows) for run in runs),
    )  # fmt: skip


def _told_apart(groups: Sequence[Group]) -> list[Group]:
    """With the number of iterations in the label where it is not everywhere the same, then the data set where two
    groups still have one name."""
    if len({group.iterations for group in groups}) > 1:
        groups = [replace(group, label=f"{group.label}, {group.iterations} iterations") for group in groups]
    names = [(group.label, group.masks) for group in groups]
    return [
        replace(group, label=f"{group.label}, data {group.data[:8]}") if names.count(name) > 1 else group
        for group, name in zip(groups, names, strict=True)
    ]


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
    depart least from its defaults. A run on the masks alone is never plain: its label says so."""
    defaults = method_class(method).Config().model_dump()
    usual = max(
        configs, key=lambda config: (configs.count(config), -sum(config[key] != defaults[key] for key in defaults))
    )
    return {**usual, **{key: True for key in usual if key == "unlabelled"}}


def _baselines(group: Group, groups: Sequence[Group]) -> list[Group]:
    """The same network on the same data set, with its iterations and settings, without the unlabelled scans, its
    weights chosen alike; of a group without them, `vnet`."""
    return [other for other in _candidates(group, groups) if not _unlike(group, other)]


def _candidates(group: Group, groups: Sequence[Group]) -> list[Group]:
    """Its baselines as far as settings do not matter."""
    if group.method == "vnet":
        return []
    name = METHODS[group.method].baseline if group.unlabelled else "vnet"
    if name is None:
        return []
    alone = replace(group, method=name, unlabelled=0)
    return [other for other in groups if _same_task(alone, other)]


def _unlike(group: Group, other: Group) -> list[str]:
    """Settings of network and training that differ, but for what is made of the unlabelled scans."""
    if group.method == other.method:
        acts_with = method_class(group.method).Config.acts_with
        without = {name for name, needs in acts_with.items() if needs.get("unlabelled")} | {"unlabelled"}
        names = group.config.keys() - without
    else:
        names = {"width", "dropout", "optimiser"} & group.config.keys() & other.config.keys()
    return sorted(name for name in names if group.config[name] != other.config[name])


def _p(value: float) -> str:
    return f"= {value:.3f}" if value >= 0.001 else "< 0.001"


def _unanswered(group: Group, groups: Sequence[Group]) -> str:
    """What to do to get an answer, and what is known without."""
    name, who = METHODS[group.method].baseline, f"{group.label}, {group.masks} masks"
    if name is None:
        why = (
            "no method here trains its network on the masks alone, so what the unlabelled scans gave cannot be told "
            "from what the network gave."
        )
    elif len(several := _baselines(group, groups)) > 1:
        labels = ", ".join(other.label for other in several)
        why = f"several runs are its network on the masks alone ({labels}). Name one of them only."
    else:
        usual = _plain(group.method, [other.config for other in groups if other.method == group.method])
        others = _candidates(group, groups) or ([replace(group, config=usual)] if name == group.method else [])
        unlike = {setting for other in others for setting in _unlike(group, other)} - {"optimiser"}
        settings = ["unlabelled=false"] if name == group.method else []
        settings += [f"{setting}={str(group.config[setting]).lower()}" for setting in sorted(unlike)]
        need = f"sscl train DATASET -o RUN --method {name} --iterations {group.iterations}"
        need += "".join(f" --set {text}" for text in settings)
        alike = " and --validation" if group.selection else ""
        why = (
            f"what the unlabelled scans gave is told by a run of the same network without them: {need}, with the same "
            f"seeds, settings{alike}."
        )
    return f"{who}: {why}{_beside_vnet(group, groups)}"


def _beside_vnet(group: Group, groups: Sequence[Group]) -> str:
    """The whole difference to the V-Net on the same data set, where there is one such V-Net."""
    alone = replace(group, method="vnet", unlabelled=0)
    several = [other for other in groups if _same_task(alone, other)]
    plain = [other for other in several if len(several) == 1 or other.label.split(",")[0] == "vnet"]
    if len(plain) != 1:
        return ""
    gap = paired_difference(group.dice, plain[0].dice)
    return (
        f" Beside {plain[0].label}, network, schedule and unlabelled scans together: {gap.mean:+.3f} "
        f"[{gap.low:+.3f}, {gap.high:+.3f}]."
    )


def _same_task(group: Group, other: Group) -> bool:
    """Equal in everything but the settings and the seeds."""
    return all(
        getattr(group, name) == getattr(other, name)
        for name in ("method", "data", "masks", "unlabelled", "iterations", "selection")
    )
