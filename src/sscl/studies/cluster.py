"""Runs of a benchmark as jobs of a SLURM cluster, through submitit."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from sscl.core.errors import UserError
from sscl.studies.benchmark import Planned
from sscl.studies.job import execute


def submit(planned: Sequence[Planned], logs: Path, minutes: int = 24 * 60, cpus: int = 4, gpus: int = 1) -> list[str]:
    """Hand over what is not done; one line for each job, with its number. The runs' folders must be on a shared disk.

    A job that the cluster stops has saved its state: the same benchmark command hands it over again.

    Args:
        logs: folder for what the jobs write.
        minutes, cpus, gpus: what a job asks for.

    Raises:
        UserError: submitit or SLURM is not there.
    """
    try:
        import submitit
    except ImportError:
        raise UserError("--slurm needs an extra package: pip install 'sscl[slurm]'.") from None
    if shutil.which("sbatch") is None:
        raise UserError(
            "--slurm: there is no sbatch on this machine. Run it on the cluster's login node, or use --jobs."
        )
    executor = submitit.AutoExecutor(folder=logs, cluster="slurm")
    lines = []
    for item in planned:
        if item.done:
            continue
        extra = {"gpus_per_node": gpus} if gpus else {}
        executor.update_parameters(name=item.job.name[:40], timeout_min=minutes, cpus_per_task=cpus, **extra)
        job = executor.submit(execute, item.job.override({"threads": cpus}, item.job.name))
        lines.append(f"{item.job.name}: SLURM job {job.job_id}")
    return lines
