"""Runs of a benchmark as jobs of a SLURM cluster, through submitit.

Tested on one node with SLURM 22.05.8 of Debian 12 and submitit 1.5.4: submitting, cancelling, requeueing, the time
limit, going on, and jobs that fail. Not tested: several nodes, GPUs, preemption by other users' jobs; of `--slurm-set`
the script that sbatch gets, no more.
"""

import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sscl.core.errors import UserError, unknown
from sscl.studies.benchmark import Planned, describe
from sscl.studies.job import main

SAVE_SECONDS = 90
"""So long before the time limit a job is told to save and end."""
USUAL = {"time": "1440", "cpus_per_task": "4", "gpus_per_node": "1"}
"""What a job asks for unless told otherwise, `time` in minutes; on the device `cpu` no GPU."""
KNOWN = (
    *USUAL, "account", "comment", "constraint", "dependency", "exclude", "gres", "mail_type", "mail_user", "mem",
    "mem_per_cpu", "mem_per_gpu", "nodelist", "partition", "qos",
)  # fmt: skip
"""What may be set: options of sbatch as submitit spells them. The others decide how a run works, as one process."""


def read_resources(pairs: Sequence[str]) -> dict[str, str]:
    """`("partition=gpu", "time=720")` to names and values.

    Raises:
        UserError: a pair without a value, an unknown name, or minutes or CPUs that are no whole number.
    """
    found = {}
    for pair in pairs:
        name, _, value = (part.strip() for part in pair.partition("="))
        if not value:
            raise UserError(f"--slurm-set {pair}: expected name=value, for instance --slurm-set partition=gpu.")
        if name not in KNOWN:
            raise unknown("--slurm-set", name, KNOWN)
        if name in ("time", "cpus_per_task") and not (value.isdecimal() and int(value)):
            unit = " of minutes, for instance time=720" if name == "time" else ", 1 or more"
            raise UserError(f"--slurm-set {pair}: expected a whole number{unit}.")
        found[name] = value
    return found


def submit(planned: Sequence[Planned], logs: Path, resources: Mapping[str, str] | None = None) -> list[str]:
    """Hand over what is neither done nor in the queue; one line for each job, with its number. The runs' folders must
    be on a shared disk.

    A job that the cluster stops saves its state first: the same benchmark command hands it over again.

    Args:
        logs: folder for what the jobs write: NUMBER_0_log.err.
        resources: what a job asks for, of `KNOWN`, over `USUAL`. Variables of sbatch (SBATCH_PARTITION) win over both.

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
        asked = _resources(resources or {}, item.job.device)
        minutes, cpus = int(asked.pop("time")), int(asked.pop("cpus_per_task"))
        job = item.job.override({"threads": cpus}, name)
        executor.update_parameters(
            name=name,
            timeout_min=minutes,
            cpus_per_task=cpus,
            **{f"slurm_{key}": value for key, value in asked.items()},
            slurm_srun_args=[f"--cpus-per-task={cpus}"],  # since 22.05 srun does not take it from sbatch
            slurm_additional_parameters={"signal": f"TERM@{SAVE_SECONDS}"},  # submitit's USR2 would not save
        )
        try:
            number = executor.submit(_in_job, describe(job)).job_id
        except submitit.core.utils.FailedJobError as error:
            raise UserError(
                f"--slurm: sbatch refused {name}: {_last_line(str(error))}. Ask for something else by "
                "--slurm-set partition=..., account=..., time=..., mem=...; --device cpu asks for no GPU."
            ) from None
        lines.append(f"{name}: SLURM job {number}")
    return lines


def _resources(told: Mapping[str, str], device: str) -> dict[str, str]:
    """What is asked for; a GPU not twice, where `gres` says it, nor in vain, on a CPU."""
    asked = {**USUAL, **told}
    without = "gpus_per_node" not in told and ("gres" in told or device == "cpu")
    if without or asked["gpus_per_node"] == "0":
        del asked["gpus_per_node"]
    return asked


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
