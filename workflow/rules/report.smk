# Tables, figures, and one page.


rule report:
    input:
        probes=[
            f"results/probes/{benchmark}.json"
            for benchmark in CONFIG.probes.benchmarks
        ],
        zeroshot=[
            f"results/zeroshot/{benchmark}.json"
            for benchmark in [
                *CONFIG.zeroshot.benchmarks,
                *CONFIG.zeroshot.caption_sets,
            ]
        ],
        models=[
            f"results/models/{model}/seed{seed}/train.json"
            for model in MODELS
            for seed in CONFIG.seeds
        ],
        labels=[f"results/labels/{store}/index.json" for store in CONFIG.label_stores],
    output:
        page="results/report.html",
        tables=directory("results/report"),
    log:
        "logs/report.log",
    benchmark:
        "results/timings/report/all.tsv"
    # on a cluster not worth a job
    localrule: MINIATURE
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="4GB",
        runtime="30m",
    params:
        # a function, for braces in it are no wildcards; none of the three is part of it
        config=subset(
            *(
                type(CONFIG).model_fields.keys()
                - {"clip_benchmark", "plugins", "study"}
            )
        ),
        version=versions.REPORT,
    shell:
        "cliptex --log {log} report --config {params.config:q}"
