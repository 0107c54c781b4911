import json
import re
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_run import merged
from snakemake.cli import parse_config
from snakemake.common.configfile import load_configfile
from snakemake.settings.types import ConfigSettings
from snakemake.utils import update_config

from cliptex.cli.common import load_config
from cliptex.cluster.plan import make_plan
from cliptex.cluster.plan_text import shown
from cliptex.config import Config, Train
from cliptex.config.checks import MODULE_NAMES
from cliptex.config.files import Layers, read
from cliptex.config.reference import reference
from cliptex.core.errors import CliptexError, ConfigError
from cliptex.core.plugins import find
from cliptex.data.official.status import missing_data
from cliptex.data.shard_paths import shard_paths
from cliptex.evaluation.protocols.resolve import protocol_of

ROOT = Path(__file__).parent.parent
SHIPPED = sorted(path for path in (ROOT / "config").rglob("*.yaml") if path.parent.name != "protocols")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_shipped_configurations_are_valid(path):
    base = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    Config.load(merged(base, yaml.safe_load(path.read_text())))


@pytest.fixture(autouse=True)
def _in_the_clone(monkeypatch):
    """Where the default configuration is."""
    monkeypatch.chdir(ROOT)


WRONG = re.findall(r"(.+?)\n=> ([^\n]+)\n", (Path(__file__).parent / "wrong_configurations.txt").read_text(), re.S)
WRONG = [(text.strip("\n"), line) for text, line in WRONG]
"""Configurations as users write them, and the line about each, after the name of the file."""


@pytest.mark.parametrize(("text", "line"), WRONG, ids=[text for text, _ in WRONG])
def test_a_mistake_is_one_line_with_file_line_key_and_value(tmp_path, monkeypatch, text, line):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        Config.from_files(["mine.yaml"], default=ROOT / "config/config.yaml")
    assert str(caught.value) == f"mine.yaml:{line}"


def test_several_mistakes_are_a_line_each(tmp_path):
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    files[0].write_text("train:\n  batchsize: 3\n  warmup: 2\n")
    files[1].write_text("seeds: [0, 0]\ntrain: {beta2: 2}\n")
    with pytest.raises(ConfigError) as caught:
        Config.from_files(files)
    lines = [line.removeprefix(f"{tmp_path}/") for line in str(caught.value).splitlines()]
    places = [" ".join(line.split(": ")[:2]) for line in lines]
    assert sorted(places) == [
        "a.yaml:2 train.batchsize",
        "a.yaml:3 train.warmup",
        "b.yaml:1 seeds",
        "b.yaml:2 train.beta2",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "mine.yaml: empty; write sections"),
        (b"# nothing\n", "mine.yaml: empty; write sections"),
        (b"- train", "mine.yaml: not a configuration; it must be a mapping"),
        ("train: {}".encode("utf-16"), "mine.yaml: UTF-16 text; save the file as UTF-8"),
        (b"seeds: [1]\nreport: {title: caf\xe9}", "mine.yaml:2: not UTF-8 text"),
        (b"train: " + b"[" * 5000, "mine.yaml: not a configuration; nested too deeply"),
        (b"a: " + b"x" * 8_000_001, "mine.yaml: larger than 8 MB"),
        (
            b"a: &a {x: 1, y: 2}\n"
            + b"".join(b"%c: &%c {x: *%c, y: *%c}\n" % (c, c, c - 1, c - 1) for c in b"bcdefghijklmnopqrst"),
            "mine.yaml:1: not valid YAML: more than 100,000 values, with its aliases expanded",
        ),
    ],
)
def test_a_file_that_is_no_configuration_is_named_in_bounded_time(tmp_path, content, message):
    (tmp_path / "mine.yaml").write_bytes(content)
    start = time.process_time()
    with pytest.raises(ConfigError) as caught:
        Config.from_files([tmp_path / "mine.yaml"])
    assert str(caught.value).removeprefix(f"{tmp_path}/").startswith(message)
    assert time.process_time() - start < 20


