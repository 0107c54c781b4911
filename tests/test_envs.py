"""Every role has an environment file and a lock, and they agree with pyproject.toml."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ROLES = sorted(path.stem for path in (ROOT / "envs").glob("*.yaml"))
WITHOUT_THE_PACKAGE = {"download": "img2dataset"}
"""Role whose environment has only what a rule runs in it: that requirement of the extra of the same name."""


def required(role: str) -> list[Requirement]:
    """What pyproject.toml asks of a role, its extras' extras included, on Linux and the oldest Python."""
    if role in WITHOUT_THE_PACKAGE:
        return [one for text in EXTRAS[role] if (one := Requirement(text)).name == WITHOUT_THE_PACKAGE[role]]
    texts = PROJECT["dependencies"] + ([] if role == "cliptex" else EXTRAS[role.replace("_", "-")])
    found = []
    while texts:
        one, *texts = map(str, texts)
        requirement = Requirement(one)
        if requirement.name == PROJECT["name"]:
            texts += [text for extra in requirement.extras for text in EXTRAS[extra]]
        elif requirement.marker is None or requirement.marker.evaluate({"python_version": "3.11"}):
            found.append(requirement)
    return found


def locked(role: str) -> dict[str, str]:
    """Name -> version. Every one has a digest."""
    text = (ROOT / "envs" / f"{role}.lock.txt").read_text()
    entries = re.findall(r"^([\w.\[\],-]+)==(\S+)[^\n]*\\\n((?:    --hash=sha256:[0-9a-f]{64}[ \\]*\n)+)", text, re.M)
    assert len(entries) == len(re.findall(r"^[\w.\[\],-]+ ?(?:==|@)", text, re.M))
    return {canonicalize_name(name.partition("[")[0]): version for name, version, _ in entries}


def test_roles_are_the_extras_and_those_of_the_rules():
    rules = "".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    used = set(re.findall(r"envs/(\w+)\.yaml", rules))
    assert used <= set(ROLES)
    # a tracker and decoders beside the package, not roles
    assert {name.replace("-", "_") for name in EXTRAS} - {"wandb", "formats"} | {"cliptex"} == set(ROLES)
    assert {path.name.partition(".")[0] for path in (ROOT / "envs").glob("*.lock.txt")} == set(ROLES)


@pytest.mark.parametrize("role", ROLES)
def test_the_lock_holds_what_pyproject_asks_for(role):
    versions, wanted = locked(role), required(role)
    assert wanted
    wrong = {}
    for one in wanted:
        version = versions.get(canonicalize_name(one.name))
        if version is None or not one.specifier.contains(version, prereleases=True):
            wrong[str(one)] = version
    assert wrong == {}, f"run: envs/lock.sh {role}"


@pytest.mark.parametrize("role", ROLES)
def test_the_environment_file_installs_the_role(role):
    parts = yaml.safe_load((ROOT / "envs" / f"{role}.yaml").read_text())["dependencies"]
    (python,) = (part for part in parts if isinstance(part, str) and part.startswith("python"))
    assert Requirement(python.replace("python =3", "python ==3")).specifier.contains(
        "3.12" if role in WITHOUT_THE_PACKAGE else PROJECT["requires-python"].lstrip(">=")
    )
    (given,) = (one for part in parts if isinstance(part, dict) for one in part["pip"])
    if role in WITHOUT_THE_PACKAGE:
        assert [Requirement(given)] == required(role)
    else:
        assert re.fullmatch(r"\.\.(/\.\.)?(\[([\w-]+)\])?", given)[3] == (
            None if role == "cliptex" else role.replace("_", "-")
        )
