"""What the design promises of every method, as functions that raise AssertionError: tests and mutants run the same.

Width 2 on 32x32x16 crops: 16 is the smallest size that survives four halvings, the bottleneck is 2x2x1. Three classes,
so that nothing holds for two only.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from sscl.core.batch import Batch, Clock
from sscl.core.config import Config
from sscl.core.errors import UserError
from sscl.core.method import Method, Phase
from sscl.core.plan import IGNORE, Plan
from sscl.data.patches import MAKERS, Loaded, PatchLoader
from sscl.data.store import CaseStore
from sscl.engine.train import Span, Trainer, timeline

SIZE, CLASSES, WIDTH = (32, 32, 16), 3, 2
Cls = type[Method]
State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Average:
    """A teacher and whom it follows: parameters <- alpha teacher + (1 - alpha) student in the last phase, which it
    starts as that student; alpha = min(1 - 1 / (t + 1), config.alpha) where config.ema_warmup, t counted in the phase.
    """

    teacher: str = "teacher"
    student: str = "student"
    second: str | None = None
    """Another student: the teacher follows share student + (1 - share) second."""
    share: float = 1.0
    trains: bool = True
    """Whether it teaches in train mode: dropout, statistics of each batch. Never so with the setting `teacher_eval`."""
    steps: int = 1
    """It moves after each of so many optimiser steps of an iteration, by one alpha; they are the last ones."""

    def followed(self, state: State, name: str) -> Tensor:
        """What the teacher's parameter `name` follows, in double precision."""
        weight = state[f"{self.student}.{name}"].double()
        if self.second is None:
            return weight
        return self.share * weight + (1 - self.share) * state[f"{self.second}.{name}"].double()


# ---------------------------------------------------------------- running a method


def configured(cls: Cls, **settings: Any) -> Any:
    return cls.Config.read({"width": WIDTH, **settings}, cls.__name__)


def build(cls: Cls, config: Any, seed: int = 0) -> Method:
    torch.manual_seed(seed)
    return cls(config, 1, CLASSES)


def batch_of(phase: Phase, seed: int = 0) -> Batch:
    """Noise with a label that can be learned from it; every class and IGNORE occur."""
    generator = torch.Generator().manual_seed(seed)
    labelled, unlabelled = (torch.randn(n, 1, *SIZE, generator=generator) for n in phase.batch)
    label = (labelled[:, 0] > 0).long() + (labelled[:, 0] > 1).long()
    label[:, :2] = IGNORE
    return Batch(labelled, label, unlabelled, _targets(label))


def _targets(label: Tensor) -> dict[str, Tensor]:
    return {name: make(label, CLASSES) for name, make in MAKERS.items()}


def load(span: Span, iteration: int) -> Loaded:
    return Loaded(batch_of(span.phase, seed=iteration), ("case",))


def trainer_of(cls: Cls, config: Any, iterations: int, seed: int = 0) -> Trainer:
    return Trainer(build(cls, config, seed), iterations, seed=0, device=torch.device("cpu"))


def advance(trainer: Trainer, stop_at: int) -> list[dict[str, Any]]:
    logs: list[dict[str, Any]] = []

    def keep(log: dict[str, Any]) -> bool:
        logs.append(log)
        return True

    trainer.run(load, keep, stop_at)
    return logs


def advance_watched(trainer: Trainer) -> list[State]:
    """One iteration; the weights right after each optimiser step of it."""
    states: list[State] = []
    handle = register_optimizer_step_post_hook(lambda *_: states.append(copied(trainer.method.state_dict())))
    try:
        advance(trainer, trainer.iteration + 1)
    finally:
        handle.remove()
    return states


def two_steps_a_phase(cls: Cls, config: Any) -> int:
    """The fewest iterations that give every phase two."""
    phases = cls.phases(config)
    return next(n for n in range(len(phases), 1000) if all(span.stop - span.start >= 2 for span in timeline(phases, n)))


