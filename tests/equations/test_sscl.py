"""SSCL: equations 1 to 11, its phases and schedules, worked out again."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from by_hand import SIZE, array, assert_weights, batch, dice_ce, loaded, sgd, softmax, weights
from notes import Notes
from torch import Tensor

from sscl.core.batch import Clock
from sscl.core.method import Optimiser, Schedule
from sscl.engine.train import Trainer, timeline
from sscl.methods.sscl import SSCL, SSCLConfig
from sscl.methods.vnet import SupervisedVNet, VNetConfig

CONTRACT = Notes(
    variants=(
        {"detach_common": False, "ema_warmup": True},
        {"teacher": False},
        {"reconstructor": False, "spectral": False},
        {"unlabelled": False},
        {"pretrain_recon_unlabelled": False, "pretrain_copy_paste": True},
        {"pseudo": "confident", "pretrain_share": 0.0, "threshold": 0.3},
    ),
    short={"pretrain_share": 0.4},
    values={
        "pretrain_share": 0.6,  # 2 steps of 3 instead of 1
        "spectral_stages": (1, 2, 1, 1, 1),
        "head_dropout": 0.25,
    },
    under={
        "teacher_buffers": {"teacher_eval": True},
        "pseudo_absent": {"threshold": 0.95},  # no pseudo-label holds an organ
    },
)
FORMAL, PRETRAIN = Clock(5, 10, "formal", 2, 7), Clock(0, 10, "pretrain", 0, 3)
CPU = torch.device("cpu")


def build(classes: int = 2, **settings: Any) -> SSCL:
    """Without dropout, and with a teacher that is not the student, in training mode."""
    torch.manual_seed(0)
    method = SSCL(SSCLConfig(**{"width": 2, "dropout": 0.0, **settings}), 1, classes).train()
    if method.teacher is not None:
        with torch.no_grad():
            for weight in method.teacher.parameters():
                weight.add_(torch.randn_like(weight) * 0.1)
            # an untrained head calls nearly everything the same: contrasts that cancel on the mean feature
            torch.nn.init.zeros_(method.teacher.decoder.head.bias)
            torch.nn.init.normal_(method.teacher.decoder.head.weight).sub_(
                method.teacher.decoder.head.weight.mean(1, keepdim=True)
            )
    return method


def objectives(method: SSCL, clock: Clock, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return {objective.player: objective for objective in method.step(batch(*args, **kwargs), clock)}


# ---------------------------------------------------------------- equations 1 to 9


@pytest.mark.parametrize("classes", [2, 3])
def test_losses_of_a_formal_step(classes: int) -> None:
    method, crops = build(classes, lam=0.7), batch(classes=classes)
    nets = deepcopy(method)
    assert nets.reconstructor is not None
    assert nets.teacher is not None
    found = objectives(method, FORMAL, classes=classes)
    x = torch.cat([crops.labelled, crops.unlabelled])
    x_hat, f_c = nets.reconstructor(x)  # (1)
    p_t = softmax(array(nets.teacher(crops.unlabelled, f_c[2:])))  # (2)
    y = array(nets.student(x, f_c))  # (3)
    y_p = np.where(1 - p_t[:, 0] > 0.5, 1 + p_t[:, 1:].argmax(1), 0)
    assert 0 < (y_p > 0).mean() < 1
    sup, unsup = dice_ce(y[:2], crops.label.numpy()), dice_ce(y[2:], y_p)  # (7), (8)
    assert found["reconstructor"].loss.item() == pytest.approx(((array(x_hat) - array(x)) ** 2).mean(), rel=1e-5)  # (9)
    assert found["student"].terms["sup"].item() == pytest.approx(sup, rel=1e-4)
    assert found["student"].terms["unsup"].item() == pytest.approx(unsup, rel=1e-4)
    assert found["student"].loss.item() == pytest.approx(sup + 0.7 * unsup, rel=1e-4)  # (6)
    assert found["student"].gauges["pseudo_foreground"].item() == pytest.approx((y_p > 0).mean(), abs=1e-4)


def test_losses_of_a_pre_training_step() -> None:
    """Supervised: the unlabelled half is for the reconstructor only, and no pseudo-labels are made."""
    method, crops = build(), batch()
    nets = deepcopy(method)
    assert nets.reconstructor is not None
    found = objectives(method, PRETRAIN)
    x_hat, f_c = nets.reconstructor(crops.images)
    assert found["reconstructor"].loss.item() == pytest.approx(((x_hat - crops.images) ** 2).mean().item(), rel=1e-5)
    y = array(nets.student(crops.labelled, f_c[:2]))
    assert found["student"].loss.item() == pytest.approx(dice_ce(y, crops.label.numpy()), rel=1e-4)
    assert list(found["student"].terms) == ["sup"]


def test_pseudo_labels_without_a_teacher_are_the_student_s_own() -> None:
    method, crops = build(teacher=False, pseudo_absent="count"), batch()
    nets = deepcopy(method)
    assert nets.reconstructor is not None
    found = objectives(method, FORMAL)
    y = array(nets.student(crops.images, nets.reconstructor(crops.images)[1]))
    y_p = (softmax(y[2:])[:, 1] > 0.5).astype(int)
    assert found["student"].terms["unsup"].item() == pytest.approx(dice_ce(y[2:], y_p), rel=1e-4)


@pytest.mark.parametrize("all_classes", [False, True])
@pytest.mark.parametrize("absent", ["skip", "count"])
def test_a_teacher_that_sees_no_organ_teaches_nothing(absent: str, all_classes: bool) -> None:
    """Or, as eq. 8 has it, that there is nothing: cross-entropy and Dice against background alone."""
    settings = {"pseudo_absent": absent, "dice_all_classes": all_classes}
    method = build(threshold=0.999, teacher=False, **settings)
    method.config.refuse_ignored(settings, "test")
    found = objectives(method, FORMAL)["student"]
    assert found.gauges["pseudo_foreground"].item() == 0
    if absent == "skip":
        assert found.terms["unsup"].item() == 0
        assert found.loss.item() == found.terms["sup"].item()
    else:
        assert found.terms["unsup"].item() > 1


def test_only_confident_voxels_count_where_so_chosen() -> None:
    method, crops = build(3, pseudo="confident", pseudo_absent="count", threshold=0.5), batch(classes=3)
    nets = deepcopy(method)
    assert nets.reconstructor is not None
    assert nets.teacher is not None
    found = objectives(method, FORMAL, classes=3)
    f_c = nets.reconstructor(crops.images)[1]
    p_t = softmax(array(nets.teacher(crops.unlabelled, f_c[2:])))
    y_p = np.where(p_t.max(1) > 0.5, p_t.argmax(1), -1)
    assert 0 < (y_p == -1).mean() < 1
    expected = dice_ce(array(nets.student(crops.images, f_c))[2:], y_p)
    assert found["student"].terms["unsup"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("clock", [PRETRAIN, FORMAL], ids=["pretrain", "formal"])
@pytest.mark.parametrize("detach", [True, False])
def test_the_segmentation_loss_reaches_the_reconstructor_only_if_asked(detach: bool, clock: Clock) -> None:
    method = build(detach_common=detach)
    assert method.reconstructor is not None
    found = objectives(method, clock)
    assert list(found) == (["reconstructor", "student"] if detach else ["student"])
    for name in ("sup", "unsup") if clock is FORMAL else ("sup",):
        gradients = torch.autograd.grad(
            found["student"].terms[name],
            list(method.reconstructor.encoder.parameters()),
            retain_graph=True,
            allow_unused=True,
        )
        assert any(g is not None and bool(g.ne(0).any()) for g in gradients) is not detach


def test_one_objective_for_both_networks_is_the_sum() -> None:
    apart, together = objectives(build(), FORMAL), objectives(build(detach_common=False), FORMAL)
    expected = apart["student"].loss + apart["reconstructor"].loss
    assert together["student"].loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_dropout_on_the_common_features_spares_the_reconstruction() -> None:
    method = build(recon_dropout=0.9)
    seen: list[Tensor] = []
    method.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    found = objectives(method, FORMAL)
    dropped = seen[0].flatten(2).eq(0).all(2).float().mean()
    assert dropped > 0.7
    assert found["reconstructor"].loss.item() == pytest.approx(objectives(build(), FORMAL)["reconstructor"].loss.item())


def test_pre_training_pastes_labelled_crops_into_each_other() -> None:
    method, crops = build(pretrain_copy_paste=True), batch()
    seen: list[Tensor] = []
    method.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for clock in (PRETRAIN, FORMAL):
        list(method.step(crops, clock))
    own, other = (seen[0] == crops.labelled), (seen[0] == crops.labelled.flip(0))
    assert bool((own | other).all())
    assert other.float().mean().item() == pytest.approx(21 * 21 * 11 / (32 * 32 * 16), abs=1e-3)
    assert torch.equal(seen[1][:2], crops.labelled)


def test_teacher_noise_and_teacher_eval() -> None:
    method, crops = build(teacher_noise=0.1, teacher_eval=True), batch()
    assert method.teacher is not None
    seen: list[tuple[Tensor, bool]] = []
    method.teacher.register_forward_pre_hook(lambda net, inputs: seen.append((inputs[0], net.training)))
    list(method.step(crops, FORMAL))
    noise = seen[0][0] - crops.unlabelled
    assert 0 < noise.abs().max() <= 0.2 + 1e-6
    assert not seen[0][1]
    assert method.student.training


# ---------------------------------------------------------------- a step of the whole engine


def test_two_formal_steps_of_optimisers_and_teacher() -> None:
    """Equations 6, 9 and 10 with SGD .01/.9/1e-4 for both networks: no clipping, although the gradients are large."""
    method = build(lam=3.0, alpha=0.9, pretrain_share=0.0, pseudo_absent="count")
    assert method.reconstructor is not None
    assert method.teacher is not None
    trainer = Trainer(deepcopy(method), 10, 0, CPU)
    method.to(memory_format=torch.channels_last_3d)  # as the trainer has it: the same sums in the same order
    method.begin("formal")
    trainer.method.begin("formal")
    now = {name: weights(method.get_submodule(name)) for name in ("student", "reconstructor", "teacher")}
    assert all(torch.equal(now["teacher"][name], now["student"][name]) for name in now["student"])
    velocity: dict[str, Tensor] = {}
    for iteration in range(2):
        rate = 0.01 * (1 - iteration / 10) ** 0.9
        for objective in method.step(batch(seed=iteration), Clock(iteration, 10, "formal", iteration, 10)):
            player = objective.player
            gradients = torch.autograd.grad(objective.loss, list(method.get_submodule(player).parameters()))
            if player == "student":
                assert sum(float(g.square().sum()) for g in gradients) > 4  # a clip at norm 1 would show
            for name, gradient in zip(now[player], gradients, strict=True):
                key = f"{player}.{name}"
                now[player][name], velocity[key] = sgd(now[player][name], gradient, rate, velocity.get(key))
        now["teacher"] = {k: 0.9 * v + 0.1 * now["student"][k] for k, v in now["teacher"].items()}
        for name, values in now.items():
            method.get_submodule(name).load_state_dict(values, strict=False)
        log = trainer.step(trainer.spans[0], loaded(seed=iteration))
        assert log["student/lr"] == log["reconstructor/lr"] == pytest.approx(rate)
        for name, values in now.items():
            assert_weights(trainer.method.get_submodule(name), values)


def test_formal_training_starts_with_fresh_momentum_and_the_student_as_teacher() -> None:
    trainer = Trainer(build(pretrain_share=0.5), 4, 0, CPU)
    assert trainer.spans[1].start == 2
    trainer.run(lambda _, k: loaded(seed=k), lambda _: True, stop_at=2)
    method = deepcopy(trainer.method)
    assert isinstance(method, SSCL)
    assert method.teacher is not None
    before = weights(method.student)
    method.begin("formal")
    assert all(torch.equal(a, b) for a, b in zip(method.teacher.buffers(), method.student.buffers(), strict=True))
    *_, objective = method.step(batch(seed=2), Clock(2, 4, "formal", 0, 2))
    gradients = torch.autograd.grad(objective.loss, list(method.student.parameters()))
    trainer.run(lambda _, k: loaded(seed=k), lambda _: True, stop_at=3)
    expected = {
        n: sgd(before[n], g, 0.01)[0] for n, g in zip(before, gradients, strict=True)
    }  # no velocity from before
    assert_weights(trainer.method.get_submodule("student"), expected)
    teacher = {name: 0.999 * before[name] + 0.001 * expected[name] for name in before}
    assert_weights(trainer.method.get_submodule("teacher"), teacher)


# ---------------------------------------------------------------- switches


def test_all_switches_off_is_the_v_net() -> None:
    """The same network, the same dropout, and the loss without the lineage's factor of one half."""
    torch.manual_seed(0)
    off = dict.fromkeys(("spectral", "reconstructor", "unlabelled", "teacher"), False)
    method = SSCL(SSCLConfig(width=2, **off), 1, 2).train()  # type: ignore[arg-type]
    v_net = SupervisedVNet(VNetConfig(width=2), 1, 2).train()
    names = {f"student.{k.replace('encoder.', 'spatial.', 1)}": v for k, v in v_net.student.state_dict().items()}
    method.load_state_dict(names)
    assert set(method.players()) == {"student"}
    assert [phase.batch for phase in SSCL.phases(method.config)] == [(4, 0), (4, 0)]
    losses = []
    for model, clock in ((method, PRETRAIN), (method, FORMAL), (v_net, Clock(0, 10, "train", 0, 10))):
        torch.manual_seed(1)
        (objective,) = model.step(batch(4, 0), clock)
        losses.append(objective.loss.item())
    assert losses[0] == losses[1] == 2 * losses[2]


