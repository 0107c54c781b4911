"""Commands that check the machine and describe the configuration."""

from pathlib import Path
from typing import Annotated

import typer

from cliptex.cli.common import DEFAULT, ConfigFiles, echo, load_config
from cliptex.core.errors import CliptexError, ConfigError


def doctor(
    records: Annotated[list[Path] | None, typer.Argument()] = None,
    profile: Path | None = None,
    account: str | None = None,
    partition: str | None = None,
    constraint: str | None = None,
    needs_gpu: Annotated[bool, typer.Option("--gpu")] = False,
    kind: str | None = None,
    out: Path | None = None,
    config_files: ConfigFiles = DEFAULT,
) -> None:
    """Check packages, scheduler, account, partition, GPU and disk; exit code 1 if something must be fixed.

    Args:
        records: JSON files of checks that ran in jobs; shown and counted as well.
        profile: Snakemake profile whose account, partition and constraint are checked.
        account: Account to check, instead of the profile's.
        partition: Partition to check, instead of the profile's.
        constraint: Constraint to check, instead of the profile's.
        needs_gpu: Expect a GPU on this machine.
        kind: Kind of this job, for the record.
        out: JSON file for the results.
    """
    from cliptex.cluster.doctor import RECORD, Submission, examine, table
    from cliptex.core.files import read_checked, write_json

    submission = Submission.of_profile(profile) if profile else None
    if account or partition or constraint:
        base = submission or Submission()
        submission = Submission(account or base.account, partition or base.partition, constraint or base.constraint)
    here = examine(load_config(config_files), submission, kind, needs_gpu)
    places = [here, *(read_checked(path, RECORD) for path in records or [])]
    is_ok = all(place["ok"] for place in places)
    if out is not None:
        write_json(out, {"schema_version": 1, "ok": is_ok, "places": places} if records else here)
    echo(table(places))
    if not is_ok:
        raise CliptexError("fix the checks marked FAILED above")


def check(config_files: ConfigFiles = DEFAULT) -> None:
    """Check a configuration against the installed packages, plugins and local files; the workflow does so first."""
    from cliptex.cluster.check import problems

    if found := list(problems(load_config(config_files))):
        raise ConfigError(found)


def config_schema() -> None:
    """Print the JSON schema of the configuration (workflow/schemas/config.schema.json)."""
    import json

    from cliptex.config import Config

    typer.echo(json.dumps(Config.model_json_schema(), indent=1))


def config_reference() -> None:
    """Print the table of all configuration keys (config/README.md)."""
    from cliptex.config.reference import reference

    typer.echo(reference(), nl=False)
