"""What `snakemake` shows: on a terminal, in a pipe, of a failed job, and how long a run will still take."""

import os
import pty
import re
import shlex
import signal
import subprocess
import time

import pytest
from forked_jobs import forked
from small_run import ROOT

from snakemake_logger_plugin_cliptex.estimate import Estimate, _looked_up, about, duration, miniature_seconds
from snakemake_logger_plugin_cliptex.failure import last_error, repeat

WORKFLOW = """
rule all:
    input: "results/report.html"
rule label:
    output: "labels/{batch}"
    log: "logs/label/{batch}.log"
    message: "Label depth, batch {wildcards.batch}"
    shell: "echo 12:00:01 starting > {log}; echo '12:00:02 error: 0.tar: truncated; render it again' >> {log};"
           " sleep {config[seconds]}; test {wildcards.batch} != {config[broken]} && touch {output}"
rule report:
    input: expand("labels/{batch}", batch=[0, 1, 2])
    output: page="results/report.html", tables=directory("results/report")
    message: "Write the report"
    shell: "mkdir -p {output.tables}; touch {output.page};"
           " printf 'A real gain in 1 of 2\\\\nCLIPTeX is better in 2.\\\\n' > {output.tables}/verdict.txt"
"""


def command(folder, *arguments, seconds=0, broken="none"):
    (folder / "Snakefile").write_text(WORKFLOW)
    given = ["--cores", "2", "--directory", "run", *arguments, "--config", f"seconds={seconds}", f"broken={broken}"]
    return [str(forked("snakemake")), *given]


def piped(folder, *arguments, **values):
    logger = [] if "--logger" in arguments else ["--logger", "cliptex"]
    return subprocess.run(command(folder, *arguments, *logger, **values), cwd=folder, capture_output=True, text=True)


