"""Runs of a benchmark as jobs of a SLURM cluster, through submitit.

Tested on one node with SLURM 22.05.8 of Debian 12 and submitit 1.5.4: submitting, cancelling, requeueing, the time
limit, going on, and jobs that fail. Not tested: several nodes, GPUs, preemption by other users' jobs.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sscl.core.errors import UserError
from sscl.studies.benchmark import Planned, describe
from sscl.studies.job import main

SAVE_SECONDS = 90
"""So long before the time limit a job is told to save and end."""


def submit(planned: Sequence[Planned], logs: Path, minutes: int = 24 * 60, cpus: int = 4, gpus: int = 1) -> list[str]:
    """Hand over what is neither done nor in the queue; one line for each job, with its number. The runs' folders must
    be on a shared disk. Partition, account and memory are sbatch's own: `SBATCH_PARTITION=gpu sscl benchmark ...`.

    A job that the cluster stops saves its state first: the same benchmark command hands it over again.

    Args:
        logs: folder for what the jobs write: NUMBER_0_log.err.
        minutes, cpus, gpus: what a job asks for; on the device `cpu` no GPU.

    Raises:
        UserError: submitit or SLURM is not there, or SLURM refuses a job.
    """
    left = [item for item in planned if not item.done]
    if not left:
        return []
    try:
        import submitit
    except ImportError:
        raise UserError("--slurm needs an extra package: pip install 'sscl[slurm]'.") from None
    if shutil.which("sbatch") is None:
        raise UserError(
            "--slurm: there is no sbatch on this machine. Run it on the cluster's login node, or use --jobs."
        )
    logs = logs.absolute()
    waiting = _queued(logs)
    executor = submitit.AutoExecutor(folder=logs, cluster="slurm")
    lines = []
    for item in left:
        name = item.job.name
        if name in waiting:
            lines.append(f"{name}: in the queue already, SLURM job {waiting[name]}")
            continue
        job = item.job.override({"threads": cpus}, name)
        executor.update_parameters(
            name=name,
            timeout_min=minutes,
            cpus_per_task=cpus,
            gpus_per_node=gpus if gpus and job.device != "cpu" else None,
            slurm_srun_args=[f"--cpus-per-task={cpus}"],  # since 22.05 srun does not take it from sbatch
            slurm_additional_parameters={"signal": f"TERM@{SAVE_SECONDS}"},  # submitit's USR2 would not save
        )
        try:
            number = executor.submit(_in_job, describe(job)).job_id
        except submitit.core.utils.FailedJobError as error:
            raise UserError(
                f"--slurm: sbatch refused {name}: {_last_line(str(error))}. It also reads SBATCH_PARTITION, "
                "SBATCH_ACCOUNT, SBATCH_TIMELIMIT and SBATCH_MEM_PER_NODE; --device cpu asks for no GPU."
            ) from None
        lines.append(f"{name}: SLURM job {number}")
    return lines


def _in_job(described: Path) -> None:
    """What a job does. SystemExit, unlike an exception, leaves the one line that `main` logs and no traceback."""
    if code := main(described):
        sys.exit(code)


def _queued(logs: Path) -> dict[str, str]:
    """This user's jobs, waiting or running, that were submitted with these logs: name to number."""
    asked = subprocess.run(
        ["squeue", "--me", "--noheader", "--format=%i|%j|%o"], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        raise UserError(f"--slurm: SLURM does not answer: {_last_line(asked.stderr)}. `sinfo` tells how it is.")
    jobs = [line.split("|", 2) for line in asked.stdout.splitlines()]
    return {name: number for number, name, command in jobs if Path(command).parent == logs}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "no message"
