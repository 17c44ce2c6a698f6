"""Batches cut ahead of time by other processes; the same ones that this process would cut."""

import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch

from sscl.core.errors import UserError
from sscl.data.patches import Draw, Loaded, PatchLoader


def batches_ahead(make: Callable[[], PatchLoader], draws: Iterable[Draw], workers: int) -> Iterator[Loaded]:
    """The batches of `draws`, in their order, from `workers` processes.

    make: how a process gets its loader; it is sent there, so it must be picklable. The memory that its store may use is
    shared out among the processes. If a process dies, a RuntimeError is raised wherever this process then is: see
    `told_if_one_dies`.

    Raises:
        UserError: as raised in a process, for instance for a damaged file, or for lack of shared memory.
    """
    loader: torch.utils.data.DataLoader[Loaded | UserError] = torch.utils.data.DataLoader(
        _Draws(make, workers),
        sampler=draws,
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn",
        worker_init_fn=_leave_ctrl_c,
    )
    for loaded in loader:
        if isinstance(loaded, UserError):
            raise loaded
        yield loaded


@contextmanager
def told_if_one_dies() -> Iterator[None]:
    """Raises UserError where torch's handler of SIGCHLD raised a RuntimeError in the midst of whatever was going on."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a loader process died, perhaps for lack of memory ({error}). The same command goes on from the last "
            "checkpoint; --workers 0 needs no such process."
        ) from None


class _Draws(torch.utils.data.Dataset[Loaded | UserError]):
    """What a process runs: a draw to its batch, with a loader of its own, because caches cannot be sent.

    A UserError is returned, not raised: torch would wrap it in the traceback of the process.
    """

    def __init__(self, make: Callable[[], PatchLoader], workers: int) -> None:
        self._make, self._workers = make, workers
        self._patches: PatchLoader | None = None

    def __getitem__(self, draw: Draw) -> Loaded | UserError:
        try:
            if self._patches is None:
                self._patches = self._make()
                self._patches.store.share_memory(self._workers)
            loaded = self._patches.load(draw)
            _share(loaded)
        except UserError as error:
            return error
        return loaded


def _share(loaded: Loaded) -> None:
    """Move a batch to shared memory here: torch's sending thread would do so, drop what does not fit, and the run would
    wait for that batch for ever.

    Raises:
        UserError: there is no room.
    """
    batch = loaded.batch
    try:
        for tensor in (batch.labelled, batch.label, batch.unlabelled, *batch.targets.values()):
            if tensor.numel():
                tensor.share_memory_()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise UserError(
            f"a loader process has no shared memory for a batch ({said}). The same command with --workers 0 needs "
            "none; in a container, give it more: docker run --shm-size=2g."
        ) from None


def _leave_ctrl_c(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the parent still needs the batch, and ends its workers by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
