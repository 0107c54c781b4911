"""README and documentation: links are followed, commands and code blocks run, and print what pages show.

Commands of the workflow are planned; the others, and Python, run on the results of config/test.yaml. The tutorial runs
as the notebook that is made from it.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import types
from importlib.machinery import SourceFileLoader
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
import yaml
from forked_jobs import forked
from official_layouts import write_coco
from PIL import Image
from safetensors.numpy import save_file
from shown_output import agrees, shown_outputs
from small_run import BIN, ROOT, merged, snakemake
from tiny import TINY

from cliptex.cli import app
from cliptex.config import Config
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import read_json, sha256_file
from cliptex.core.plugins import find
from cliptex.data.shards import read_shard
from cliptex.evaluation import probe
from cliptex.evaluation.job import Job
from cliptex.evaluation.measures import measure
from cliptex.evaluation.per_image import main_metric, per_image_path, read_per_image
from cliptex.evaluation.probes import tasks
from cliptex.evaluation.probes.tasks import probe_task
from cliptex.evaluation.results import read_result, tabulate
from cliptex.evaluation.targets import heads, kinds
from cliptex.experts.training import load_expert, train_expert
from cliptex.labels.index import index_labels
from cliptex.labels.label import label_batch
from cliptex.models import clip

ELSEWHERE = {"CHANGELOG.md", "docs/slurm.md", "docs/tutorial.md"}
"""Whose commands are not run here: what changed; what tests/slurm runs; what the notebook runs."""
PAGES = [
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "examples/*/README.md")
    for path in sorted(ROOT.glob(pattern))
    if str(path.relative_to(ROOT)) not in ELSEWHERE
]
PIECE = re.compile(r"^```(\w*)\n(.*?)^```|^    ((?:PYTHONPATH=\S+ )?(?:cliptex|snakemake) [^\n]*)$", re.S | re.M)
NOT_RUN = {
    "cliptex init": "test_folder",
    "cliptex run": "test_folder",
    "cliptex fetch": "downloads",
    "cliptex doctor --profile": "asks the scheduler; tests/slurm",
    "cliptex compare": "of two runs; test_compare",
    "cliptex --directory": "for a run elsewhere; below, and test_cli",
    "cliptex labels inspect --config bright.yaml": "below",
    "from pathlib import Path\n\nfrom roofs": "below",
    'from cliptex.evaluation.results import read_result\n\nfor row in read_result("results/probes/coco_counts': "below",
    "cliptex train": "on several GPUs or nodes; tests/slurm",
    "import pyarrow.parquet as pq\nfrom pycocotools": "of an expert that keeps its instances; test_experts",
    "# roofs.py": "below",
    "# contrast.py": "below",
    "# counting.py": "below",
    "# coco_counts.py": "below",
}
"""What a command or a block begins with: why it is not run here."""
PLANNED_ELSEWHERE = ("config/one_gpu.yaml", "config/paper.yaml", "config/studies/")
"""In test_workflow, test_one_gpu."""


def pieces(page: str) -> list[tuple[str, str]]:
    """(kind, text): yaml and python blocks, and every command of ours, in the page's order."""
    found = []
    for kind, text, indented in PIECE.findall((ROOT / page).read_text()):
        if indented:
            kind, text = "bash", indented
        if kind in ("yaml", "python"):
            found.append((kind, text))
        elif kind == "bash":
            parts = [part for line in text.splitlines() for part in re.split(r" && ", line)]
            found += [(part.split()[0], part) for part in (ours(part) for part in parts) if part]
    return found


def ours(command: str) -> str:
    """The command without variables and comment, or "" where it is not one of the package's or Snakemake."""
    words = shlex.split(command, comments=True)
    while words and re.fullmatch(r"[A-Z]+=.*", words[0]):
        words = words[1:]
    return shlex.join(words) if words and words[0] in ("cliptex", "snakemake") else ""


def is_run(text: str) -> bool:
    return not text.startswith(tuple(NOT_RUN))


def loaded(*names: str) -> dict:
    out = {}
    for name in names:
        out = merged(out, yaml.safe_load((ROOT / "config" / name).read_text()))
    return out


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_links_to_exist(page):
    links = re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", [page for page in PAGES if "yaml" in dict(pieces(page))])