def late(phase: Phase) -> Clock:
    """A step at which every ramp has reached 1."""
    return Clock(10**6 - 1, 10**6, phase.name, 10**6 - 1, 10**6)


def weights_of(module: nn.Module) -> list[Tensor]:
    return [weight for weight in module.parameters() if weight.requires_grad]


@torch.no_grad()
def move_apart(method: Method) -> None:
    """Moves teachers a little: while they equal their students, a squared distance between the two has no slope."""
    for weight in method.parameters():
        if not weight.requires_grad:
            weight.add_(0.01 * torch.randn_like(weight))


def alive(gradients: tuple[Tensor | None, ...]) -> bool:
    return any(gradient is not None and bool(gradient.ne(0).any()) for gradient in gradients)


def grad(of: Tensor, by: list[Tensor]) -> tuple[Tensor | None, ...]:
    """Gradients that leave the graph as it is; None where `by` has no part in `of`."""
    return torch.autograd.grad(of, by, retain_graph=True, allow_unused=True)


def copied(state: State) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# ---------------------------------------------------------------- the contract


def check_links(cls: Cls, config: Any, through: tuple[str, ...] = ()) -> None:
    """Every named term moves the loss, and its player moves the term; nobody else gets gradient.

    through: networks that a loss passes on its way to its player (an adversary's weights, say), where there are any.
    """
    for phase in cls.phases(config):
        method = build(cls, config).train()
        method.begin(phase.name)
        move_apart(method)
        passed = [weight for name, module in method.named_modules() if name in through for weight in weights_of(module)]
        for objective in method.step(batch_of(phase), late(phase)):
            player = weights_of(method.players()[objective.player])
            assert objective.terms, f"{objective.player} names no terms"
            for name, term in objective.terms.items():
                assert term.requires_grad, f"{name} is a constant"
                assert alive(grad(objective.loss, [term])), f"{name} is not in the loss"
                assert alive(grad(term, player)), f"{name} does not depend on {objective.player}"
            mine = {id(weight) for weight in (*player, *passed)}
            others = [weight for weight in weights_of(method) if id(weight) not in mine]
            if others:
                reached = grad(objective.loss, others)
                assert all(g is None for g in reached), f"the loss of {objective.player} reaches other weights"


def check_halves(cls: Cls, config: Any, mixed: tuple[str, ...] = ()) -> None:
    """With rows that do not meet in batch norm: a term that the label moves hangs on labelled images alone, any other
    one (where there are unlabelled images) on unlabelled ones. `mixed`: terms whose paper mixes the halves.
    """
    for phase in cls.phases(config):
        method = build(cls, config).train()
        method.begin(phase.name)
        move_apart(method)
        for module in method.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Dropout3d):
                module.eval()
        batch = batch_of(phase)
        label = torch.where(batch.label == IGNORE, IGNORE, (batch.label + 1).clamp(max=CLASSES - 1))
        other = Batch(batch.labelled, label, batch.unlabelled, _targets(label))
        images = [batch.labelled.requires_grad_(), batch.unlabelled.requires_grad_()]
        pairs = zip(_steps_seeded(method, batch, phase), _steps_seeded(method, other, phase), strict=True)
        supervised = 0
        for objective, again in pairs:
            for name in (name for name in objective.terms if name not in mixed):
                labelled, unlabelled = grad(objective.terms[name], images)
                if not torch.equal(objective.terms[name], again.terms[name]):
                    supervised += 1
                    assert alive((labelled,)), f"{name} uses the label but not the labelled images"
                    assert not alive((unlabelled,)), f"{name} compares unlabelled images with the label"
                elif len(batch.unlabelled):
                    assert alive((unlabelled,)), f"{name} does not look at the unlabelled images"
        assert supervised or mixed, f"no term of phase {phase.name} uses the label"


def _steps_seeded(method: Method, batch: Batch, phase: Phase) -> list[Any]:
    torch.manual_seed(0)
    return list(deepcopy(method).step(batch, late(phase)))  # a copy: the step moves the teachers


