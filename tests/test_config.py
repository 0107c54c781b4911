import json
from pathlib import Path

import pytest
import yaml
from small_run import merged

from cliptex.cluster.plan import make_plan, shown
from cliptex.config import Config
from cliptex.config.reference import reference
from cliptex.core.errors import CliptexError
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{train: {batchsize: 3}}", "train.batchsize: unknown key"),
        ("{train: {batch_size: many}}", "train.batch_size: .*valid integer.*'many'"),
        ("{train: {batch_size: 0}}", "train.batch_size: .*greater than 0"),
        ("{train: {crop_scale: [1, 0.5]}}", r"train.crop_scale: The smaller value must come first, got \[1, 0.5\]"),
        ("{models: {clip: {init: clip}}}", "models.clip.init: .*cycle"),
        (
            "{models: {a: {tasks: {dept: 1}}}, label_stores: {depth: {task: depth, expert: dpt}}}",
            "'dept' is not one of",
        ),
        ("{models: {clip: {}}, zeroshot: {published: {clipp: {imagenet: 70}}}}", "'clipp' is not one of"),
        (
            "{zeroshot: {benchmarks: [imagenet], published: {clip: {imagnet: 70}}}}",
            "zeroshot.published.clip: 'imagnet' is not one",
        ),
        ("{experts: {dpt: {}}, label_stores: {depth: {task: depth, expert: dtp}}}", "'dtp' is not one of"),
        ("{seeds: []}", "seeds: "),
        ("{models: {Big: {}}}", r"models.Big"),
        ("{seeds: [0", r"not valid YAML \(line 1, column 11: expected ',' or '\]'"),
    ],
)
def test_a_mistake_is_one_readable_error_that_names_the_key(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(CliptexError, match=message) as caught:
        Config.load(path)
    assert "mine.yaml" in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CliptexError, match=r"nothing\.yaml: cannot be read .*--config FILE"):
        Config.load(tmp_path / "nothing.yaml")


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
    assert config.zeroshot.published.keys() == {"clip"} and config.models["clip"].steps == 0
    assert config.student.pretrained in list_pretrained_tags_by_model(config.student.architecture)
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
    }
    found = missing_data(Config.load(given))
    assert [line.partition(":")[0] for line in found] == ["list.tsv", "imagenet"]
    (tmp_path / "list.tsv").touch()
    assert [line.partition(":")[0] for line in missing_data(Config.load(given))] == ["imagenet"]
    assert missing_data(Config.load({**given, "dataset": {}})) == []


def test_a_subset_is_what_it_was_cut_from():
    config = Config.load(ROOT / "config/config.yaml")
    text = config.subset("train", "models.clip")
    again = Config.load(text)
    assert again.train == config.train
    assert again.models == {"clip": config.models["clip"]}
    assert again.subset("train", "models.clip") == text
    assert set(json.loads(text)) == {"train", "models"}


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