def test_configurations_on_a_page_are_valid(page):
    for kind, text in pieces(page):
        if kind == "yaml":
            Config.load(merged(loaded("config.yaml"), yaml.safe_load(text)))


def figure(name: str) -> types.ModuleType:
    return SourceFileLoader(name, str(ROOT / f"docs/figures/{name}.py")).load_module()


@pytest.fixture(scope="module")
def errors():
    return figure("troubleshooting")


def test_each_error_of_the_code_is_in_a_section_of_troubleshooting(errors):
    listed = errors.by_section(errors.PAGE.read_text())
    assert [pattern for pattern, messages in listed.items() if not messages] == []
    every = [message for messages in listed.values() for message in messages]
    raised = sum(path.read_text().count("raise CliptexError(") for path in (ROOT / "cliptex").rglob("*.py"))
    assert len(every) > 0.9 * raised
    for message in (  # of a constant; of a name given a text before; of a text that another function yields
        "‹path›: has no depth; unpack the raw drives and data_depth_annotated.zip here (docs/data.md)",
        "‹path›: shard is truncated or not a tar (‹error›); replace it with a complete copy",
        "‹place›: its mask is ‹dtype› ‹shape›; return it as uint8 [H, W]",
    ):
        assert message in every
        assert f"- `` {message} ``" in errors.page()


def test_an_error_in_no_section_of_troubleshooting_is_named(errors):
    with pytest.raises(ValueError, match=r"is in no section of docs/troubleshooting\.md"):
        errors.by_section("<!-- errors: please report this -->")


def first_configuration(page: str) -> str:
    return next((text for kind, text in pieces(page) if kind == "yaml"), "")


def plans(folder: Path) -> dict[tuple[str, ...], set[str]]:
    """Options of Snakemake that matter for a plan: targets of all commands that have these. Writes their YAML files."""
    found: dict[tuple[str, ...], set[str]] = {}
    for page in PAGES:
        written = first_configuration(page)
        for kind, text in pieces(page):
            if kind == "yaml":
                written = text.replace("/data/", f"{folder}/data/")
            if kind != "snakemake":
                continue
            words, options, targets = shlex.split(text)[1:], [], set()
            while words:
                word = words.pop(0)
                if word in ("--configfile", "--config", "--workflow-profile"):
                    value = words.pop(0)
                    if word == "--configfile" and not (ROOT / value).exists():
                        path = folder / f"{page.replace('/', '-')}-{value}"
                        path.write_text(written)
                        value = str(path)
                    options += [word, value]
                elif word in ("--cores", "--directory", "--forcerun", "--report"):
                    words.pop(0)
                elif not word.startswith("-"):
                    targets.add(word)
            named = [value for value in options if value.startswith(PLANNED_ELSEWHERE)]
            if "--workflow-profile" not in options and not named:
                found.setdefault(tuple(options), set()).update(targets)
    return found


def test_commands_of_the_workflow_can_be_planned(tmp_path):
    (tmp_path / "data/pairs").mkdir(parents=True)
    (tmp_path / "pairs-00000.tar").touch()
    for number in range(42):
        (tmp_path / f"data/pairs/{number:05d}.tar").touch()
    (tmp_path / "Train_GCC-training.tsv").touch()
    (tmp_path / "hed_bsds500.weights.h5").touch()
    (tmp_path / "data/roofs").mkdir()
    (tmp_path / "hed_bsds500.weights.h5").touch()
    (tmp_path / "brightness.py").write_text(block("docs/howto/own-expert.md", "# brightness.py"))
    (tmp_path / "roofs.py").write_text(block("docs/howto/own-benchmark.md", "# roofs.py"))
    found = plans(tmp_path)
    assert len(found) > 5
    environment = os.environ | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "examples/edges"), os.environ.get("PYTHONPATH", "")]),
    }
    program = forked("snakemake")
    for options, targets in found.items():
        command = [str(program), "--dry-run", "--quiet", "all", "--cores", "1", "--directory", str(tmp_path)]
        command += ["--snakefile", str(ROOT / "Snakefile"), *options, "--", *sorted(targets)]
        result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
        assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout[-1500:]}{result.stderr[-1500:]}"


