"""Damaged files, each reader for `CLIPTEX_FUZZ_SECONDS` (120): nothing but a `CliptexError` of one line, or a result.

A process for each reader, with limits on memory and on the time of each input, so that a crash of a library or a bomb
is found as well. Every reader of an external file is in `readers.py`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from readers import READERS

pytestmark = pytest.mark.fuzz
SECONDS = float(os.environ.get("CLIPTEX_FUZZ_SECONDS", 120))
SEED = int(os.environ.get("CLIPTEX_FUZZ_SEED", 0))


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused_in_one_line(name, tmp_path):
    command = [sys.executable, Path(__file__).with_name("run.py"), name, "--seconds", SECONDS, "--seed", SEED]
    command = list(map(str, [*command, "--folder", tmp_path]))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 300, env=environment)
    number = (tmp_path / "number").read_text() if (tmp_path / "number").exists() else "none"
    again = f"{' '.join(command[:2])} {name} --seed {SEED} --folder FOLDER --first NUMBER --count 1"
    assert done.returncode == 0, f"ended with {done.returncode} at input {number}; {again}\n{done.stderr[-3000:]}"
    result = json.loads(done.stdout.splitlines()[-1])
    shown = "\n".join(
        f"input {at} ({file}, kept as {kept}): {text}" for text, (at, file, kept) in result["faults"].items()
    )
    assert not shown, f"repeat with: {again}\n{shown}"
    assert result["inputs"] > 0