def all_keys(section, path=()):
    """The paths of all keys of the schema; `clip` stands for the names of entries."""
    schema = Config.model_json_schema()
    section = schema["$defs"][section["$ref"].rpartition("/")[2]] if "$ref" in section else section
    children = dict(section.get("properties", {}))
    if isinstance(section.get("additionalProperties"), dict):
        children["clip"] = section["additionalProperties"]
    for name, child in children.items():
        yield (*path, name)
        yield from all_keys(child, (*path, name))
    for option in section.get("anyOf", []):
        yield from all_keys(option, path)


WORDS = ["", "x", "no", "random", "~/x", "$X/y", "a*b", "x" * 5000, "a\nb", "\x1b[31m"]
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(WORDS)),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from(WORDS), inner, max_size=2)),
    max_leaves=4,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(list(all_keys(Config.model_json_schema()))), value=JUNK)
def test_any_value_anywhere_is_accepted_or_refused_in_plain_words(path, value, tmp_path):
    for name in reversed(path):
        value = {name: value}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(value))
    try:
        Config.from_files([tmp_path / "mine.yaml"], default=ROOT / "config/config.yaml")
    except ConfigError as error:
        for line in error.lines:
            assert line.isprintable() and len(line) < 500
            assert not re.search("Input|Value error|valid |instance|should|pydantic|Dict|Tuple", line), line


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    with pytest.raises(CliptexError, match=r"nothing\.yaml: cannot be read .*--config FILE"):
        Config.load(tmp_path / "nothing.yaml")
    with pytest.raises(CliptexError, match=r"not a file; .*--config FILE"):
        Config.load(tmp_path)


def test_text_that_means_the_same_is_read_alike(tmp_path):
    """JSON with tabs, a byte order mark, numbers as YAML 1.1 does not read them, merge keys and anchors."""
    texts = [
        '{"train":\t{"weight_decay": 1e-3, "flip": 0.1},\n\t"seeds": [3]}',
        "\ufefftrain: {weight_decay: 1e-3, flip: .1}\nseeds: [+3]",
        "train: {<<: &a {weight_decay: 1.0e-3, flip: 0.5}, flip: 1e-1}\nseeds: [0x3]",
    ]
    found = []
    for text in texts:
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
        found.append(Config.from_files([tmp_path / "mine.yaml"]))
    assert found[0].train.weight_decay == 0.001 and found[0].seeds == [3]
    assert found[0] == found[1] == found[2]


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-9, 99), st.floats(0, 9), st.sampled_from(["clip", "x"]))
DEFAULT_VALUES = yaml.safe_load((ROOT / "config/config.yaml").read_text())


def keys_of(values, depth=0):
    names = st.sampled_from([*values, "other"]) if isinstance(values, dict) else st.sampled_from(["clip", "steps"])
    below = st.one_of(SCALARS, st.lists(SCALARS, max_size=2))
    if depth < 3:
        children = (
            {name: keys_of(value, depth + 1) for name, value in values.items()} if isinstance(values, dict) else {}
        )
        below = st.one_of(below, *children.values()) if children else below
    return st.dictionaries(names, below, max_size=3)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers=st.lists(keys_of(DEFAULT_VALUES), min_size=1, max_size=3))
def test_files_are_laid_over_the_default_as_snakemake_lays_them(layers, tmp_path):
    files = [tmp_path / f"{number}.yaml" for number in range(len(layers))]
    for file, layer in zip(files, layers, strict=True):
        file.write_text(yaml.safe_dump(layer))
    theirs = load_configfile(ROOT / "config/config.yaml")
    update_config(theirs, ConfigSettings(configfiles=files).overwrite_config)
    ours = Layers([read(file) for file in files], read(ROOT / "config/config.yaml"))
    assert ours.values == theirs


