"""The commands that are several runs and their comparison."""

from pathlib import Path

from sscl.cli.console import Out, app, say, table, training_progress


@app.command
def demo(*, out: Out = Path("demo"), minutes: float = 4.0, seed: int = 0) -> None:
    """The whole path on embedded virtual patients: 24 scans, 4 masks; V-Net and SSCL compared on 8 held-out scans.

    Args:
        out: Folder for data, runs and report.
        minutes: Time for both trainings together.
        seed: Of both trainings.
    """
    from sscl.studies.demo import demo as study

    with training_progress("demo") as on_step:
        result = study(out, minutes=minutes, seed=seed, on_step=on_step)
    table(result.table)
    for line in result.lines:
        say(line)
