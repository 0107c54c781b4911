"""No file of a model, tokenizer, expert, benchmark, data set or cache runs code, whatever its reader would allow."""

import builtins
import io
import json
import os
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from test_student import TINY
from tiny import DPT

import cliptex
from cliptex.benchmarks.nyuv2_normals import read_arrays
from cliptex.benchmarks.reading import npz_arrays, read_mat
from cliptex.config import Config, Student
from cliptex.core.errors import CliptexError
from cliptex.data.official.unpack import unpack
from cliptex.data.shard_index import read_shard_table, verify_shard
from cliptex.evaluation.per_image import read_per_image
from cliptex.evaluation.probes.feature_cache import StoredFeatures
from cliptex.evaluation.protocols.resolve import resolve
from cliptex.evaluation.results import read_result
from cliptex.evaluation.zeroshot import load_zero_shot_model
from cliptex.experts import dpt
from cliptex.experts.network import start_from
from cliptex.experts.tensors import read_tensors
from cliptex.labels.store import LabelFile
from cliptex.models import clip
from cliptex.models.encoders import load_encoder
from cliptex.models.heads import DenseHeads, load_heads, save_heads
from cliptex.training.checkpoints import Checkpoints

PICKLES = "zip", "old", "bare", "script"


class Plant:
    """Code that leaves a mark when it runs: as Python, and as an object that runs it when it is unpickled."""

    def __init__(self, folder: Path):
        self.mark = folder / "it-ran"
        self.python = f"import os\nos.path.exists({str(self.mark)!r}) or os.mknod({str(self.mark)!r})\n"

    def __reduce__(self):
        return exec, (self.python,)


@pytest.fixture
def plant(tmp_path, monkeypatch):
    """A plant; whoever is asked whether code shall run says yes, and what lies in the data folder can be imported."""
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.chdir(data)
    monkeypatch.syspath_prepend(data)
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    found = Plant(tmp_path)
    for name in ("evil.py", "sitecustomize.py", "usercustomize.py", "conftest.py", "evil.pth"):
        (data / name).write_text(found.python if name.endswith(".py") else f"import evil; {found.python!r}\n")
    before = list(sys.path)
    yield found
    assert sys.path == before
    assert not found.mark.exists()
    exec(found.python)
    assert found.mark.exists()  # the plant works


def write_pickle(path: Path, plant: Plant, form: str) -> None:
    if form == "script":

        class Module(torch.nn.Module):
            def forward(self, values):
                return values

        torch.jit.save(torch.jit.trace(Module(), torch.zeros(1)), path)
    elif form == "bare":
        path.write_bytes(pickle.dumps({"a": plant}))
    else:
        torch.save({"a": torch.zeros(2), "b": plant}, path, _use_new_zipfile_serialization=form == "zip")


def write_json(path: Path, value) -> None:
    path.write_text(json.dumps(value))


# ---- a model's folder

MODEL_READERS: dict[str, Callable[[Path], object]] = {
    "load": cliptex.load,
    "predict": lambda folder: load_heads(folder / "heads.safetensors"),
    "probe": load_encoder,
    "baseline": lambda folder: load_encoder("random", reference=folder),
    "zeroshot and retrieval": lambda folder: load_zero_shot_model("m", 0, folder),
    "training": lambda folder: clip.build(Student(pretrained=str(folder)), 0),
    "tokenizer": lambda folder: clip.tokenizer(Student(pretrained=str(folder))),
    "fetch-student": lambda folder: clip.fetch(Student(pretrained=str(folder)), folder / "student.json"),
    "export": clip.exported_config,
}
AUTO = {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoTokenizer": ["evil.T", "evil.T"]}


def with_text(folder: Path, **text) -> None:
    write_json(folder / clip.CONFIG_FILE, {"model_cfg": TINY | {"text_cfg": TINY["text_cfg"] | text}})


def with_tokenizer(folder: Path, name: str, content: dict, **options) -> None:
    with_text(folder, hf_tokenizer_name=str(folder), tokenizer_kwargs=options)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "T"})
    write_json(folder / name, content)


def with_text_tower(folder: Path, content: dict) -> None:
    (folder / "tower").mkdir()
    write_json(folder / "tower" / "config.json", content)
    (folder / "tower" / "evil.py").write_text((folder / "evil.py").read_text())
    with_text(folder, hf_model_name=str(folder / "tower"))


def with_heads_of(folder: Path, task: str) -> None:
    save_heads(DenseHeads(32, {"a": 1}, "none", 8), folder / "heads.safetensors", {"a": task}, {})