@pytest.mark.parametrize("names", [["test"], ["paper"], ["test", "studies/controls"], ["studies/heads"]])
def test_commands_see_the_configuration_that_snakemake_builds(monkeypatch, names):
    monkeypatch.chdir(ROOT)
    files = [Path(f"config/{name}.yaml") for name in names]
    theirs = load_configfile("config/config.yaml")
    update_config(theirs, ConfigSettings(configfiles=files).overwrite_config)
    assert load_config([str(file) for file in files]) == Config.load(theirs)


def test_values_of_the_command_line_come_last_and_are_read_as_yaml(tmp_path):
    """Snakemake makes text of all scalars in them."""
    (tmp_path / "mine.yaml").write_text("train: {batch_size: 32, flip: 0.1}")
    values = parse_config(["train={batch_size: 16, compile: true}", "seeds=[1, 2]", "models={cliptex: null}"])
    config = Config.from_files([tmp_path / "mine.yaml"], values)
    assert (config.train.batch_size, config.train.flip, config.train.compile) == (16, 0.1, True)
    assert config.seeds == [1, 2] and list(config.models) == ["clip", "clip_ft", "clip_ft_recipe"]
    texts = Config.from_files([], parse_config(['report={title: "2024"}', 'experts={dpt: {revision: "2024-01-01"}}']))
    assert (texts.report.title, texts.experts["dpt"].revision) == ("2024", "2024-01-01")
    with pytest.raises(ConfigError, match=r"^--config: train\.flip: must be a number, got false$"):
        Config.from_files([], parse_config(["train={flip: no}"]))
    with pytest.raises(ConfigError, match=r"^--config: train\.batch_size: unknown key; write train: {batch_size: "):
        Config.from_files([], {"train.batch_size": "32"})


def test_a_mapping_is_replaced_where_it_says_so(tmp_path):
    files = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    files[0].write_text("models: {cliptex: {tasks: {_replace: true, depth: 1.0}}}\nseeds: [4]")
    assert Config.from_files(files[:1]).models["cliptex"].tasks == {"depth": 1.0}
    files[1].write_text("models: {cliptex: {tasks: {normals: 2.0}}}")
    assert Config.from_files(files).models["cliptex"].tasks == {"depth": 1.0, "normals": 2.0}
    files[1].write_text("_replace: true\nmodels: {clip: {steps: 3}}")
    alone = Config.from_files(files)
    assert alone == Config.load({"seeds": [0], "models": {"clip": {"steps": 3}}})
    assert Config.from_files(files[:1], {"train": {"_replace": "true"}}).train == Train()


def test_tasks_without_label_stores_are_an_error_that_names_both(tmp_path):
    (tmp_path / "mine.yaml").write_text("label_stores: {_replace: true}")
    message = r"models\.cliptex\.tasks\.depth: label_stores is empty; add label_stores\.depth"
    with pytest.raises(ConfigError, match=message):
        Config.from_files([tmp_path / "mine.yaml"])


NAMED = {
    "experts": {"weights": "random"},
    "label_stores": {"task": "depth", "expert": "dpt"},
    "models": {"steps": 1},
    "models.cliptex.tasks": 1.0,
    "models.cliptex.losses": {},
    "miniature.benchmarks": {"train": 1, "val": 1},
    "benchmark_data.benchmarks": {},
    "dataset.sha256": "0" * 64,
    "probes.benchmarks": {},
    "finetune.benchmarks": {},
    "zeroshot.published": {},
    "zeroshot.published.clip": 50.0,
    "zeroshot.retrieval": {"rendered": 2},
    "clip_benchmark.datasets": "auto",
    "study.experts": {"weights": "random"},
    "study.label_stores": {"task": "depth", "expert": "dpt"},
    "study.models": {"steps": 1},
    "study.probes": ["linear"],
}
"""Every mapping of names, with a value of an entry."""


