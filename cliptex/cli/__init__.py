"""The command line, `cliptex <command> ...`: one command per stage, which imports only what it needs."""

import gc
import logging
import os
import sys
import traceback
from contextlib import chdir
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from cliptex.cli import common, data, evaluation, folder, labels, models, project, stores
from cliptex.cli.common import commands_of, documented
from cliptex.cluster import gpu
from cliptex.core import paths, progress
from cliptex.core.errors import CliptexError, ConfigError, environment_number, subject
from cliptex.core.files import write_error
from cliptex.core.redact import Formatter

log = logging.getLogger("cliptex")
PANELS = {
    "The whole run": folder,
    "Pairs and benchmarks": data,
    "Experts and labels": labels,
    "Models": models,
    "Evaluation": evaluation,
    "Configuration": project,
}
"""Modules by panel of `cliptex --help`: their public functions are commands of the same name, in the same order."""
TRAINING = {"train-backbone", "train-expert", "train", "finetune"}
ON_GPU = TRAINING | {
    "fit-pca",
    "label",
    "probe",
    "zeroshot",
    "retrieval",
    "training-free",
    "clip-benchmark",
    "few-shot",
}
"""Commands that compute on the GPU if there is one."""


def cliptex(
    context: typer.Context,
    log_file: Annotated[Path | None, typer.Option("--log")] = None,
    threads: Annotated[int | None, typer.Option(min=1)] = None,
    debug: Annotated[bool, typer.Option("--debug", envvar="CLIPTEX_DEBUG")] = False,
    version: Annotated[bool, typer.Option("--version")] = False,
    directory: Path | None = None,
) -> None:
    """Improve CLIP with pseudo-labels from public vision models, and measure by how much.

    The options below come before the command: cliptex --threads 2 train --model cliptex.

    Args:
        log_file: Also write the log to this file.
        threads: Compute threads of all processes on this machine together; all by default.
        debug: Show the traceback of an error, and more in the log.
        version: Print the versions of this package and of its dependencies, and exit.
        directory: Folder of the run, as for Snakemake. All paths but those of --config and --log are relative to it.
    """
    if version:
        from cliptex.core.provenance import versions

        typer.echo("\n".join(f"{name} {value}" for name, value in versions().items()))
        raise typer.Exit
    context.obj = threads
    common.started_in = Path()
    if threads is not None:
        _limit_threads(threads)
    _set_up_logging(log_file, debug)
    if log_file is not None and "RANK" not in os.environ:
        _record_usage(context, log_file)
    if directory is not None:
        if not directory.is_dir():
            raise CliptexError(f"--directory {directory}: no such folder; give the one that Snakemake was given")
        common.started_in = Path.cwd()
        context.call_on_close(lambda: setattr(common, "started_in", Path()))
        context.with_resource(chdir(directory))
    if expected := os.environ.get("CLIPTEX_CODE"):
        from cliptex.core.provenance import require_code

        digest, _, planned_dir = expected.partition(":")
        require_code(digest, planned_dir)
    if context.invoked_subcommand in ON_GPU:
        # train takes the number in --gpus
        if context.invoked_subcommand != "train" and "--help" not in sys.argv:
            for lock in gpu.take(1):
                context.call_on_close(lock.close)
        gpu.require_allocated_gpu()


def _record_usage(context: typer.Context, log_file: Path) -> None:
    """A job of the workflow records its processor seconds when it ends, with or without an error: Snakemake's own are
    samples, of which the last may be half a minute old."""
    if (path := paths.job_usage(log_file)) is not None:
        from cliptex.core.provenance import record_usage

        path = path.absolute()  # the log's folder, whatever --directory is
        path.unlink(missing_ok=True)
        context.call_on_close(partial(record_usage, path))


def _limit_threads(threads: int) -> None:
    # more threads than processors wait for each other; the processes of torchrun share the processors
    threads = min(threads, len(os.sched_getaffinity(0))) // environment_number("LOCAL_WORLD_SIZE", 1) or 1
    # OpenMP, MKL and OpenBLAS read these when they are loaded, which is later
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(threads)