class ClosedMasks(CaseStore):
    """Noise for every case, and a mask of the labelled ones only."""

    labelled, unlabelled = ("a", "b"), ("u", "v", "w")

    def image(self, case_id: str) -> Any:
        return np.random.default_rng(ord(case_id)).normal(size=(1, *SIZE)).astype(np.float16)

    def label(self, case_id: str) -> Any:
        assert case_id in self.labelled, f"the mask of the unlabelled case {case_id} was opened"
        return (self.image(case_id)[0] > 0).astype(np.int8)


def check_no_leak(cls: Cls, config: Any, loader: type[PatchLoader] = PatchLoader) -> None:
    """A run over all phases, fed as in training, opens no mask of an unlabelled case, and a batch has no place for one:
    one label a labelled image, and no field for more.
    """
    store = ClosedMasks(Path("nowhere"))
    plan = Plan(channels=("MRI",), labels=("0", "1", "2"), spacing_mm=(1, 1, 1), patch=SIZE, stride=SIZE)
    patches = loader(store, store.labelled, store.unlabelled, plan, 0, cls.targets)

    def feed(span: Span, iteration: int) -> Loaded:
        loaded = patches.load(span.draw(iteration))
        labelled, unlabelled = span.phase.batch
        assert {field.name for field in fields(loaded.batch)} == {"labelled", "label", "unlabelled", "targets"}
        assert (len(loaded.batch.label), len(loaded.batch.unlabelled)) == (labelled, unlabelled)
        assert loaded.batch.targets.keys() == set(cls.targets)
        assert all(len(target) == labelled for target in loaded.batch.targets.values())
        assert set(loaded.cases[labelled:]) <= set(store.unlabelled)
        return loaded

    trainer_of(cls, config, two_steps_a_phase(cls, config)).run(feed, lambda log: True)


def check_teachers(cls: Cls, config: Any, averages: tuple[Average, ...] | None = None) -> None:
    """Whoever is no player moves by its rule only, worked out again in double precision; or stands still."""
    trainer = trainer_of(cls, config, two_steps_a_phase(cls, config))
    method, last = trainer.method, trainer.spans[-1]
    averages = _averages(method, averages)
    taught = {f"{a.teacher}.{name}" for a in averages for name, _ in method.get_submodule(a.teacher).named_parameters()}
    played = {id(weight) for player in method.players().values() for weight in player.parameters()}
    names = {id(weight): name for name, weight in method.named_parameters()}
    nobodys = {name for ident, name in names.items() if ident not in played} - taught
    assert not nobodys, f"neither players nor teachers with a rule: {sorted(nobodys)[:3]}"
    while trainer.iteration < trainer.iterations:
        before = copied(method.state_dict())
        t = trainer.iteration - last.start
        steps = advance_watched(trainer)
        after = method.state_dict()
        for average in averages:
            for name, _ in method.get_submodule(average.teacher).named_parameters():
                teacher, student = f"{average.teacher}.{name}", f"{average.student}.{name}"
                expected = before[teacher].double()
                if t == 0:
                    expected = before[student].double()
                if t >= 0:
                    alpha = min(1 - 1 / (t + 1), config.alpha) if config.ema_warmup else config.alpha
                    for state in steps[-average.steps :]:
                        expected = alpha * expected + (1 - alpha) * average.followed(state, name)
                # float32 rounds to 6e-8; an optimiser's step is far larger
                torch.testing.assert_close(after[teacher].double(), expected, rtol=2e-7, atol=1e-9, msg=teacher)


def _averages(method: Method, averages: tuple[Average, ...] | None) -> tuple[Average, ...]:
    """Those that are given; else a `teacher` that follows a `student`, where there is one."""
    if averages is None:
        return (Average(),) if getattr(method, "teacher", None) is not None else ()
    return averages


