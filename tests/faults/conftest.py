"""Faults survived of all that were tried, at the end of a run; what every fault starts from."""

import json
import time
from collections import defaultdict

import pytest
from pipeline import SAID, SURVIVED, Pipeline, Stage, planned, say
from test_fetch import table, tiny_voc
from web_server import WebServer

BEGAN = time.monotonic()
TRIED: list[str] = []
RESULTS: dict[str, list[bool]] = defaultdict(list)
"""As `SAID` and `SURVIVED`, of all processes."""


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return Pipeline(folder, planned(folder))


@pytest.fixture(scope="session")
def web(pipeline, tmp_path_factory):
    """Commands that fetch, from a server of this process: VOC's archive, an expert's weights, and tars of pairs."""
    folder = tmp_path_factory.mktemp("web")
    with WebServer() as server:
        archives = {"VOCtrainval_11-May-2012.tar": tiny_voc(more=0)["VOCtrainval_11-May-2012.tar"]}
        server.files = {f"/{name}": data for name, data in archives.items()}
        made = [pipeline.stage("render_pairs", number).made for number in ("00000", "00001")]
        tars = {f"/{number}.tar": data for number, files in enumerate(made) for data in files.values()}
        server.files |= tars
        mirrors = table(folder / "mirrors.tsv", "voc", archives, server.url)
        official = {"source": "official", "archives": mirrors, "benchmarks": {"voc": {"variant": "train"}}}
        pairs = {"source": "webdataset", "shards": [f"{server.url}{name}" for name in tars]}
        trained = pipeline.stage("train_expert", "dpt")
        server.files["/dpt.safetensors"] = trained.made["results/experts/dpt/weights.safetensors"]
        dpt = json.loads(trained.arguments[-1])
        dpt["experts"]["dpt"] |= {"weights": "url", "url": f"{server.url}/dpt.safetensors"}
        stages = [
            Stage(
                rule,
                ["--log", f"logs/{rule}.log", "--threads", "2", *line.split(), "--config", json.dumps(config)],
                set(),
                {done},
            )
            for rule, line, config, done in (
                (
                    "fetch_benchmark",
                    "fetch --benchmark voc",
                    {"benchmark_data": official},
                    "resources/voc/official.json",
                ),
                ("fetch_expert", "train-expert --name dpt", dpt, "results/experts/dpt/expert.json"),
                ("build_shards", "build-shards --batch 0", {"dataset": pairs}, "results/shards/batch-000.json"),
            )
        ]
        yield Pipeline(folder, stages)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What was tried goes with the report, which pytest-xdist sends to the process that prints the summary."""
    report = yield
    if call.when == "call" and report.skipped:
        say(f"{item.name}: skipped")
    report.user_properties.append(("faults", [list(SAID), dict(SURVIVED)]))
    SAID.clear()
    SURVIVED.clear()
    return report


def pytest_runtest_logreport(report):
    for lines, kinds in (value for name, value in report.user_properties if name == "faults"):
        TRIED.extend(lines)
        for kind, results in kinds.items():
            RESULTS[kind] += results


def pytest_terminal_summary(terminalreporter):
    """survived/total by kind of fault, and of all."""
    if not RESULTS:
        return
    terminalreporter.section("faults survived")
    for line in TRIED:
        terminalreporter.write_line(line)
    for kind, results in sorted(RESULTS.items()):
        terminalreporter.write_line(f"{sum(results):4d}/{len(results):<4d} {kind}")
    every = [one for results in RESULTS.values() for one in results]
    terminalreporter.write_line(f"{sum(every):4d}/{len(every):<4d} survived/total, in {time.monotonic() - BEGAN:.0f} s")
