"""SIGKILL of every stage at random moments: the same command again ends with the same bytes."""

import os
import signal
from pathlib import Path

import pytest
from commands import command
from pipeline import Pipeline, at_a_time, ends_as_ever, fault, half_made, moments

pytestmark = pytest.mark.faults
MOMENTS = int(os.environ.get("CLIPTEX_KILLS", "5"))
"""Kills of each stage."""
STAGES = [
    ("render_pairs",),
    ("render_experts", "train"),
    ("render_benchmark", "voc"),
    ("render_benchmark", "coco"),
    ("render_benchmark", "nyuv2"),
    ("render_benchmark", "imagenet"),
    ("render_captions",),
    ("index_shards",),
    ("train_backbone",),
    ("train_expert", "mask_rcnn"),
    ("train_expert", "dpt"),
    ("train_expert", "nll_angmf"),
    ("label", "segmentation"),
    ("label", "depth"),
    ("label", "normals"),
    ("index_labels", "depth"),
    ("train", "clip"),
    ("train", "cliptex"),
    ("interpolate",),
    ("probe_voc_0",),
    ("probe_coco_0",),
    ("probe_nyuv2_0",),
    ("probe_imagenet_0",),
    ("tabulate_probes", "voc"),
    ("zeroshot", "imagenet"),
    ("retrieval",),
    ("report",),
    ("finetune_imagenet", "cliptex"),
    ("tabulate_finetuned",),
    ("render_look", "nyuv2"),
    ("probe_study_nyuv2",),
    ("zeroshot_study_imagenet",),
    ("study_page",),
    ("export --model cliptex",),
    ("labels export",),
    ("labels inspect",),
    ("export-benchmark --name imagenet",),
]
FETCHED = [("fetch_benchmark",), ("fetch_expert",), ("build_shards",)]
"""download_pairs, whose processes are img2dataset's, is killed in tests/test_download.py. Not killed: fetch_student,
doctor and clip_benchmark, which write one file at their end; the work before it is that of other libraries."""


@pytest.mark.parametrize("chosen", STAGES, ids=" ".join)
def test_a_killed_stage_ends_as_ever(pipeline, tmp_path, chosen):
    killed_at_moments(pipeline, tmp_path, chosen)


@pytest.mark.parametrize("chosen", FETCHED, ids=" ".join)
def test_a_killed_stage_that_fetches_ends_as_ever(web, tmp_path, chosen):
    killed_at_moments(web, tmp_path, chosen)


def killed_at_moments(pipeline: Pipeline, tmp_path: Path, chosen: tuple[str, ...]) -> None:
    stage = pipeline.stage(*chosen)

    def kill(share: float) -> None:
        folder = pipeline.before(stage, tmp_path / f"{share:.4f}")
        after = share * stage.seconds
        with fault("SIGKILL of a stage", f"{' '.join(chosen)} at {share:.0%} of {stage.seconds:.2f} s"):
            while (ended := command(folder, stage.arguments, kill_after_s=after)).code == 0:  # it was quicker now
                pipeline.before(stage, folder)
                after *= 0.8
            assert ended.code == -signal.SIGKILL, ended.said
            assert not half_made(stage, folder)
            ends_as_ever(stage, folder, command(folder, stage.arguments))

    at_a_time(kill, moments(" ".join(chosen), MOMENTS))


TWINS = [("render_pairs",), ("label", "depth"), ("index_labels", "depth"), ("train", "cliptex"), ("report",)]


@pytest.mark.parametrize("chosen", TWINS, ids=" ".join)
def test_a_stage_that_outlives_its_snakemake_harms_no_second_one(pipeline, tmp_path, chosen):
    """Two at once, as after a SIGKILL of Snakemake, whose jobs continue, and another start."""
    stage = pipeline.stage(*chosen)
    folder = pipeline.before(stage, tmp_path / "run")
    with fault("two at once", " ".join(chosen)):
        ended = []
        at_a_time(
            lambda number: ended.append(command(folder, stage.arguments, said=tmp_path / f"{number}.txt")), [0, 1]
        )
        if any(one.code for one in ended):  # one may find what the other has taken away, and then says so
            assert all(one.code in (0, 1) and "error: " in one.said for one in ended if one.code), ended
            ended = [command(folder, stage.arguments)]
        for one in ended:
            ends_as_ever(stage, folder, one)