MODELS: dict[str, Callable[[Path], None]] = {
    "trust_remote_code": lambda folder: with_tokenizer(
        folder, "tokenizer_config.json", {"auto_map": AUTO}, trust_remote_code=True
    ),
    "auto_map of the tokenizer": lambda folder: with_tokenizer(folder, "tokenizer_config.json", {"auto_map": AUTO}),
    "auto_map of the configuration": lambda folder: with_tokenizer(
        folder, "config.json", {"model_type": "evil", "auto_map": AUTO}
    ),
    "another source of code": lambda folder: with_tokenizer(
        folder, "tokenizer_config.json", {"auto_map": AUTO}, code_revision="main", subfolder="x"
    ),
    "a vocabulary from elsewhere": lambda folder: with_text(folder, tokenizer_kwargs={"bpe_path": "/etc/passwd"}),
    "a text tower of its own code": lambda folder: with_text_tower(folder, {"model_type": "evil", "auto_map": AUTO}),
    "a known text tower with code": lambda folder: with_text_tower(folder, {"model_type": "roberta", "auto_map": AUTO}),
    "kernels": lambda folder: with_text_tower(folder, {"model_type": "roberta", "attn_implementation": "evil/kernels"}),
    "nested": lambda folder: with_text_tower(folder, {"model_type": "roberta", "text_config": [{"auto_map": AUTO}]}),
    "an image tower from the hub": lambda folder: write_json(
        folder / clip.CONFIG_FILE,
        {"model_cfg": TINY | {"vision_cfg": {"timm_model_name": "hf-hub:evil/model", "image_size": 32}}},
    ),
    "an image tower from a folder": lambda folder: write_json(
        folder / clip.CONFIG_FILE,
        {"model_cfg": TINY | {"vision_cfg": {"timm_model_name": f"local-dir:{folder}", "image_size": 32}}},
    ),
    "an unknown option": lambda folder: write_json(
        folder / clip.CONFIG_FILE, {"model_cfg": TINY | {"output_dict": True}}
    ),
    "a task by its module": lambda folder: with_heads_of(folder, "evil:Task"),
    "a task that is a function": lambda folder: with_heads_of(folder, "builtins:input"),
    "a task outside its folder": lambda folder: with_heads_of(folder, "..evil"),
}


@pytest.fixture
def folder(plant):
    student = Student(architecture=TINY)
    clip.export(clip.build(student, 0), student, Path.cwd())
    with_heads_of(Path.cwd(), "depth")
    return Path.cwd()


def refusals(folder: Path) -> list[str]:
    """The messages of all readers of a model's folder; any other error is a failure."""
    found = []
    for read in MODEL_READERS.values():
        try:
            read(folder)
        except CliptexError as error:
            assert "\n" not in str(error)
            assert "trust_remote_code=True" not in str(error)
            found.append(str(error))
    return found


def test_a_folder_without_code_is_read_by_all(folder):
    assert refusals(folder) == []
    write_json(folder / "config.json", {"auto_map": AUTO})  # of a repository that serves transformers, too
    assert refusals(folder) == []


@pytest.mark.parametrize("way", MODELS)
def test_nothing_in_a_models_folder_runs(folder, way):
    MODELS[way](folder)
    assert refusals(folder)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, form) for name in (clip.WEIGHTS_FILE, clip.HEADS_FILE) for form in PICKLES),
        *((name, "zip") for name in (*clip.OTHER_WEIGHTS, "a.pth")),
    ],
)
def test_no_weights_in_a_models_folder_run(folder, plant, name, form):
    if name != clip.HEADS_FILE:
        (folder / clip.WEIGHTS_FILE).unlink()
    write_pickle(folder / name, plant, form)
    for reader in ("load", "predict") if name == clip.HEADS_FILE else ("load", "training"):
        with pytest.raises(CliptexError, match="not executed here") as caught:
            MODEL_READERS[reader](folder)
        assert "weights_only" not in str(caught.value)  # PyTorch's advice is to disable it


# ---- other files


def object_array(path: Path, plant: Plant) -> None:
    with path.open("wb") as file:
        np.savez(file, **{"params/t": np.array([plant], object), "ids": np.array([plant], object)})


def extension_table(path: Path, plant: Plant) -> None:
    """As pyarrow before 14 stored types of Python, which it unpickled when it read them."""
    metadata = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(plant),
    }
    field = pa.field("key", pa.string(), metadata=metadata)
    schema = pa.schema([field], metadata={b"cliptex": b"{}", b"pandas": pickle.dumps(plant)})
    pq.write_table(pa.table([["a"]], schema=schema), path)