DRIVER = """
import contextlib, io, json, os, sys, traceback, warnings
from cliptex.cli import app
warnings.simplefilter("ignore")
failed, printed, start = [], [], os.getcwd()
for page, kind, text in json.load(sys.stdin):
    print(f"{page}: {text}", file=sys.stderr, flush=True)
    os.chdir(start)
    printed.append(io.StringIO())
    try:
      with contextlib.redirect_stdout(printed[-1]):
        if kind == "python":
            exec(compile(text, page, "exec"), {"__name__": "__main__"})
        else:
            import shlex
            app(shlex.split(text)[1:], prog_name="cliptex", standalone_mode=False)
    except BaseException as error:
        if not (isinstance(error, SystemExit) and not error.code):
            failed.append(f"{page}: {text}\\n{traceback.format_exc()[-1500:]}")
print(json.dumps([text.getvalue() for text in printed]))
sys.exit("\\n\\n".join(failed) if failed else 0)
"""


@pytest.mark.xdist_group("workflow")
def test_commands_and_code_run(finished, tmp_path):
    shutil.copytree(finished / "results", tmp_path / "results")
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "config/config.yaml").write_text(yaml.safe_dump(loaded("config.yaml", "test.yaml"), sort_keys=False))
    (tmp_path / "resources").symlink_to(finished / "resources")
    pair = read_shard(tmp_path / "results/shards/00000.tar")[0]
    for name in ("photo.jpg", "other.png"):
        (tmp_path / name).write_bytes(pair.image)
    (tmp_path / "mine").symlink_to(".")
    run = []
    for page in PAGES:
        written = first_configuration(page)
        for kind, text in pieces(page):
            if kind == "yaml":
                written = text
            elif kind in ("cliptex", "python") and is_run(text) and text not in {ran for _, _, ran in run}:
                for name in re.findall(r"--config (\S+)", text):
                    if not (tmp_path / name).exists():
                        (tmp_path / name).write_text(written)
                run.append((page, kind, text))
    assert len(run) > 20
    result = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(run), capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr[-6000:]
    assert other_outputs(run, json.loads(result.stdout)) == []
    for made in ("sheet.png", "results/labels.png", "exported/labels.json", "exported/README.md"):
        assert (tmp_path / made).exists()


def other_outputs(run: list[tuple[str, str, str]], printed: list[str]) -> list[tuple[str, str, str]]:
    """(page, what ran, what it printed) where this is not what a page shows."""
    outputs = {text: output for (_, _, text), output in zip(run, printed, strict=True)}
    wrong, compared = [], 0
    for page in PAGES:
        for code, shown in shown_outputs(ROOT / page).items():
            output = outputs.get(code, outputs.get(ours(code.splitlines()[-1])))
            if output is not None:
                compared += 1
                wrong += [] if agrees(shown, output) else [(page, code, output)]
    assert compared > 4
    return wrong


def test_the_plan_of_a_night_on_one_gpu_is_as_shown(tmp_path, monkeypatch, capsys):
    ((command, shown),) = shown_outputs(ROOT / "docs/howto/one-gpu.md").items()
    monkeypatch.chdir(ROOT)
    app(shlex.split(command.replace("night", str(tmp_path)))[1:], standalone_mode=False)
    assert agrees(shown, capsys.readouterr().out)


def test_the_doctor_is_as_shown(tmp_path, monkeypatch, capsys):
    ((command, shown),) = shown_outputs(ROOT / "docs/slurm.md").items()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(BIN))  # whatever scheduler this machine has
    app(shlex.split(command)[1:], standalone_mode=False)
    assert agrees(shown, capsys.readouterr().out)


def printed_block(page: str, start: str, capsys, at: str = "/") -> None:
    """Run a block of Python of the page, with `at` for its /, and compare what it prints with what the page shows."""
    code, shown = next(pair for pair in shown_outputs(ROOT / page).items() if pair[0].startswith(start))
    capsys.readouterr()
    exec(compile(code.replace('"/', f'"{at}'), page, "exec"), {})
    assert agrees(shown, capsys.readouterr().out)


@pytest.mark.xdist_group("workflow")
def test_a_finished_run_says_what_the_how_to_shows(finished):
    ((command, shown),) = shown_outputs(ROOT / "docs/howto/resume.md").items()
    result = snakemake(finished, *shlex.split(command)[1:])
    assert agrees(shown, result.stderr + result.stdout)


def test_the_notebook_is_made_from_the_tutorial():
    module = figure("notebook")
    made = module.notebook((ROOT / "docs/tutorial.md").read_text())
    assert made.count(" s of one processor") == len(module.SECONDS)
    assert made == (ROOT / "docs/tutorial.ipynb").read_text(), (
        "run: python docs/figures/notebook.py docs/tutorial.ipynb"
    )


