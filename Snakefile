# The whole pipeline, from image-caption pairs and vision experts to the report:
#   snakemake --cores 8 all
# config/config.yaml is the miniature; --configfile chooses another configuration.
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
include: "workflow/rules/training_free.smk"
include: "workflow/rules/clip_benchmark.smk"
include: "workflow/rules/study.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/cluster.smk"


rule all:
    default_target: True
    input:
        # Lost label files alone: they come out the same, so what depends on them is up to date, as the next run sees.
        LOST_LABELS
        if LOST_LABELS and exists("results/report.html")
        else ["results/report.html", *LOST_LABELS],
    localrule: True