def tar_of_code(path: Path, plant: Plant) -> None:
    with tarfile.open(path, "w") as tar:
        for suffix in ("pyd", "pickle", "pkl", "pth", "pt", "npy", "npz", "json", "txt", "jpg", "py"):
            data = pickle.dumps(plant)
            member = tarfile.TarInfo(f"a.{suffix}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def archive_of_code(path: Path, plant: Plant) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("../evil.pth", "data/__init__.py", "data/sitecustomize.py"):
            archive.writestr(name, plant.python)


def yaml_of_code(path: Path, plant: Plant) -> None:
    path.write_text(f"train: !!python/object/apply:builtins.exec [{json.dumps(plant.python)}]\n")


def dpt_folder(path: Path, plant: Plant, form: str) -> None:
    path.mkdir()
    write_json(path / "config.json", DPT | ({"auto_map": AUTO} if form == "auto_map" else {}))
    write_json(path / "preprocessor_config.json", {"auto_map": AUTO} if form == "preprocessor" else {})
    if form in PICKLES:
        write_pickle(path / "pytorch_model.bin", plant, form)
    else:
        save_file({"a": torch.zeros(1)}, path / "model.safetensors")


def read_heads_file(path: Path) -> object:
    return start_from({"body": torch.nn.Linear(1, 1)}, path)


READERS: dict[str, tuple[Callable[[Path, Plant], None], Callable[[Path], object]]] = {
    "captions.per_image.npz": (object_array, read_per_image),
    "test.npz": (object_array, lambda path: npz_arrays(path, "copy it")),
    "weights.npz": (object_array, lambda path: clip.build(Student(architecture=TINY, pretrained=str(path)), 0)),
    "labels.parquet": (extension_table, LabelFile),
    "shard.parquet": (extension_table, read_shard_table),
    "shard.tar": (tar_of_code, verify_shard),
    "official.zip": (archive_of_code, lambda path: unpack(path, "zip", path.parent / "out")),
    "overlay.yaml": (yaml_of_code, lambda path: Config.from_files([path])),
    "own.yaml": (yaml_of_code, lambda path: resolve("voc", {"protocol": "own"}, [path.parent])),
    "result.json": (yaml_of_code, read_result),
    "all_normals.pklz": (lambda path, plant: path.write_bytes(pickle.dumps(plant)), read_arrays),
    "splits.mat": (lambda path, plant: path.write_bytes(pickle.dumps(plant)), lambda path: read_mat(path, "copy it")),
    **{
        f"{form}.dpt": (
            lambda path, plant, form=form: dpt_folder(path, plant, form),
            lambda path: dpt.PLUGIN({}).load(path),
        )
        for form in (*PICKLES, "auto_map", "preprocessor")
    },
    **{
        f"{form}.{suffix}": (lambda path, plant, form=form: write_pickle(path, plant, form), read)
        for form in PICKLES
        for suffix, read in (
            ("pth", read_tensors),
            ("bin", lambda path: clip.build(Student(architecture=TINY, pretrained=str(path)), 0)),
            ("safetensors", read_heads_file),
        )
    },
}


@pytest.mark.parametrize("name", READERS)
def test_nothing_in_other_files_runs(plant, name):
    write, read = READERS[name]
    path = Path.cwd() / name
    write(path, plant)
    with suppress(CliptexError, ValueError):  # what a file holds besides may be usable
        read(path)


@pytest.mark.parametrize("form", PICKLES)
def test_no_checkpoint_runs(plant, form):
    write_pickle(Path("step-00000001.pt"), plant, form)
    assert Checkpoints(Path(), {}).latest() is None


def test_no_cached_features_run(plant):
    folder = Path("features")
    folder.mkdir()
    (folder / "tokens.bin").write_bytes(pickle.dumps(plant))
    write_json(folder / "about.json", {"shape": [1, 1, 1], "precision": "fp32", "crc32": {}})
    with suppress(ValueError):
        StoredFeatures.opened(folder).read(np.array([0]))


def test_commands_do_not_import_what_lies_in_the_data(plant):
    """The installed command does not have the working directory, here full of modules, on its path."""
    import subprocess

    for name in ("torch.py", "yaml.py", "typer.py", "cliptex.py"):
        Path(name).write_text(plant.python)
    command = Path(sys.executable).with_name("cliptex")
    if not command.exists():
        pytest.skip("the command is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([command, "--help"], env=environment, check=True, capture_output=True)
