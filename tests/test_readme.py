import re
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