@pytest.mark.xdist_group("workflow")
def test_the_notebook_runs_and_finds_every_stage_done(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path / "tutorial", symlinks=True)
    (tmp_path / "docs").mkdir()
    for name in ("Snakefile", "workflow", "profiles", "config", "cliptex"):
        (tmp_path / name).symlink_to(ROOT / name)
    programs = [str(forked(name).parent) for name in ("cliptex", "snakemake")]
    monkeypatch.setenv("PATH", os.pathsep.join([*programs, str(BIN), os.environ["PATH"]]))
    notebook = nbformat.read(ROOT / "docs/tutorial.ipynb", 4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path / "docs")}}).execute()
    outputs = ["".join(output.get("text", "") for output in cell.get("outputs", [])) for cell in notebook.cells]
    stages = [text for cell, text in zip(notebook.cells, outputs, strict=True) if "--cores" in cell.source]
    assert len(stages) == 7 and all("Nothing to be done" in text for text in stages)
    assert "['depth', 'normals', 'segmentation']" in "".join(outputs)
    assert (tmp_path / "tutorial/sheet.png").exists()
    changed = next(text for cell, text in zip(notebook.cells, outputs, strict=True) if "depth: 9.0" in cell.source)
    assert "Nothing to be done" not in changed and re.search(r"^train +1$", changed, re.M)


def block(page: str, start: str) -> str:
    return next(text for kind, text in pieces(page) if kind == "python" and text.startswith(start))


def test_what_is_not_run_is_still_there():
    texts = [text for page in PAGES for _, text in pieces(page)]
    assert [start for start in NOT_RUN if not any(text.startswith(start) for text in texts)] == []


def own_benchmark(page: str) -> dict:
    return next(yaml.safe_load(text) for kind, text in pieces(page) if kind == "yaml")


def test_the_benchmark_of_the_how_to_is_read(tmp_path, monkeypatch, capsys):
    module_of("docs/howto/own-benchmark.md", "# roofs.py", "roofs", monkeypatch)
    Config.load(own_benchmark("docs/howto/own-benchmark.md"))
    folder = tmp_path / "data/roofs"
    for part in ("train", "val"):
        for kind, suffix, shape in (("images", "jpg", (20, 30, 3)), ("masks", "png", (20, 30))):
            (folder / part / kind).mkdir(parents=True)
            Image.fromarray(np.full(shape, 1, np.uint8)).save(folder / part / kind / f"a.{suffix}")
    printed_block("docs/howto/own-benchmark.md", "from pathlib", capsys, f"{tmp_path}/")
    data = find("benchmarks", "roofs")(folder)
    (sample,) = data.samples("eval")
    assert data.name == "roofs"
    assert sample["id"] == "a" and sample["image"].shape == (20, 30, 3) and (sample["mask"] == 1).all()
    assert heads("roofs", {"protocol": "miniature"}) == heads("voc", {"protocol": "miniature"})
    Image.fromarray(np.full((20, 30), 2, np.uint8)).save(folder / "val/masks/a.png")
    with pytest.raises(CliptexError, match=r"val/masks/a\.png: has the value 2, but .* 0\.\.1 and 255 .*class_names"):
        data.samples("eval")[0]