def _set_up_logging(log_file: Path | None, debug: bool) -> None:
    terminal = logging.StreamHandler()
    terminal.addFilter(lambda record: debug or not hasattr(record, "is_traceback"))
    handlers: list[logging.Handler] = [terminal]
    # of the processes that torchrun started together, only rank 0 writes the log
    if log_file is not None and os.environ.get("RANK", "0") == "0":
        log_file.parent.mkdir(parents=True, exist_ok=True)
        handlers.append(logging.FileHandler(log_file, mode="w", encoding="utf-8"))
        # several jobs share the terminal: no progress bars, and only errors if the terminal is not interactive
        progress.bars = False
        terminal.setLevel(logging.INFO if sys.stderr.isatty() else logging.ERROR)
        if CONSOLE in os.environ:
            terminal.setLevel(logging.CRITICAL)
    for handler in handlers:
        handler.setFormatter(Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=handlers)
    log.setLevel(logging.DEBUG if debug else logging.INFO)
    logging.captureWarnings(True)


def _build_app() -> typer.Typer:
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback(invoke_without_command=True, help=documented(cliptex))(cliptex)
    for panel, module in PANELS.items():
        for function in commands_of(module):
            kind = folder.PassingOn if function is folder.run else None
            app.command(cls=kind, help=documented(function), rich_help_panel=panel)(function)
    group = typer.Typer(help="Inspect, verify, export and publish label stores.", no_args_is_help=True)
    for function in commands_of(stores):
        group.command(help=documented(function))(function)
    app.add_typer(group, name="labels", rich_help_panel="Experts and labels")
    return app


app = _build_app()
COLLECT_AFTER = (50_000, 20, 10)
"""Thresholds of the garbage collector. With Python's own, every 700 objects, up to a tenth of the time of importing
open_clip goes into looking through what stays."""
CONSOLE = "CLIPTEX_CONSOLE"
"""Environment variable of the workflow's jobs on this machine: Snakemake's console shows their errors itself, from
their logs (`snakemake_logger_plugin_cliptex`)."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, by convention; that of typer, too."""


def main() -> None:
    """Run a command. Exit code 1: an error that the user can fix; 2: a wrong command line, or an unexpected error.

    An error is one line. The traceback of an unexpected one is in the log file; --debug shows it on the terminal.
    """
    if sys.getfilesystemencoding() != "utf-8" and "PYTHONUTF8" not in os.environ:
        # names of files and what is printed are UTF-8 whatever the locale; only a new process can change that
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONUTF8": "1"})
    gc.set_threshold(*COLLECT_AFTER)
    try:
        code = app(prog_name="cliptex", standalone_mode=False)
    except typer.Abort:
        code = INTERRUPTED
    except Exception as error:
        expected = error if isinstance(error, CliptexError) else write_error(error)
        if expected is None:
            sys.exit(_show_unexpected(error))
        if log.isEnabledFor(logging.DEBUG):
            log.error("%s", traceback.format_exc(), extra={"is_traceback": True})
        for line in expected.lines if isinstance(expected, ConfigError) else [expected]:
            log.error("error: %s", line)
        code = 1
    if code == INTERRUPTED:
        log.error("interrupted; the same command resumes after the last checkpoint or finished file")
    sys.exit(code)


def _show_unexpected(error: Exception) -> int:
    """Show an error of the command line, or log an unexpected one; return the exit code."""
    if hasattr(error, "format_message"):  # typer's errors have no public base class
        typer.echo(_usage_error(error), err=True)
        return error.exit_code
    message = str(error).strip().partition("\n")[0]
    # without a file that was worked on, at least the stage and its options; not the configuration, which is long
    options = [text for text in sys.argv[1:] if len(text) <= 200 and not text.startswith("{")]
    where = subject(error) or " ".join(["cliptex", *options])
    files = [handler.baseFilename for handler in logging.root.handlers if isinstance(handler, logging.FileHandler)]
    hint = f"the traceback is in {files[0]}" if files else "cliptex --debug ... shows the traceback"
    log.error("%s", traceback.format_exc(), extra={"is_traceback": True})
    log.error("error: %s: %s%s (%s)", where, type(error).__name__, f": {message}" if message else "", hint)
    return 2


def _usage_error(error: Any) -> str:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        return context.get_help()
    root = context.find_root() if context else None
    if root and getattr(error, "option_name", None) in {name for param in root.command.params for name in param.opts}:
        hint = f"put it before the command: cliptex {error.option_name} ..."
    else:
        hint = f"see {context.command_path if context else 'cliptex'} --help"
    return f"error: {error.format_message().rstrip('.')} ({hint})"