def on_terminal(folder, *arguments, **values):
    """Everything that was written to a terminal of 24 lines and 80 columns."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    given = command(folder, *arguments, "--logger", "cliptex", **values)
    process = subprocess.Popen(given, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    written = b""
    try:
        while block := os.read(ours, 65536):
            written += block
    except OSError:  # the other end was closed
        pass
    os.close(ours)
    assert process.wait(10) == 0, written
    return written.decode()


def test_a_pipe_gets_a_line_for_each_job_and_at_the_end_the_verdict(tmp_path):
    done = piped(tmp_path, "all")
    assert done.returncode == 0, done.stderr
    *start, first, second, third, report, total, verdict, sentence, page = done.stderr.splitlines()
    assert start == ["Building DAG of jobs...", start[1], "5 jobs to run"] and start[1].startswith("Provided cores: ")
    assert sorted(re.sub(r"^\[\d of 5 jobs\] | \(\d s\)$", "", line) for line in (first, second, third)) == [
        f"Label depth, batch {batch}" for batch in range(3)
    ]
    assert re.fullmatch(r"\[4 of 5 jobs\] Write the report \(\d s\)", report)
    assert re.fullmatch(r"5 jobs done in \d+ s", total)
    assert [verdict, sentence] == ["A real gain in 1 of 2", "CLIPTeX is better in 2."]
    assert page == "Open run/results/report.html"
    assert "\x1b" not in done.stderr and done.stdout == ""
    again = piped(tmp_path, "all")
    assert again.returncode == 0 and "Nothing to be done" in again.stderr and "done in" not in again.stderr


def test_a_terminal_shows_what_runs_below_what_is_done(tmp_path):
    written = on_terminal(tmp_path, "all", seconds=1.2)
    frames = re.sub(r"(\x1b\[(2K|1A))+", "\n", written.replace("\r", ""))  # each erases the one before
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", frames)
    assert re.search(r"^… Label depth, batch \d +1 s$", plain, re.M)
    assert re.search(r"━━ 0 of 5 jobs$", plain, re.M)
    assert len(re.findall(r"^✓ ", plain, re.M)) == 4  # no job twice
    assert plain.rstrip().endswith("CLIPTeX is better in 2.\nOpen run/results/report.html")
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")  # the cursor is back


def test_a_failed_job_ends_with_its_error_its_log_and_the_command_that_repeats_it(tmp_path):
    done = piped(tmp_path, "all", broken=1)
    assert done.returncode == 1
    *before, failed, error, log, again = done.stderr.splitlines()
    assert failed == "failed: Label depth, batch 1"
    assert error == "   error: 0.tar: truncated; render it again"
    assert log == "     log: run/logs/label/1.log"
    assert any(re.fullmatch(r"\[\d of 5 jobs\] ✗ Label depth, batch 1 \(failed after \d s\)", line) for line in before)
    assert not [line for line in before if "CalledProcessError" in line or "labels/1" in line]
    text = again.removeprefix("  repeat: ")
    program, *words = shlex.split(text.replace("broken=1", "broken=none"))
    assert program == "snakemake" and words[-2:] == ["--", "labels/1"]
    repeated = subprocess.run([forked("snakemake"), *words], cwd=tmp_path, capture_output=True, text=True)
    assert repeated.returncode == 0 and "1 job to run" in repeated.stderr, repeated.stderr
    (tmp_path / "other").mkdir()
    shown = piped(tmp_path / "other", "labels/2", "--show-failed-logs", broken=2).stderr
    assert "12:00:01 starting" in shown and "✗ Label depth, batch 2" in shown


def test_an_interrupted_run_is_no_failure(tmp_path):
    given = [*command(tmp_path, "all", seconds=30), "--logger", "cliptex"]
    process = subprocess.Popen(
        given,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        # as in a terminal; a shell's background jobs, of which the tests may be one, ignore it
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not list(tmp_path.glob("run/logs/label/*.log")):
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    lines = process.stderr.read().splitlines()  # the jobs' shells may write as well
    assert "interrupted; the same command resumes" in lines, lines
    assert not [line for line in lines if line.startswith("failed: ")] and process.wait(10) != 0


def test_snakemakes_own_options_keep_their_meaning(tmp_path):
    def without_times(text):
        return re.sub(r"^\[.*\]$|^  (Date|Workflow ID|Command): .*$", "", text, flags=re.M)

    (tmp_path / "run").mkdir()
    ours = piped(tmp_path, "--dry-run")
    own = subprocess.run(command(tmp_path, "--dry-run"), cwd=tmp_path, capture_output=True, text=True)
    assert without_times(ours.stdout + ours.stderr) == without_times(own.stdout + own.stderr)
    assert "Label depth, batch 0" in ours.stdout
    details = piped(tmp_path, "--dry-run", "--printshellcmds").stdout
    assert re.search(r"^Label depth, batch 0\n.*\nrule label:\n    output: labels/0\n", details, re.M)
    assert piped(tmp_path, "labels/0", "--quiet", "all").stderr == ""
    assert "Label depth" not in piped(tmp_path, "labels/1", "--quiet", "rules").stderr
    assert "rule label:" in piped(tmp_path, "labels/2", "--verbose").stderr


@pytest.mark.parametrize(
    "given, expected",
    [
        ("--cores 8 all", "--cores 8 -- x.json"),
        ("--cores 8", "--cores 8 -- x.json"),
        (
            "--cores 8 --directory night all --configfile a.yaml",
            "--cores 8 --directory night --configfile a.yaml -- x.json",
        ),
        ("--configfile a.yaml --cores 8 -- study all", "--configfile a.yaml --cores 8 -- x.json"),
        ("--directory all --cores 8 all -F", "--directory all --cores 8 -- x.json"),
        ("--cores 8 all --config 'train={steps: 9}'", "--cores 8 --config 'train={steps: 9}' -- x.json"),
    ],
)
def test_only_the_targets_of_the_repeated_command_are_replaced(given, expected):
    assert repeat(["snakemake", *shlex.split(given)], "x.json") == f"snakemake {expected}"


def test_the_error_of_a_log_is_its_last_else_its_last_line(tmp_path):
    log = tmp_path / "one.log"
    log.write_text("12:00:00 error: first\n12:00:01 error: a: wrong\x1b[2J\n  Traceback\n")
    assert last_error(log) == "a: wrong\\x1b[2J"
    log.write_text("12:00:00 reading\nKilled\n\n")
    assert last_error(log) == "Killed"
    assert last_error(None) == "the job ended with an error and wrote nothing about it"


def simulated(planned, seconds, earlier, *, cores=2):
    """(time, estimate of the seconds left) after each job of a run, and the time it took."""
    estimate, now, out = Estimate(planned, earlier, 0.0), 0.0, []
    waiting = [rule for rule, count in planned.items() for _ in range(count)]
    running: dict[int, float] = {}
    for number in range(len(waiting)):
        if len(running) == cores:
            job = min(running, key=running.get)
            now = running.pop(job)
            estimate.finish(job, now)
            out.append((now, estimate.seconds_left(now)))
        estimate.start(number, waiting[number], now)
        running[number] = now + seconds[waiting[number]]
    return out, max(running.values())


def test_the_time_left_is_near_what_the_run_takes():
    planned, seconds = {"render_pairs": 10, "label": 20, "train": 4}, {"render_pairs": 5, "label": 8, "train": 60}
    known = {"render_pairs": 4.0, "label": 9.0, "train": 55.0}  # of an earlier run in the folder
    found, total = simulated(planned, seconds, known)
    shown = [(now, left) for now, left in found if left is not None]
    assert len(shown) > 25
    assert all(0.7 * (total - now) < left < 1.4 * (total - now) for now, left in shown)


def test_no_time_is_guessed_from_the_miniature_for_another_kind_of_run():
    planned = {"render_pairs": 4, "train": 2}
    like = miniature_seconds()
    near, _ = simulated(planned, {rule: 2 * like[rule] for rule in planned}, {})
    far, _ = simulated(planned, {rule: 50 * like[rule] for rule in planned}, {})
    unknown, _ = simulated({"render_pairs": 4, "mine": 2}, {"render_pairs": 9, "mine": 9}, {})
    assert near[-1][1] is not None
    assert [left for _, left in (*far[:3], *unknown[:3])] == [None] * 6


def test_times_are_no_more_precise_than_they_are_known():
    assert [about(seconds) for seconds in (None, 20, 64, 500, 1400, 20000)] == [
        "",
        "less than a minute left",
        "about 1 min left",
        "about 8 min left",
        "about 25 min left",
        "about 6 h left",
    ]
    assert [duration(seconds) for seconds in (0.4, 59.4, 185, 7800)] == ["0 s", "59 s", "3 min 5 s", "2 h 10 min"]


def test_every_job_of_the_default_run_has_a_message_and_a_known_duration(tmp_path):
    given = ["--dry-run", "--cores", "2", "--directory", tmp_path, "--snakefile", ROOT / "Snakefile", "--", "all"]
    done = subprocess.run([forked("snakemake"), *map(str, given)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    table = re.search(r"Job stats:\njob +count\n[- ]+\n(.*?)\ntotal", done.stdout, re.S)[1]
    rules = [line.split()[0] for line in table.splitlines()]
    assert len(rules) > 20 and [rule for rule in rules if _looked_up(rule, miniature_seconds()) is None] == []
    assert re.findall(r"^(?:local)?rule (\w+):", done.stdout, re.M) == ["all"]
    assert "Label depth, batch 000" in done.stdout