def check_teaching(cls: Cls, config: Any, averages: tuple[Average, ...] | None = None) -> None:
    """Teachers are in the mode that is declared whenever one of their parts works, and leave no dropout out. In the
    other one nothing fails: targets lose their noise, or come with statistics that nobody gathered.
    """
    trainer = trainer_of(cls, config, two_steps_a_phase(cls, config))
    averages = _averages(trainer.method, averages)
    if not averages:
        return
    modes = {average.teacher: _modes(trainer.method.get_submodule(average.teacher)) for average in averages}
    advance(trainer, trainer.iterations)
    for average in averages:
        seen, trains = modes[average.teacher], average.trains and not getattr(config, "teacher_eval", False)
        wrong = sorted(part for part, found in seen.items() if found - {trains})
        assert not wrong, f"{average.teacher} is to be in {'train' if trains else 'eval'} mode, but: {wrong[:3]}"
        parts = trainer.method.get_submodule(average.teacher).named_modules()
        dropouts = [name for name, part in parts if isinstance(part, nn.modules.dropout._DropoutNd)]
        assert any(seen.values()), f"{average.teacher} does not teach"
        assert all(seen[name] for name in dropouts), f"{average.teacher} leaves out some of {dropouts}"


def _modes(network: nn.Module) -> dict[str, set[bool]]:
    """Filled while the network works: for each part the modes it was in, True for train."""
    modes: dict[str, set[bool]] = {}
    for name, part in network.named_modules():
        seen = modes[name] = set()
        part.register_forward_pre_hook(lambda part, _, seen=seen: seen.add(part.training))
    return modes


def check_predict(cls: Cls, config: Any) -> None:
    """A distribution over the classes at every voxel, the same in whatever company an image comes."""
    images = torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(7))
    p = _trained(cls, config).predict(images)
    assert p.shape == (2, CLASSES, *SIZE)
    assert bool((p >= 0).all()), "a probability is negative"
    torch.testing.assert_close(p.sum(1), torch.ones(2, *SIZE))
    torch.testing.assert_close(_trained(cls, config).predict(images[1:]), p[1:])


def check_tested(cls: Cls, config: Any) -> None:
    """`predict` does not miss what `tested()` leaves out, and needs each part that it names."""
    images = torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(7))
    method = _trained(cls, config)
    expected = method.predict(images)
    bare = deepcopy(method)
    _delete_all_but(bare, method.tested())
    try:
        alone = bare.predict(images)
    except AttributeError as error:
        raise AssertionError(f"predict needs what tested() leaves out: {error}") from error
    assert torch.equal(alone, expected)
    for name in method.tested():
        changed = deepcopy(method)
        for weight in changed.get_submodule(name).parameters():
            weight.data.mul_(1.5)
        assert not torch.equal(changed.predict(images), expected), f"predict does not use {name}"


def _delete_all_but(module: nn.Module, kept: tuple[str, ...]) -> None:
    for name in (*dict(module.named_parameters(recurse=False)), *dict(module.named_buffers(recurse=False))):
        delattr(module, name)
    for name, child in list(module.named_children()):
        if name not in kept:
            deeper = tuple(path.removeprefix(f"{name}.") for path in kept if path.startswith(f"{name}."))
            _delete_all_but(child, deeper) if deeper else delattr(module, name)


@torch.no_grad()
def _trained(cls: Cls, config: Any) -> Method:
    """After a step, so that batch norm's statistics are no longer 0 and 1."""
    trainer = trainer_of(cls, config, two_steps_a_phase(cls, config))
    with torch.enable_grad():
        advance(trainer, 1)
    return trainer.method.eval()


