# Evaluation of frozen encoders without training: by text, or by comparing patch tokens. One job per benchmark, in which
# all models and seeds share the decoded images.


rule training_free:
    input:
        data=lambda wildcards: MARKS[wildcards.benchmark],
        parts=lambda wildcards: PART_MARKS.get(wildcards.benchmark, []),
        encoders=[weights(model, seed) for model in COMPARED for seed in CONFIG.seeds],
    output:
        report(
            "results/training_free/{benchmark}.json",
            caption="../report/training_free.rst",
            category="Results",
            subcategory="Without training",
            labels={"benchmark": "{benchmark}"},
        ),
        "results/training_free/{benchmark}.per_image.npz",
    log:
        "logs/training_free/{benchmark}.log",
    benchmark:
        "results/timings/training_free/{benchmark}.tsv"
    priority: 10
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="8GB",
        runtime="12h",
        gpu=1,
    params:
        config=subset(
            "training_free.benchmarks.{benchmark}",
            "probes.save_predictions",
            "probes.models",
            "probes.baselines",
            "seeds",
            "models",
            naming="{benchmark}",
        ),
        version=versions.TRAINING_FREE,
    message:
        "Evaluate without training on {wildcards.benchmark}"
    shell:
        "cliptex --log {log} --threads {threads} training-free --benchmark {wildcards.benchmark}"
        " --config {params.config:q}"
