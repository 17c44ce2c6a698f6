"""Batch norm that is asked for something else than usual."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def resting_statistics(net: nn.Module) -> Iterator[None]:
    """In training, batch norm goes on with the statistics of each batch, but its running ones stay as they are."""
    norms = [module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
