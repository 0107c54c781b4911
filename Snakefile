# From image-caption pairs and vision experts to a better CLIP, and the proof:
#   snakemake --cores 8 all
# config/config.yaml is the miniature; give another with --configfile.
from snakemake.utils import min_version

min_version("9.8")


configfile: f"{workflow.basedir}/config/config.yaml"


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/experts.smk"
include: "workflow/rules/labels.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/probes.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/retrieval.smk"
include: "workflow/rules/clip_benchmark.smk"
include: "workflow/rules/study.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/cluster.smk"


rule all:
    default_target: True
    input:
        # Lost label files first and alone: made again they are the same, which only the next run can see.
        REDONE
        if REDONE and exists("results/report.html")
        else ["results/report.html", *REDONE],
    localrule: True
