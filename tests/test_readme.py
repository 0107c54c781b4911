import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_files_that_the_readme_names_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    configs = re.findall(r"config/[\w/]+\.yaml", README)
    missing = [name for name in {*links, *configs} if not (ROOT / name).exists()]
    assert missing == []


def test_ci_runs_the_test_command_of_the_readme():
    blocks = re.findall(r"```bash\n(.*?)```", README, re.S)
    assert sum("pytest" in block for block in blocks) == 1
    assert "README.md" in (ROOT / ".ci/run").read_text()


def test_the_tools_of_the_test_extra_are_those_of_pre_commit():
    text = (ROOT / "pyproject.toml").read_text()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    pinned = {repo["repo"].split("/")[-1]: repo.get("rev", "").lstrip("v") for repo in hooks}
    assert f"ruff=={pinned['ruff-pre-commit']}" in text
    assert f"snakefmt=={pinned['snakefmt']}" in text


def test_the_citation_is_of_this_version_and_licence():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert citation["cff-version"] == "1.2.0" and citation["message"] and citation["title"] and citation["authors"]


def test_the_entry_of_the_workflow_catalog_says_what_the_rules_can():
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    assert set(usage) == {"mandatory-flags", "software-stack-deployment", "report"}
    assert set(usage["mandatory-flags"]) == {"desc", "flags"}
    deployed = usage["software-stack-deployment"]
    assert deployed == {"conda": "conda:" in rules, "apptainer": "container:" in rules, "apptainer+conda": False}
    assert usage["report"] == bool(re.search(r"\breport\(", rules))
