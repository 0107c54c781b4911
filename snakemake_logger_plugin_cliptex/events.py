"""Snakemake's log records as lines for the user; those that only say what Snakemake does are left out."""

import time
from collections.abc import Callable
from logging import ERROR, WARNING, Handler, LogRecord
from pathlib import Path

from snakemake.logging import DefaultFormatter, show_logs
from snakemake_interface_logger_plugins.common import LogEvent

from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.report.timings import by_rule, read_jobs
from snakemake_logger_plugin_cliptex.estimate import Estimate, about, duration
from snakemake_logger_plugin_cliptex.failure import Failure, failure, shown_path
from snakemake_logger_plugin_cliptex.screen import Pipe, Terminal

LEFT_OUT = (
    "Assuming unrestricted shared filesystem usage",
    "Complete log(s): ",
    "Config file ",
    "Conda environments: ignored",
    "Elapsed time: ",
    "Execute ",
    "Exiting because a job execution failed",
    "None",
    "Removing output files of failed job",
    "Removing temporary output ",
    "Rules claiming more threads will be scaled down",
    "Select jobs to execute",
    "Using shell: ",
    "host: ",
)
"""Beginnings of messages that are not shown."""
REPEATED = ("CalledProcessError", "At least one job did not complete successfully")
"""In errors that repeat what is shown of a failed job."""
INTERRUPTIONS = (
    "Terminating processes on user request",
    "Cancelling snakemake on user request",
    "Will exit after finishing",
)
"""Beginnings of what Snakemake says after Ctrl-C."""
VERDICT = paths.REPORT / "verdict.txt"


class Events(Handler):
    """Shows a run on a screen. plain: formats what has no line of its own here. show_logs: of failed jobs, whole."""

    def __init__(self, screen: Pipe | Terminal, plain: DefaultFormatter, show_logs: bool):
        super().__init__()
        self._screen, self._plain, self._show_logs = screen, plain, show_logs
        self._started_in, self._began = Path.cwd(), time.time()
        self._estimate: Estimate | None = None
        self._jobs: dict[int, LogRecord] = {}
        self._failed: dict[int, Failure] = {}
        self._done = self._total = 0
        self._interrupted = False
        self._pages: list[str] = []
        self._handlers: dict[LogEvent, Callable[[LogRecord], None]] = {
            LogEvent.RUN_INFO: self._plan,
            LogEvent.JOB_INFO: self._start,
            LogEvent.JOB_FINISHED: self._finish,
            LogEvent.JOB_ERROR: self._fail,
            LogEvent.PROGRESS: self._count,
            LogEvent.ERROR: self._error,
            LogEvent.JOB_STARTED: lambda record: None,
            LogEvent.WORKFLOW_STARTED: lambda record: None,
        }

    def emit(self, record: LogRecord) -> None:
        try:
            self._handlers.get(getattr(record, "event", None), self._other)(record)
        except Exception:
            self.handleError(record)

    # ---- the state of the run, for the bottom of a terminal (`screen.Status`); called by another thread

    def running(self) -> list[tuple[str, str]]:
        now = time.time()
        jobs = dict(self._estimate.running) if self._estimate else {}
        return [(self._label(job), duration(now - began)) for job, (_, began) in jobs.items()]

    def share(self) -> float:
        return self._done / max(self._total, 1)

    def summary(self) -> str:
        left = about(self._estimate.seconds_left(time.time())) if self._estimate and self._done < self._total else ""
        return ", ".join(filter(None, [f"{self._done} of {self._total} jobs", left]))

    # ---- records

    def _plan(self, record: LogRecord) -> None:
        planned = {rule: count for rule, count in record.stats.items() if rule != "total"}
        self._total, self._began = record.stats.get("total", sum(planned.values())), record.created
        try:
            earlier = {timing.rule: timing.wall / timing.jobs for timing in by_rule(read_jobs(paths.TIMINGS))}
        except CliptexError:  # broken tables of times are of no interest here
            earlier = {}
        self._estimate = Estimate(planned, earlier, record.created)
        self._screen.line(f"{_jobs(self._total)} to run")
        self._screen.begin(self)

    def _start(self, record: LogRecord) -> None:
        self._jobs[record.jobid] = record
        if self._estimate:
            self._estimate.start(record.jobid, record.rule_name, record.created)

    def _finish(self, record: LogRecord) -> None:
        self._failed.pop(record.job_id, None)  # a later try
        job = self._jobs.get(record.job_id)
        if job is None or self._estimate is None:  # with --quiet rules
            return
        taken = self._estimate.finish(record.job_id, record.created)
        self._pages += [shown for shown in job.output if shown.endswith(".html")]
        if job.shellcmd is not None:  # targets such as `all` do nothing
            # Snakemake reports the new number of finished jobs after this record
            self._done += 1
            self._screen.job("✓", self._label(record.job_id), duration(taken), self.summary())

    def _fail(self, record: LogRecord) -> None:
        job = record.jobid
        self._jobs.setdefault(job, record)
        target = next(iter(record.output), record.rule_name)
        self._failed[job] = failure(self._label(job), record.log, target, self._started_in)
        now = record.created
        began = self._estimate.running.get(job, ("", now))[1] if self._estimate else now
        if self._estimate and job in self._estimate.running:
            self._estimate.fail(job)
        self._screen.job("✗", self._label(job), f"failed after {duration(now - began)}", self.summary())
        for line in show_logs(record.log) if self._show_logs else ():
            self._screen.line(line)

    def _count(self, record: LogRecord) -> None:
        self._done, self._total = record.done, record.total

    def _error(self, record: LogRecord) -> None:
        if not any(text in record.getMessage() for text in REPEATED):
            self._other(record)

    def _other(self, record: LogRecord) -> None:
        text = self._plain.format(record)
        self._interrupted |= text.startswith(INTERRUPTIONS)
        if text and not text.startswith(LEFT_OUT):
            level = record.levelno
            self._screen.line(text, "red" if level >= ERROR else "yellow" if level >= WARNING else "")

    def _label(self, job: int) -> str:
        record = self._jobs[job]
        return getattr(record, "rule_msg", None) or record.rule_name

    # ---- the end

    def close(self) -> None:
        self._screen.end()
        if self._interrupted:  # a stopped job has not failed
            self._failed = {}
            self._screen.line("interrupted; the same command resumes")
        for failed in self._failed.values():
            for line in ("", *failed.lines):
                self._screen.line(line, "red" if line.startswith("failed") else "")
        if self._total and self._done == self._total and not self._failed:
            self._screen.line(f"{_jobs(self._total)} done in {duration(time.time() - self._began)}")
            self._result()
        self._failed, self._total, self._interrupted = {}, 0, False  # Snakemake closes more than once
        super().close()

    def _result(self) -> None:
        """The verdict of the report, if it was written, and the paths of pages."""
        if str(paths.RESULTS / "report.html") in self._pages and VERDICT.is_file():
            for line in VERDICT.read_text(encoding="utf-8").splitlines():
                self._screen.line(line, "bold")
        for page in self._pages:
            self._screen.line(f"Open {shown_path(Path(page), self._started_in)}")


def _jobs(number: int) -> str:
    return f"{number} job{'s' if number != 1 else ''}"
