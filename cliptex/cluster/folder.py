"""Folders from which the workflow of the installed package runs, without a clone, as a Snakemake module.

A folder has the same paths as a clone: `config/`, `profiles/default/`, `workflow/profiles/`. Imports nothing heavy.
"""

import io
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import cliptex
from cliptex.core import paths
from cliptex.core.errors import CliptexError
from cliptex.core.files import replacing

DEFAULT = "miniature"
COPIED = ("config", "profiles", "workflow/profiles")
"""What a folder gets of its own, to be edited."""
SNAKEFILE = """\
# The workflow of cliptex {version} as a Snakemake module: `cliptex run` runs it, and so does `snakemake --cores all`.
# Rules can be changed here, and added (https://snakemake.readthedocs.io/en/stable/snakefiles/modularization.html).
from cliptex.cluster.folder import snakefile


{config_files}


module cliptex:
    snakefile:
        snakefile("{version}")
    config:
        config


use rule * from cliptex
"""
CONFIGFILE = 'configfile: f"{{workflow.basedir}}/config/{}.yaml"'
README = """\
# A run of CLIPTeX

Made by `cliptex init --config {config}`, version {version}. In this folder:

| path | content |
|---|---|
| `Snakefile` | the workflow of the installed package, and the configuration files that it reads: {config_files} |
| `config/` | the configurations. `config.yaml` has the default values, the other files override parts of it |
| `profiles/default/` | Snakemake's options for every run here |
| `workflow/profiles/` | those for a machine with GPUs (`workstation`) and for a SLURM cluster (`slurm`, `slurm-gres`) |
| `results/report.html` | the report, when the run has finished |

```bash
cliptex plan --no-measure   # jobs, downloads, disk
cliptex run --dry-run       # the jobs
cliptex run                 # all of them, on all cores; repeat it to resume
```

`cliptex run` passes everything else on to Snakemake:

```bash
cliptex run --cores 4 results/probes/voc.json
cliptex run --configfile config/studies/seeds.yaml
cliptex run --workflow-profile workflow/profiles/slurm   # set account and partition in the file first
```

`cliptex config-reference` describes all configuration keys. The folder is for cliptex {version}, and another version is
an error; to change to it, write its number into `Snakefile`.
"""


def choices() -> list[str]:
    """Names of the configurations that come with the package, the default first."""
    return [DEFAULT, *(path.stem for path in sorted(paths.SHIPPED.glob("config/*.yaml")) if path.stem != "config")]


def create(folder: Path, config: str = DEFAULT) -> None:
    """Write a folder for a run of `config`, one of `choices()`. The Snakefile is written last.

    Raises CliptexError if there is no such configuration, or if the folder exists and is not empty.
    """
    if config not in choices():
        from cliptex.config.explain import not_one_of

        raise CliptexError(f"--config: {not_one_of(config, choices())}")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        problem = "not empty" if folder.is_dir() else "a file"
        raise CliptexError(f"{folder}: {problem}; give a new or an empty folder")
    for part in COPIED:
        for source in sorted((paths.SHIPPED / part).rglob("*.yaml")):
            with replacing(folder / source.relative_to(paths.SHIPPED)) as scratch:
                shutil.copyfile(source, scratch)
    names = ["config", *([config] if config != DEFAULT else [])]
    readme = README.format(
        version=cliptex.__version__, config=config, config_files=", ".join(f"`config/{name}.yaml`" for name in names)
    )
    directives = "\n".join(map(CONFIGFILE.format, names))
    text = SNAKEFILE.format(version=cliptex.__version__, config_files=directives)
    for name, content in (("README.md", readme), ("Snakefile", text)):
        with replacing(folder / name) as scratch:
            scratch.write_text(content, encoding="utf-8")


def snakefile(version: str) -> str:
    """The package's Snakefile, for one that uses it as a module and was made for `version` of the package.

    Raises WorkflowError, which Snakemake shows as one message, if another version is installed.
    """
    if version != cliptex.__version__:
        from snakemake.exceptions import WorkflowError

        raise WorkflowError(
            f"this folder is for cliptex {version}, but {cliptex.__version__} is installed; run: pip install"
            f" cliptex=={version}   or, to continue with {cliptex.__version__}, write that version into the Snakefile"
        )
    return str(paths.SHIPPED / "Snakefile")


def run(arguments: Sequence[str]) -> None:
    """Replace this process with Snakemake in the working directory, with all cores unless options or profile set them.

    Raises CliptexError if there is no Snakefile.
    """
    cores = _default_cores(arguments)
    bin_dir = Path(sys.executable).parent
    if (bin_dir / "cliptex").is_file():  # jobs run this installation, whether or not its environment is active
        os.environ["PATH"] = os.pathsep.join([str(bin_dir), *os.get_exec_path()])
    os.execv(sys.executable, [sys.executable, "-m", "snakemake", *cores, *arguments])


def _default_cores(arguments: Sequence[str]) -> list[str]:
    from snakemake.cli import parse_args, resolve_snakefile

    silent = io.StringIO()
    try:
        with redirect_stdout(silent), redirect_stderr(silent):
            _, options = parse_args(list(arguments))
    except SystemExit:  # --help, --version, or a mistake, which Snakemake itself shows
        return []
    if resolve_snakefile(options.snakefile, allow_missing=True) is None:
        raise CliptexError(
            f"{Path.cwd()}: has no Snakefile; run: cliptex init FOLDER   and then: cliptex --directory FOLDER run"
        )
    is_set = options.cores is not None or options.jobs is not None or options.executor not in (None, "local")
    return [] if is_set else ["--cores", "all"]
