"""Mean teachers: an exponential moving average of the student's weights (Tarvainen and Valpola, NeurIPS 2017)."""

from typing import Literal

import torch
from torch import nn

Buffers = Literal["own", "copy"]


@torch.no_grad()
def ema_(teacher: nn.Module, student: nn.Module, alpha: float, buffers: Buffers = "own") -> None:
    """teacher <- alpha teacher + (1 - alpha) student, parameters only, in place.

    buffers: `own`: the teacher keeps its own batch-norm statistics (UA-MT and BCP); `copy`: it takes the student's.
    """
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - alpha)
    if buffers == "copy":
        copy_buffers(teacher, student)


@torch.no_grad()
def copy_buffers(teacher: nn.Module, student: nn.Module) -> None:
    """Batch-norm statistics of the student to the teacher."""
    for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        mine.copy_(theirs)


def ema_alpha(step: int, alpha: float, warmup: bool) -> float:
    """min(1 - 1 / (step + 1), alpha) with warm-up: the teacher is the student at step 0 and slows down from there."""
    return min(1 - 1 / (step + 1), alpha) if warmup else alpha
