"""Commands that set up a folder for a run, and run the workflow in it."""

from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

from cliptex.cli.common import echo
from cliptex.cluster import folder as run_folder


class PassingOn(TyperCommand):
    """A command that leaves all its arguments as they are, except --help alone."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args == ["--help"] else ["--", *args])


def init(
    folder: Annotated[Path, typer.Argument()], config: Annotated[str, typer.Option("--config")] = run_folder.DEFAULT
) -> None:
    """Make a folder for a run: Snakefile, configuration, profiles, README; no clone is needed.

    Args:
        folder: A new or an empty folder.
        config: The configuration: miniature, one_gpu, paper or test.
    """
    run_folder.create(folder, config)
    echo(f"{folder}: ready for a run of the configuration {config!r}; continue with:")
    echo(f"  cd {folder}\n  cliptex run --dry-run   # shows the jobs\n  cliptex run             # runs them all")
    echo("Then open results/report.html. README.md in the folder describes what is there.")


def run(arguments: Annotated[list[str] | None, typer.Argument(metavar="SNAKEMAKE ARGUMENTS")] = None) -> None:
    """Run Snakemake in this folder, or in that of --directory, on all cores; all arguments are passed on.

    For example: cliptex run --cores 4 results/probes/voc.json

    Args:
        arguments: Targets and options of Snakemake; see snakemake --help. By default the target all.
    """
    run_folder.run(arguments or [])
