"""A logger plugin of Snakemake: one line for each job, and the verdict or the error at the end.

profiles/default/config.yaml selects it (`logger: cliptex`); any other `--logger` replaces it. Snakemake's own log in
.snakemake/log stays as it is. Dry runs, `--verbose`, `--printshellcmds` and `--debug-dag` have Snakemake's own output;
the last three also list a job's files and resources.
"""

import os
import sys
from logging import Handler, LogRecord
from typing import Any

from snakemake.logging import ColorizingTextHandler, DefaultFormatter
from snakemake_interface_logger_plugins.base import LogHandlerBase

from snakemake_logger_plugin_cliptex.events import Events
from snakemake_logger_plugin_cliptex.screen import Pipe, Terminal


class Details(DefaultFormatter):
    """A job's files and resources, which Snakemake leaves out where a rule has a message."""

    def format_job_info(self, msg: dict[str, Any]) -> str:
        return "\n".join(filter(None, [msg["rule_msg"], super().format_job_info(msg | {"rule_msg": None})]))


class LogHandler(LogHandlerBase):
    """What Snakemake looks for in a logger plugin."""

    def __post_init__(self) -> None:
        shown, plain = self.common_settings, DefaultFormatter(self.common_settings.quiet)
        details = shown.verbose or shown.printshellcmds or shown.debug_dag
        if shown.dryrun or details:
            formatter = Details(shown.quiet, shown.show_failed_logs) if details else plain
            stream = sys.stdout if shown.stdout else sys.stderr
            self._handler: Handler = ColorizingTextHandler(shown.nocolor, stream, formatter=formatter)
            return
        os.environ["CLIPTEX_CONSOLE"] = "1"  # jobs write to their logs only (`cliptex.cli`)
        live = sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", None)
        screen = Terminal(color=not shown.nocolor) if live else Pipe()
        self._handler = Events(screen, plain, show_logs=shown.show_failed_logs)

    def emit(self, record: LogRecord) -> None:
        self._handler.emit(record)

    def close(self) -> None:
        self._handler.close()
        super().close()

    @property
    def writes_to_stream(self) -> bool:
        return True

    @property
    def writes_to_file(self) -> bool:
        return False

    @property
    def has_filter(self) -> bool:
        return False  # Snakemake's filter does what --quiet asks for

    @property
    def has_formatter(self) -> bool:
        return True

    @property
    def needs_rulegraph(self) -> bool:
        return False