@pytest.mark.parametrize("where", NAMED)
def test_null_removes_an_entry_of_every_mapping_of_names(where):
    def with_entry(value):
        plain = {
            "study": {"name": "s", "title": "t", "question": "q", "limits": "l"},
            "models": {"clip": {}, "cliptex": {}},
        }
        section = plain
        for key in where.split("."):
            section = section.setdefault(key, {})
        section["extra"] = value
        config = Config.load(plain).plain()
        for key in where.split("."):
            config = config[key]
        return config

    kept = NAMED[where]
    if where not in ("models.cliptex.losses", "zeroshot.published"):  # whose entries name others
        assert "extra" in with_entry(kept)
    assert with_entry(None).get("extra") is None


def test_paths_may_have_variables_and_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    config = Config.load(
        {
            "dataset": {
                "shards": ["~/cc3m/{000..331}.tar", "${SCRATCH}/x.tar", "https://a.org/$b.tar", "pipe:cut -c$1 ~/x"]
            },
            "experts": {"dpt": {"weights": "local", "path": "$SCRATCH/dpt.pth"}},
            "student": {"pretrained": "~/clip"},
        }
    )
    local = ["/home/me/cc3m/{000..331}.tar", "/scratch/me/x.tar"]
    assert config.dataset.shards == [*local, "https://a.org/$b.tar", "pipe:cut -c$1 ~/x"]
    assert (config.experts["dpt"].path, config.student.pretrained) == ("/scratch/me/dpt.pth", "/home/me/clip")


def test_no_label_store_can_have_the_name_of_an_attribute_of_a_module():
    from torch import nn

    def of_torch(name: str) -> bool:  # transformers adds a method to every module when it first makes a model
        return getattr(getattr(nn.ModuleDict, name, None), "__module__", "torch").split(".")[0] in ("torch", "builtins")

    names = [name for name in dir(nn.ModuleDict()) if re.fullmatch("[a-z][a-z0-9_]*", name) and of_torch(name)]
    assert {"register_forward_hook", "training", "keys"} <= {*names}
    assert [name for name in names if not MODULE_NAMES.fullmatch(name)] == []


@pytest.mark.parametrize(("source", "key"), [("webdataset", "dataset.shards"), ("urls", "dataset.urls")])
def test_a_source_needs_its_data_where_shards_are_asked_for_and_nowhere_else(source, key):
    config = Config.load({"dataset": {"source": source}})  # as a job that trains or probes gets it
    with pytest.raises(CliptexError, match=f"{key}: source '{source}' needs"):
        shard_paths(config)


def test_the_study_at_full_size_names_what_there_is(tmp_path, monkeypatch):
    """Options of experts and probes, the student's pretrained tag; and `cliptex plan` accepts it."""
    from open_clip import list_pretrained_tags_by_model

    paper = ROOT / "config/paper.yaml"
    base = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    config = Config.load(merged(base, yaml.safe_load(paper.read_text())))
    for benchmark, values in config.probes.benchmarks.items():
        assert protocol_of(benchmark, values).protocol == "paper"
    for store in config.label_stores.values():
        settings = config.experts[store.expert]
        assert find("experts", settings.plugin)(settings.model_dump(mode="json")).task == store.task
    assert config.zeroshot.published.keys() == set(config.report.yardstick) == {"clip", "clip_datacomp"}
    assert not any(config.models[name].is_trained for name in config.report.yardstick)
    tags = list_pretrained_tags_by_model(config.student.architecture)
    assert {config.student_of(name).pretrained for name in config.report.yardstick} <= {*tags}
    monkeypatch.chdir(tmp_path)  # a finished run in the repository would be what is planned
    plan = make_plan(Config.load(paper), measure=False)
    assert (plan["images"]["shards"], plan["images"]["number"]) == (332, 3_318_333)
    assert {name: store["jobs"] for name, store in plan["stores"].items()} == dict.fromkeys(config.label_stores, 14)
    text = shown(plan)
    assert "? images per second (not measured)" in text
    assert "voc  VOCtrainval_11-May-2012.tar, benchmark.tgz to download (3.42 GB)" in text
    assert "ILSVRC2012_devkit_t12.tar.gz to download manually (155 GB)" in text
    assert "total  55.4 GB of benchmarks to download" in text