def test_the_expert_of_the_how_to_labels(tmp_path, shard_paths, shard_index, monkeypatch, capsys):
    page, expert = "docs/howto/own-expert.md", Path("results/experts/flash")
    module_of(page, "# brightness.py", "brightness", monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("bright.yaml").write_text(
        yaml.safe_dump(
            yaml.safe_load(first_configuration(page))
            | {"dataset": {"source": "webdataset", "shards": list(map(str, shard_paths))}}
        )
    )
    config = Config.load(merged(loaded("config.yaml"), yaml.safe_load(Path("bright.yaml").read_text())))
    train_expert(config, "flash", paths.EXPERT_RENDERS, expert, 0)
    label_batch(config, "depth", 0, paths.SHARD_INDEX, expert, paths.labels("depth"))
    index_labels(config, "depth", paths.SHARD_INDEX, paths.labels("depth"))
    ((command, shown),) = shown_outputs(ROOT / page).items()
    app(shlex.split(ours(command.strip()))[1:], standalone_mode=False)
    assert agrees(shown, capsys.readouterr().out)


def test_the_expert_with_weights_of_the_how_to_labels_with_them(tmp_path, monkeypatch):
    page = "docs/howto/own-expert.md"
    module_of(page, "# contrast.py", "contrast", monkeypatch)
    text = next(text for kind, text in pieces(page) if kind == "yaml" and "contrast:" in text)
    path = tmp_path / "data/contrast.safetensors"
    path.parent.mkdir()
    save_file({"rgb": np.array([0.5, 0.25, 0.125], np.float32)}, path)
    config = Config.load(yaml.safe_load(text.replace("/data/", f"{tmp_path}/data/")))
    train_expert(config, "mine", tmp_path, tmp_path / "mine", 0)
    record = read_json(tmp_path / "mine/expert.json")
    assert record["weights_sha256"] == sha256_file(path) and record["source"] == "local"
    (label,) = load_expert("mine", config.experts["mine"], tmp_path / "mine").predict([np.full((2, 3, 3), 8)], ["a"])
    np.testing.assert_array_equal(label, np.full((2, 3), 7, np.float32))


def module_of(page: str, start: str, name: str, monkeypatch) -> types.ModuleType:
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(block(page, start), module.__dict__)
    return module


def test_the_probe_task_of_the_how_to_is_evaluated_tabulated_and_shown(tmp_path, monkeypatch, capsys):
    page = "docs/howto/own-probe-task.md"
    module_of(page, "# counting.py", "counting", monkeypatch)
    module_of(page, "# coco_counts.py", "coco_counts", monkeypatch)
    protocol = (ROOT / page).read_text().partition("    # counting.yaml\n")[2].partition("\n\n")[0]
    (tmp_path / "counting.yaml").write_text(textwrap.dedent(protocol))
    write_coco(tmp_path / "data", 16, 8)
    clip.export(clip.build(TINY, 0), TINY, tmp_path / "models/clip/seed0")
    entry = {"protocol": str(tmp_path / "counting.yaml")}
    config = Config.load(
        own_benchmark(page) | {"probes": {"benchmarks": {"coco_counts": entry}, "save_predictions": 2}}
    )
    job = Job(
        name="coco_counts",
        models=("clip",),
        seeds=(0,),
        models_dir=tmp_path / "models",
        benchmark_dir=tmp_path / "data",
        out=tmp_path / "probes/coco_counts",
        cache_dir=tmp_path / "features",
    )
    probe.run(config, job)
    assert heads("coco_counts", entry) == ["linear"] and kinds("coco_counts") == ["json", "per_image.npz"]
    path = tmp_path / "probes/coco_counts/clip/seed0/linear.json"
    monkeypatch.chdir(tmp_path)
    table = Path("results/probes/coco_counts.json")
    table.parent.mkdir(parents=True)
    tabulate("coco_counts", [path], table)
    printed_block(page, "from cliptex.evaluation.results", capsys)
    (row,) = read_result(table).results
    arrays = read_per_image(per_image_path(path)).tasks["counting"]
    assert row.task == "counting" and main_metric("counting", arrays)[0] == pytest.approx(row.metrics["MAE"])
    samples = find("benchmarks", "coco_counts")(tmp_path / "data").samples("eval")
    truths = [float((~sample["crowd"]).sum()) for sample in samples]
    with np.load(path.with_suffix(".npz")) as kept:
        assert kept["truth"].tolist() == truths[:2]
        np.testing.assert_allclose(np.abs(kept["prediction"] - kept["truth"]), arrays["error"][:2], rtol=1e-5)
    # a process that only reads results, such as the report's, finds the task by the benchmark
    monkeypatch.setattr(tasks, "_others", {})
    with pytest.raises(CliptexError, match="'counting' of a result"):
        measure("counting")
    tasks.load_tasks(config)
    assert measure("counting").title == "Counting"
    module_of(page, "# counting.py", "other_counting", monkeypatch)
    with pytest.raises(CliptexError, match="'counting' is taken by another probe task"):
        probe_task("other_counting:Counting")


def test_a_task_that_does_not_exist_is_refused_by_name():
    with pytest.raises(
        CliptexError, match=r"probe task 'saliency': there are semantic_segmentation, detection, .*package"
    ):
        probe_task("saliency")