def test_each_switch_takes_away_its_own_network() -> None:
    whole = build()
    assert whole.student.spectral is not None
    assert build(spectral=False).student.spectral is None
    without = build(reconstructor=False)
    assert without.reconstructor is None
    assert without.tested() == ("student",)
    assert build(teacher=False).teacher is None
    assert build(unlabelled=False).teacher is None
    assert list(objectives(without, FORMAL)) == ["student"]


def test_predict() -> None:
    """Equation 11."""
    method = build().eval()
    assert method.reconstructor is not None
    images = torch.randn(2, 1, *SIZE)
    with torch.no_grad():
        expected = softmax(array(method.student(images, method.reconstructor(images)[1])))
        assert array(method.predict(images)) == pytest.approx(expected, abs=1e-6)
    assert method.tested() == ("student", "reconstructor.encoder")


# ---------------------------------------------------------------- phases and learning rates


def test_4k_of_34k_iterations_are_pre_training() -> None:
    pretrain, formal = SSCL.phases(SSCLConfig())
    assert (pretrain.name, formal.name) == ("pretrain", "formal")
    assert (pretrain.share, formal.share) == (pytest.approx(4 / 34), pytest.approx(30 / 34))
    assert pretrain.batch == formal.batch == (2, 2)
    assert formal.fresh_optimisers
    assert [(span.start, span.stop) for span in timeline((pretrain, formal), 34_000)] == [(0, 4000), (4000, 34_000)]
    sixth = SSCL.phases(SSCLConfig(pretrain_share=1 / 6))
    assert [(span.start, span.stop) for span in timeline(sixth, 600)] == [(0, 100), (100, 600)]


