"""Mean teacher: one step of the whole method, worked out again."""

import math
from copy import deepcopy

import pytest
import torch
from by_hand import array, assert_weights, batch, cross_entropy, dice, loaded, sgd, softmax, weights

from sscl.core.batch import Clock
from sscl.engine.train import Trainer
from sscl.methods.mean_teacher import MeanTeacher, MeanTeacherConfig


def build(**settings: float) -> MeanTeacher:
    torch.manual_seed(0)
    method = MeanTeacher(MeanTeacherConfig(width=2, dropout=0.0, **settings), 1, 2).train()  # type: ignore[arg-type]
    with torch.no_grad():  # at the start the teacher is the student, and much would be zero
        for weight in method.teacher.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return method


@pytest.mark.parametrize(("iteration", "ramp"), [(0, math.exp(-5)), (50, math.exp(-1.25)), (99, math.exp(-5e-4))])
def test_loss(iteration: int, ramp: float) -> None:
    method, crops = build(noise=0.0), batch()
    nets = deepcopy(method)
    (objective,) = method.step(crops, Clock(iteration, 100, "train", iteration, 100))
    p_t = softmax(array(nets.teacher(crops.unlabelled)))
    p = softmax(array(nets.student(torch.cat([crops.labelled, crops.unlabelled]))))
    y = crops.label.numpy()
    consistency = ((p[2:] - p_t) ** 2).mean()
    expected = 0.5 * (cross_entropy(p[:2], y) + dice(p[:2], y)) + 0.1 * ramp * consistency
    assert objective.terms["consistency"].item() == pytest.approx(consistency, rel=1e-4)
    assert objective.gauges["weight"] == pytest.approx(0.1 * ramp)
    assert objective.loss.item() == pytest.approx(expected, rel=1e-5)


def test_ramp_share_is_a_part_of_the_run() -> None:
    method, crops = build(ramp_share=0.5), batch()
    for iteration, ramp in ((25, math.exp(-1.25)), (50, 1.0), (99, 1.0)):
        (objective,) = method.step(crops, Clock(iteration, 100, "train", iteration, 100))
        assert objective.gauges["weight"] == pytest.approx(0.1 * ramp)


def test_only_the_teacher_sees_noise() -> None:
    method, crops = build(noise=0.5), batch()
    seen = {}
    for name in ("student", "teacher"):
        hook = lambda _, given, name=name: seen.update({name: given[0]})  # noqa: E731
        method.get_submodule(name).register_forward_pre_hook(hook)
    list(method.step(crops, Clock(0, 100, "train", 0, 100)))
    noise = seen["teacher"] - crops.unlabelled
    assert torch.equal(seen["student"], crops.images)
    assert noise.std() > 0.4
    assert noise.abs().max().item() == pytest.approx(1.0, abs=1e-5)  # clipped at twice 0.5


def test_two_iterations_of_optimiser_and_teacher() -> None:
    method = build(noise=0.0, alpha=0.75)
    trainer = Trainer(deepcopy(method), 10, 0, torch.device("cpu"))
    method.to(memory_format=torch.channels_last_3d)  # as the trainer has it: the same sums in the same order
    student, teacher, velocity = weights(method.student), weights(method.teacher), {}
    for iteration in range(2):
        (objective,) = method.step(batch(seed=iteration), Clock(iteration, 10, "train", iteration, 10))
        gradients = torch.autograd.grad(objective.loss, list(method.student.parameters()))
        rate = 0.01 * (1 - iteration / 10) ** 0.9
        for name, gradient in zip(student, gradients, strict=True):
            student[name], velocity[name] = sgd(student[name], gradient, rate, velocity.get(name))
        alpha = (0.0, 0.5)[iteration]  # min(1 - 1 / (t + 1), 0.75)
        teacher = {name: alpha * teacher[name] + (1 - alpha) * student[name] for name in teacher}
        method.student.load_state_dict(student, strict=False)
        method.teacher.load_state_dict(teacher, strict=False)
        trainer.step(trainer.spans[0], loaded(seed=iteration))
        assert_weights(trainer.method.get_submodule("student"), student)
        assert_weights(trainer.method.get_submodule("teacher"), teacher)
