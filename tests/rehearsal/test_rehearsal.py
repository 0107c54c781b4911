"""The dress rehearsal: config/paper.yaml and config/one_gpu.yaml themselves, from the first download to the report.

Local servers play the hosts (`hosts.py`) of what the publishers have (`publishers.py`). Over the configurations are
laid addresses and counts, and nothing else (`first_day.py`). Networks have their full architecture; weights are random
numbers in the published files' forms. What is smaller than in reality:

| what | paper.yaml | one_gpu.yaml | here |
|---|---|---|---|
| pairs | 3,318,333 rows, 10,000 a shard | 30 tars, 151,000 pairs | 9 rows, 3 a shard; 2 tars, 6 pairs |
| shards of a download job | 25 | 10 | 2; 10 |
| patience with a site of images | 10 s, 60 s in all, 1 retry | none | 2 s, 4 s in all, no retry |
| batch, held-out pairs, epochs | 1024, 4096, 30 | 512, 1024, 3 | 2, 2, 1: two steps |
| zero-shot images while training | 5000 | 2000 | 4 |
| seeds | 3 | 1 | 1 |
| steps and batch of probes' heads | 20,000 to 90,000, 16 or 64 | 2,000, 4,000, 16 | 1 or 2, 1 or 2 |
| views of a training image, proposals, regions | 4, 1000, 512 | 2 | 1, 100, 64 |
| images of a split | 654 to 1,803,460 | the same | 2 to 6 |
| ADE20K's images, shorter side | 512 px | the same | 256 px |
| classes of ImageNet, Places365 | 1000, 365 | 365 | 3 |
| baselines of the probes | 2 | 1 | 0 |
| prompts of zero-shot | 80 a class | the same | 7 |
| published accuracy of the CLIP | compared | not compared | not compared: the weights are random |
| resamples of the report | 1000 | 1000 | 100 |
| weights | trained | trained | random |

The official numbers of images would refuse such archives: in the processes of a rehearsal, and by nothing else, they
are replaced (`counts/sitecustomize.py`). The names of three classes of ImageNet are put next to the data.
"""

import json
import re

import pytest
from first_day import Rehearsal

pytestmark = pytest.mark.rehearsal
MODELS = ("clip", "clip_ft", "cliptex", "wise")
DROPPED = {"HTTP 404": 1, "not an image": 1, "timed out": 1}
"""The dead addresses of the list."""


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", ["paper", "one_gpu"])
def test_the_first_day(name, world, tmp_path):
    run = Rehearsal(name, world, tmp_path)
    done = run.snakemake()
    assert done.returncode == 0, done.stderr[-8000:]

    # the web of that day was busy, and cut some downloads: nothing is missing for that
    requests = world.server.requests
    for path in run.busy:
        assert requests[f"429 {path}"] == 1, path
    for path in run.cut:
        assert requests[f"cut {path}"] == 1 and requests[path] > 1, path
    assert not [path for path in requests if "imagenet" in path]

    index = read(tmp_path / "results/shards/index.json")
    assert index["num_samples"] == 6
    assert index["dropped"] == (DROPPED if name == "paper" else {})
    for store in ("segmentation", "depth", "normals"):
        labels = read(tmp_path / f"results/labels/{store}/index.json")
        assert labels["images"] == labels["labelled"] == 6
        assert labels["weights"] in ("url", "hub")
    for model in ("clip_ft", "cliptex"):
        assert read(tmp_path / f"results/models/{model}/seed0/train.json")["steps"] == 2

    for mark in tmp_path.glob("resources/*/official.json"):
        installed = read(mark)
        parts = ("eval",) if installed.get("evaluation_only") else ("train", "eval")
        assert installed["counts"] == {part: run.counts[installed["benchmark"]][part] for part in parts}
    page = (tmp_path / "results/report.html").read_text()
    assert all(model in page for model in MODELS)
    assert "official benchmark data" in page
    assert not re.search(r"rendered stand-in|\(miniature\)", page)

    # nothing to do, nothing to fetch
    before = requests.copy()
    again = run.snakemake()
    assert again.returncode == 0 and "Nothing to be done" in again.stdout + again.stderr, again.stderr[-3000:]
    assert requests == before
