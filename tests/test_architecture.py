"""Where things are: folders import only from those above them; drawing and reference pages are up to date."""

import ast
import importlib.util
import re
import subprocess
import sys

import pytest
from small_run import ROOT

PACKAGE = ROOT / "cliptex"


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/figures/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


folders = script("folders")


def test_a_folder_imports_only_from_folders_above_it():
    found, errors = folders.edges()
    assert errors == []
    assert ("evaluation", "models") in found and len(found) > 30
    unknown = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {*folders.ORDER, "__pycache__"}
    assert unknown == set()


def test_an_import_from_below_is_found_wherever_it_stands(tmp_path):
    (tmp_path / "core").mkdir()
    (tmp_path / "core/files.py").write_text("def read():\n    from cliptex.report import page\n")
    _, errors = folders.edges(tmp_path)
    assert len(errors) == 1 and errors[0].endswith("core may not import from report (cliptex.report.page)")


def test_the_drawing_of_the_folders_is_up_to_date(tmp_path):
    command = [sys.executable, ROOT / "docs/figures/folders.py", tmp_path / "folders.svg"]
    subprocess.run(command, check=True)
    assert (tmp_path / "folders.svg").read_text() == (ROOT / "docs/images/folders.svg").read_text()


@pytest.mark.parametrize("folder", ["core", "config"])
def test_core_and_config_are_light(folder):
    for path in (PACKAGE / folder).rglob("*.py"):
        names = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""])
        }
        assert not names & {"torch", "torchvision", "pyarrow", "open_clip", "transformers", "mmseg"}, path
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (PACKAGE / folder).rglob("*.py")
    ]
    heavy = ("torch", "numpy", "scipy", "pyarrow", "PIL", "matplotlib", "snakemake")
    code = f"import sys, {', '.join(modules)}; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_folder_says_what_comes_in_what_goes_out_and_what_it_may_not_know():
    text = (ROOT / "docs/architecture.md").read_text()
    for name in folders.ORDER:
        assert re.search(rf"^\| `{name}/` \|", text, re.M), name


def test_every_path_of_the_package_that_a_page_names_exists():
    for page in ("docs/architecture.md", "docs/where.md", "CONTRIBUTING.md"):
        for name in re.findall(r"`((?:cliptex|workflow|config|docs|tests)/[\w./]+)`", (ROOT / page).read_text()):
            assert (ROOT / name).exists(), f"{page}: {name}"


def test_no_module_is_long_but_for_those_whose_head_says_why():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if text.count("\n") > 360:
            assert re.search(r"\bone (catalogue|file)|runs? alone", text[:1500], re.I), path


def test_a_class_name_means_one_thing():
    """The same name twice is allowed where a script runs without the package."""
    homes: dict[str, list[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        if path.name == "img2dataset_job.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in homes.items() if len(found) > 1} == {}


def test_the_name_of_a_probe_task_stands_in_few_modules():
    readers = PACKAGE / "benchmarks"  # a benchmark's file lists its tasks
    others = [path for path in PACKAGE.rglob("*.py") if readers not in path.parents]
    named = [path for path in others if "semantic_segmentation" in path.read_text()]
    assert len(named) <= 1, named


def test_the_reference_of_results_files_is_up_to_date(tmp_path):
    """In a process of its own, since other tests add probe tasks."""
    command = [sys.executable, ROOT / "docs/figures/results_json.py", tmp_path / "page.md"]
    subprocess.run(command, check=True)
    assert (tmp_path / "page.md").read_text() == (ROOT / "docs/results-json.md").read_text()


def test_stages_without_a_network_start_without_torch():
    """Importing torch takes longer than most of them."""
    heavy = ("torch", "torchvision", "open_clip", "transformers", "timm")
    networks = {"train_backbone", "train", "interpolate", "predict", "fetch_student", "probe", "finetune", "zeroshot"}
    networks |= {"retrieval", "training_free", "few_shot", "export", "export_benchmark", "check"}
    modules = set()
    for name in ("data", "labels", "models", "evaluation", "project", "stores"):
        for command in ast.parse((PACKAGE / f"cli/{name}.py").read_text()).body:
            if isinstance(command, ast.FunctionDef) and command.name not in networks:
                modules |= {node.module for node in ast.walk(command) if isinstance(node, ast.ImportFrom)}
    assert {"cliptex.data.miniature.sets", "cliptex.labels.index", "cliptex.report"} < modules
    code = (
        f"import importlib, sys\nfor module in {sorted(modules)}:\n    importlib.import_module(module)\n"
        f"    assert not (found := [name for name in {heavy} if name in sys.modules]), (module, found)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