@pytest.mark.parametrize(
    ("settings", "batches"),
    [
        ({"pretrain_recon_unlabelled": False}, [(4, 0), (2, 2)]),
        ({"reconstructor": False}, [(4, 0), (2, 2)]),
        ({"unlabelled": False}, [(4, 0), (4, 0)]),
        ({"teacher": False}, [(2, 2), (2, 2)]),
        ({"pretrain_share": 0.0}, [(2, 2)]),
    ],
)
def test_batches(settings: dict[str, Any], batches: list[tuple[int, int]]) -> None:
    assert [phase.batch for phase in SSCL.phases(SSCLConfig(**settings))] == batches


def rates(schedule: Schedule) -> list[float]:
    """Learning rates of 3 pre-training and 4 formal steps."""
    config = {"width": 1, "pretrain_share": 3 / 7, "optimiser": Optimiser(schedule=schedule)}
    trainer, logged = Trainer(build(**config), 7, 0, CPU), []

    def keep(log: dict[str, Any]) -> bool:
        logged.append(log["student/lr"])
        return True

    trainer.run(lambda _, k: loaded(seed=k), keep)
    return logged


def test_the_rate_is_constant_in_pre_training_and_falls_over_formal_training() -> None:
    expected = [0.01] * 4 + [0.01 * 0.75**0.9, 0.01 * 0.5**0.9, 0.01 * 0.25**0.9]
    assert rates(Schedule()) == pytest.approx(expected)
    assert rates(Schedule(kind="step", every=2)) == pytest.approx([0.01] * 5 + [0.001] * 2)
    assert rates(Schedule(kind="constant")) == [0.01] * 7