def check_resume(cls: Cls, config: Any) -> None:
    """Stopping in the middle of a phase or where it changes and going on from the file: bit for bit as straight on."""
    iterations = two_steps_a_phase(cls, config)
    trainer = trainer_of(cls, config, iterations)
    files, logs = [_saved(trainer)], []
    for iteration in range(iterations):
        logs += advance(trainer, iteration + 1)
        files.append(_saved(trainer))
    stops = {span.start for span in trainer.spans} | {span.start + 1 for span in trainer.spans}
    for stop in sorted(stops):
        resumed = trainer_of(cls, config, iterations, seed=99)
        resumed.restore(torch.load(io.BytesIO(files[stop]), weights_only=True))
        end = min(stop + 2, iterations)
        assert advance(resumed, end) == logs[stop:end], f"other losses after a stop at {stop}"
        straight = torch.load(io.BytesIO(files[end]), weights_only=True)
        assert equal(_tensors(resumed.state()), _tensors(straight)), f"other weights after a stop at {stop}"


def _saved(trainer: Trainer) -> bytes:
    file = io.BytesIO()
    torch.save(trainer.state(), file)
    return file.getvalue()


def _tensors(state: Any, name: str = "") -> dict[str, Tensor]:
    """Every number of a nested state by its path."""
    if isinstance(state, Tensor):
        return {name: state}
    if isinstance(state, bool | int | float):
        return {name: torch.tensor(state)}
    items = state.items() if isinstance(state, Mapping) else enumerate(state) if isinstance(state, list | tuple) else ()
    return {path: tensor for key, value in items for path, tensor in _tensors(value, f"{name}/{key}").items()}


# ---------------------------------------------------------------- no setting is ignored

STEPS = 3


def leaves(config: Config, path: str = "") -> Iterator[str]:
    """Dotted names of all fields, nested ones too."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        yield from leaves(value, f"{path}{name}.") if isinstance(value, Config) else [f"{path}{name}"]


def with_settings(config: Config, settings: Mapping[str, Any]) -> Any:
    """A copy with dotted names replaced, through the same door as `--set`."""
    values = config.model_dump()
    for path, value in settings.items():
        *parents, name = path.split(".")
        place = values
        for parent in parents:
            place = place[parent]
        place[name] = value
    return type(config).read(values, "test")


def another(config: Config, path: str) -> Any:
    """The first other value of a field that its type and range allow."""
    *parents, name = path.split(".")
    owner: Any = config
    for parent in parents:
        owner = getattr(owner, parent)
    value, kind = getattr(owner, name), type(owner).model_fields[name].annotation
    choices: tuple[Any, ...]
    if get_origin(kind) is Literal:
        choices = get_args(kind)
    elif isinstance(value, bool):
        choices = (not value,)
    elif isinstance(value, int):
        choices = (value + 1,)
    elif isinstance(value, float):
        choices = (value / 2, value + 0.25)
    else:
        raise AssertionError(f"give another value for {path} in the table of the test")
    for choice in choices:
        try:
            with_settings(config, {path: choice})
        except UserError:
            continue
        if choice != value:
            return choice
    raise AssertionError(f"give another value for {path} in the table of the test")


Observed = tuple[dict[str, Any], dict[str, Tensor]]


def observed(cls: Cls, config: Any) -> Iterator[Observed]:
    """Losses and weights after each step of a short run, and predictions at its end."""
    trainer = trainer_of(cls, config, STEPS)
    for iteration in range(STEPS):
        (log,) = advance(trainer, iteration + 1)
        yield {key: value for key, value in log.items() if key.endswith("/loss")}, copied(trainer.method.state_dict())
    images = torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        yield {}, {"prediction": trainer.method.eval().predict(images)}


def check_field(
    cls: Cls, base: Any, path: str, value: Any, expected: Callable[[Any], list[Observed]] | None = None
) -> None:
    """Another value of one field changes a loss, a weight or a prediction of a run of three steps.

    expected: `observed` of the unchanged configuration as a list, where it is kept between calls.
    """
    reference = expected(base) if expected else list(observed(cls, base))
    changed = with_settings(base, {path: value})
    assert changed != base
    for (losses, tensors), (old_losses, old_tensors) in zip(observed(cls, changed), reference, strict=True):
        if losses != old_losses or not equal(tensors, old_tensors):
            return
    raise AssertionError(f"{cls.__name__}: {path} = {value} changes nothing")
