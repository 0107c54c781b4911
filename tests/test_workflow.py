"""The whole pipeline on config/test.yaml, as a user runs it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from forked_jobs import forked
from PIL import Image
from small_run import BIN, ROOT, environment, snakemake

pytestmark = pytest.mark.xdist_group("workflow")


def jobs(result) -> dict[str, int]:
    """Rule -> number of jobs, from the job table that Snakemake prints."""
    table = re.search(r"Job stats:\njob +count\n[- ]+\n(.*?)\ntotal", result.stderr + result.stdout, re.S)
    return {line.split()[0]: int(line.split()[1]) for line in table[1].splitlines()} if table else {}


def nothing_to_do(result) -> bool:
    return "Nothing to be done" in result.stderr + result.stdout


def test_everything_promised_is_there(finished):
    page = (finished / "results/report.html").read_text()
    assert "miniature" in page.lower()
    assert "0.5 × CLIPTeX + 0.5 × CLIP" in page
    for benchmark in ("voc", "ade20k", "coco", "nyuv2", "imagenet", "places365"):
        table = json.loads((finished / f"results/probes/{benchmark}.json").read_text())
        assert table["source"] == "miniature"
        models = {"random", "position", "clip", "clip_ft", "cliptex", "wise"}  # the last is interpolated
        assert {row["model"] for row in table["results"]} == models
    assert {row["head"] for row in json.loads((finished / "results/probes/voc.json").read_text())["results"]} == {
        "linear",
        "deeplabv3",
        "pspnet",
        "in_context",
    }
    for benchmark in ("imagenet", "places365"):
        table = json.loads((finished / f"results/zeroshot/{benchmark}.json").read_text())
        assert {row["model"] for row in table["results"]} == {"random", "clip", "clip_ft", "cliptex", "wise"}
    for store in ("segmentation", "depth", "normals"):
        assert json.loads((finished / f"results/labels/{store}/index.json").read_text())["coverage"]
    assert (finished / "results/models/cliptex/seed0/open_clip_model.safetensors").exists()


def test_snakemakes_own_report_has_captions_and_categories(finished):
    out = finished / "report.html"
    result = snakemake(finished, "all", "--report", out)
    assert result.returncode == 0, result.stderr[-4000:]
    text = out.read_text()
    assert out.stat().st_size < 20_000_000
    for category in ("Report", "Results", "Tables and charts", "Pseudo-labels", "Training"):
        assert f'"{category}"' in text, category
    for caption in ("The whole report on one page", "heads trained on frozen features", "rendered stand-in data"):
        assert caption in text, caption
    out.unlink()


def test_the_readmes_picture_is_drawn_from_a_finished_run(finished, tmp_path):
    out = tmp_path / "result.png"
    command = [sys.executable, ROOT / "docs/figures/result.py", finished / "results", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Image.open(out).size == (1200, 740)


def test_a_second_run_has_nothing_to_do(finished):
    """Also when a key is given once more on the command line, where it replaces that key alone."""
    result = snakemake(finished, "all", "--config", "train={checkpoint_every: 2}")
    assert nothing_to_do(result), result.stdout + result.stderr


def test_what_is_lost_is_made_again_and_nothing_else(finished):
    """A label file, which is named, on more cores than the machine has; then a shard by the remedy the error names."""
    lost = finished / "results/labels/depth/00001.parquet"
    kept = finished / "results/labels/depth/00000.parquet"
    before, stamp = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    # looking at the plan first must not make the loss forgotten
    assert jobs(snakemake(finished, "--dry-run", "all")) == {"label": 1, "index_labels": 1, "all": 1}
    result = snakemake(finished, "all", cores=512)
    said = result.stdout + result.stderr
    assert result.returncode == 0, said[-4000:]
    assert "results/labels/depth/00001.parquet: missing" in said
    assert int(re.search(r"Provided cores: (\d+)", said)[1]) == len(os.sched_getaffinity(0))
    assert lost.read_bytes() == before
    assert kept.stat().st_mtime_ns == stamp
    assert nothing_to_do(snakemake(finished, "all"))

    lost, index = finished / "results/shards/00002.tar", finished / "results/shards/index.json"
    before = lost.read_bytes()
    lost.unlink()
    index.unlink()
    result = snakemake(finished, "results/shards/index.json")
    assert result.returncode == 0, result.stderr[-4000:]
    assert lost.read_bytes() == before
    assert nothing_to_do(snakemake(finished, "all"))


def test_a_killed_run_goes_on_to_the_same_bytes(finished, tmp_path):
    """SIGKILL of Snakemake and all its jobs, in rendering, expert training and labelling."""
    target = "results/labels/depth/index.json"
    command = [BIN / "snakemake", "--cores", "2", "--directory", tmp_path, "--snakefile", ROOT / "Snakefile"]
    command = [*map(str, command), "--configfile", str(ROOT / "config/test.yaml"), "--", target]
    moments = ["results/shards/00001.tar", "resources/expert_renders/train.h5", "results/labels/depth/00000.parquet"]
    locks = tmp_path / ".snakemake/locks"
    for number, moment in enumerate(moments):
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), process_group=0, stderr=subprocess.DEVNULL)
        while not (tmp_path / moment).exists() and process.poll() is None:
            time.sleep(0.02)
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if number == 0:
            assert snakemake(tmp_path, "--unlock").returncode == 0
            assert not list(locks.glob("*"))
        for lock in locks.glob("*"):  # as --unlock does, which costs seconds
            lock.unlink()
    ended = snakemake(tmp_path, target)
    assert ended.returncode == 0, ended.stderr[-4000:]
    for path in sorted((finished / "results/labels/depth").glob("*.parquet")):
        assert (tmp_path / "results/labels/depth" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / target).read_bytes() == (finished / target).read_bytes()


def test_a_truncated_shard_stops_the_index_with_its_name(finished, tmp_path):
    shutil.copytree(finished / "results/shards", tmp_path / "results/shards")
    shard = tmp_path / "results/shards/00001.tar"
    shard.write_bytes(shard.read_bytes()[:30000])
    (tmp_path / "results/shards/index.json").unlink()
    result = snakemake(tmp_path, "results/shards/index.json", "--rerun-triggers", "mtime")
    assert result.returncode != 0
    assert "error: results/shards/00001.tar: shard is truncated" in result.stderr


def test_one_table_needs_only_its_own_benchmark(tmp_path):
    wanted = jobs(snakemake(tmp_path, "--dry-run", "results/probes/ade20k.json"))
    assert wanted["render_benchmark"] == 1
    assert wanted["probe_ade20k_0"] == 1
    assert wanted["train"] == 3
    assert not any(name.startswith("probe_") and name != "probe_ade20k_0" for name in wanted)
    assert "report" not in wanted


def test_a_store_from_a_published_set_needs_no_expert(tmp_path):
    over = "label_stores={depth: {expert: null, from: 'hf://me/depth@v1'}}"
    planned = jobs(snakemake(tmp_path, "--dry-run", "results/labels/depth/index.json", "fetch", "--config", over))
    assert planned["fetch_labels"] == 1 and planned["label"] > 0 and "train_expert" not in planned
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/labels.json").touch()
    planned = jobs(snakemake(tmp_path, "--dry-run", "fetch", "--config", over.replace("hf://me/depth@v1", "mine")))
    assert planned["fetch_labels"] == 1


def test_mistakes_in_the_configuration_are_one_error_that_names_their_keys(tmp_path):
    mistakes = {
        "train={batchsize: 3}": "train.batchsize: unknown key",
        "seeds=[zero]": "seeds.0: must be a whole number, got 'zero'",
        "modells={}": "modells: unknown key",
    }
    result = snakemake(tmp_path, "--dry-run", "--config", *mistakes)
    said = result.stdout + result.stderr
    assert result.returncode != 0
    assert [message for message in mistakes.values() if message not in said] == []
    assert "Traceback" not in said


def test_a_change_reaches_the_jobs_that_use_it_and_no_others(finished, tmp_path):
    over = ["--dry-run", "all", "--config"]
    # a protocol file: its sections on other tasks count for other benchmarks only
    text = (ROOT / "config/protocols/miniature.yaml").read_text()
    mine = tmp_path / "mine.yaml"
    mine.write_text(text.replace("mask_size_px: 96", "mask_size_px: 48").replace("iterations: 100", "iterations: 50"))
    changed = jobs(snakemake(finished, *over, f"probes={{benchmarks: {{voc: {{protocol: {mine}}}}}}}"))
    assert set(changed) == {"probe_voc_0", "tabulate_probes", "report", "all"} and changed["tabulate_probes"] == 1
    changed = jobs(snakemake(finished, *over, "experts={dpt: {batch_size: 3}}"))
    assert {"train_expert": 1, "label": 2}.items() <= changed.items()
    assert changed["train"] == 1


@pytest.mark.parametrize("study", sorted(path.stem for path in (ROOT / "config/studies").glob("*.yaml")))
def test_every_study_can_be_planned(tmp_path, study):
    config = ROOT / f"config/studies/{study}.yaml"
    plain = yaml.safe_load(config.read_text())
    own, seeds = plain.get("study"), len(plain.get("seeds", [0]))
    command = [forked("snakemake"), "--cores", "2", "--dry-run", "--printshellcmds", "--directory", tmp_path]
    command += ["--configfile", config, "--snakefile", ROOT / "Snakefile", "--", "study" if own else "all"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    if own is None:
        assert jobs(result)["train"] + jobs(result).get("interpolate", 0) > 3
        return
    trained = {"clip", own.get("reference", "clip_ft"), *own.get("shown", ["cliptex"]), *own.get("models", {})}
    assert jobs(result)["train"] == len(trained) * seeds
    assert jobs(result)["study_page"] == 1
    assert not {"report", "probe_voc_0", "tabulate_probes", "tabulate_finetuned"} & jobs(result).keys()
    inputs = re.findall(r"rule probe_study_\w+:\n    input: (.*)", result.stdout + result.stderr)
    assert bool(inputs) == bool(own.get("probes"))
    for listed in inputs:  # a job must wait for the models that it evaluates
        assert all(f"results/models/{model}/seed" in listed for model in own.get("models", {})), listed
    tuned = {name: count for name, count in jobs(result).items() if name.startswith("finetune_")}
    assert tuned == ({"finetune_voc": 2, "finetune_nyuv2": 2} if study == "finetune" else {})


def test_without_a_study_its_target_says_what_to_do(tmp_path):
    result = snakemake(tmp_path, "--dry-run", "study")
    assert result.returncode != 0
    assert "study: there is none; add a file of config/studies/" in result.stdout + result.stderr


def test_the_study_at_full_size_can_be_planned(tmp_path):
    """Without any of its data; the plan names what has to be put in place first."""
    command = [forked("snakemake"), "--cores", "2", "--dry-run", "--directory", tmp_path, "--configfile"]
    command += [ROOT / "config/paper.yaml", "--snakefile", ROOT / "Snakefile", "--", "all"]
    (tmp_path / "resources/cc3m").mkdir(parents=True)
    (tmp_path / "resources/cc3m/Train_GCC-training.tsv").touch()
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-3000:]
    planned = jobs(result)
    assert {
        "download_pairs": 14,
        "build_shards": 14,
        "fetch_expert": 3,
        "fetch_student": 1,
        "fetch_released": 1,
        "label": 42,
        "train": 6,
        "export_untrained": 6,
    }.items() <= planned.items()
    # of three seeds: five benchmarks with one job for all models, and COCO with one for each of seven
    assert sum(count for name, count in planned.items() if name.startswith("probe")) == 36
    assert planned["fetch_benchmark"] == 6
    assert not [name for name in planned if name.startswith("render")]
    said = result.stdout + result.stderr
    assert (
        "imagenet: download ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar, ILSVRC2012_devkit_t12.tar.gz manually"
        in said
    )
    # tens of submissions on a cluster, of which the local rules are none
    local = ("fetch_expert", "fetch_student", "fetch_released", "tabulate_probes", "all")
    assert sum(planned.values()) - sum(planned[name] for name in local) == 138
    # what comes from the internet has a target of its own
    fetched = jobs(subprocess.run(list(map(str, [*command[:-1], "fetch"])), capture_output=True, text=True, cwd=ROOT))
    assert fetched == {
        "download_pairs": 14,
        "build_shards": 14,
        "index_shards": 1,
        "fetch_expert": 3,
        "fetch_student": 1,
        "fetch_released": 1,
        "fetch_benchmark": 6,
        "fetch": 1,
    }
    # whether the pre-trained model is as published can be asked before anything is labelled or trained
    asked = [*command[:-2], "--config", "probes={models: [clip]}", "--", "results/zeroshot/imagenet.json"]
    asked = jobs(subprocess.run(list(map(str, asked)), capture_output=True, text=True, cwd=ROOT))
    alone = {"fetch_student": 1, "export_untrained": 3, "fetch_benchmark": 1, "zeroshot": 1}  # an export for each seed
    assert asked == alone


def test_what_is_set_for_probing_holds_for_every_group_of_models(tmp_path):
    command = [forked("snakemake"), "--cores", "2", "--dry-run", "--printshellcmds", "--directory", tmp_path]
    command += ["--snakefile", ROOT / "Snakefile", "--config", "probes={models_per_job: 3}", "--set-threads", "probe=2"]
    command += [
        "--set-resources",
        "probe:mem=7GB",
        "probe:gpu=0",
        "probe_voc_0:mem=9GB",
        "--",
        "results/probes/voc.json",
    ]
    said = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=ROOT).stdout
    found = re.findall(r"^rule (probe_voc_\d):\n.*?threads: (\d)\n.*? gpu=(\d).*? mem=(\d GB)", said, re.M | re.S)
    assert sorted(found) == [("probe_voc_0", "2", "0", "9 GB"), ("probe_voc_1", "2", "0", "7 GB")]


def test_existing_tars_may_be_named_with_braces(tmp_path):
    """Which Snakemake would take for wildcards."""
    for number in range(2):
        (tmp_path / f"{number}.tar").touch()
    (tmp_path / "resources/captions").mkdir(parents=True)
    (tmp_path / "resources/captions/00000.tar").touch()
    over = "dataset={source: webdataset, shards: ['{0..1}.tar']}"
    result = snakemake(tmp_path, "--dry-run", "all", "results/doctor.json", "--config", over)
    assert result.returncode == 0, result.stdout + result.stderr
    assert jobs(result)["build_shards"] == 1