@pytest.mark.parametrize("detach", [True, False])
def test_the_reconstructor_can_be_trained_alone_first(detach: bool) -> None:
    method = build(pretrain_recon_first=True, pretrain_share=0.5, detach_common=detach)
    spans = timeline(SSCL.phases(method.config), 8)
    assert [(span.phase.name, span.start, span.stop) for span in spans] == [
        ("reconstruct", 0, 2), ("pretrain", 2, 4), ("formal", 4, 8),
    ]  # fmt: skip
    trainer = Trainer(method, 8, 0, CPU)
    student, reconstructor = weights(method.student), weights(method.get_submodule("reconstructor"))
    log = trainer.step(trainer.spans[0], loaded())
    assert [key for key in log if key.endswith("/loss")] == [f"{'reconstructor' if detach else 'student'}/loss"]
    assert_weights(method.student, student)
    with pytest.raises(AssertionError):
        assert_weights(method.get_submodule("reconstructor"), reconstructor)


def test_dropout_before_the_head_can_differ_from_that_on_the_bottleneck() -> None:
    def rates(**settings: float) -> tuple[float, float]:
        student = SSCL(SSCLConfig(width=2, **settings), 1, 2).student
        return student.dropout.p, student.decoder.dropout.p

    assert rates(dropout=0.25) == (0.25, 0.25)
    assert rates(dropout=0.25, head_dropout=0.0) == (0.25, 0.0)