def test_data_that_are_not_there_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {
        "dataset": {"source": "urls", "urls": {"files": ["list.tsv"], "rows": 3}},
        "probes": {"benchmarks": {"voc": {}, "imagenet": {}}},
        "models": {"clip": {"steps": 1}},
    }
    found = missing_data(Config.load(given))
    assert [line.partition(":")[0] for line in found] == ["list.tsv", "imagenet"]
    (tmp_path / "list.tsv").touch()
    assert [line.partition(":")[0] for line in missing_data(Config.load(given))] == ["imagenet"]
    assert missing_data(Config.load({**given, "dataset": {}})) == []
    tars = {"dataset": {"source": "webdataset", "shards": ["{0..2}.tar"]}}
    (tmp_path / "1.tar").touch()
    text = "0.tar and 1 more: does not exist; correct dataset.shards, or put it in place"
    assert text in missing_data(Config.load(given | tars))
    # no pairs are needed
    (tmp_path / "list.tsv").unlink()
    for dataset in (given, tars):
        assert missing_data(Config.load({**dataset, "models": {"clip": {}}, "probes": {}})) == []


def test_an_emoji_reaches_a_job(tmp_path):
    (tmp_path / "mine.yaml").write_text("report: {title: 😀 é}", encoding="utf-8")
    config = Config.from_files([tmp_path / "mine.yaml"])
    assert Config.load(config.subset("report")).report.title == "😀 é"
    with pytest.raises(ConfigError, match=r"^configuration:1: report\.title: half a character"):
        Config.load(r'{"report": {"title": "\ud83d"}}')


def test_the_default_decoder_is_not_recorded():
    config = Config.load({"train": {"decoder": "torchvision"}})
    assert json.loads(config.subset("train.decoder"))["train"] == {"decoder": "torchvision"}
    assert Config.load(config.subset("train")).train.decoder == "torchvision"
    assert "decoder" not in Config().subset("train", "train.decoder") + Config.load(
        {"train": {"decoder": "pillow"}}
    ).subset("train")


def test_a_subset_is_what_it_was_cut_from():
    config = Config.load(ROOT / "config/config.yaml")
    text = config.subset("train", "models.clip")
    again = Config.load(text)
    assert again.train == config.train
    assert again.models == {"clip": config.models["clip"]}
    assert again.subset("train", "models.clip") == text
    assert set(json.loads(text)) == {"train", "models"}


@pytest.mark.parametrize("key", ["train.decodre", "trian.decoder", "seeed", "models.clipp", "models.clip.stpes"])
def test_a_mistyped_key_of_a_subset_is_an_error(key):
    config = Config.load({"models": {"clip": {}}, "train": {"decoder": "torchvision"}})
    for each in (config, Config.load({"models": {"clip": {}}})):
        with pytest.raises(KeyError, match=key.split(".")[0]):
            each.subset("train.decoder", "zeroshot.precision", "models.clip.epochs", key)


def test_every_key_has_a_sentence():
    schema = Config.model_json_schema()
    silent = [
        f"{name}.{key}"
        for name, section in schema["$defs"].items()
        for key, value in section["properties"].items()
        if not value.get("description") and name != "Split"
    ]
    assert silent == []


def test_the_kept_schema_is_in_date():
    kept = json.loads((ROOT / "workflow/schemas/config.schema.json").read_text())
    assert kept == Config.model_json_schema(), "run: cliptex config-schema > workflow/schemas/config.schema.json"


def test_the_kept_reference_is_in_date():
    kept = (ROOT / "config/README.md").read_text()
    assert kept == reference(), "run: cliptex config-reference > config/README.md"
