# Tables, figures and the report page.


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
        finetuned=FINETUNED_TABLES,
        training_free=[
            f"results/training_free/{benchmark}.json"
            for benchmark in CONFIG.training_free.benchmarks
        ],
        images=[
            f"results/probes/{benchmark}/{model}/seed{seed}/{head}.{kind}"
            for benchmark in CONFIG.probes.benchmarks
            for model in PROBED
            for seed in CONFIG.seeds
            for head in heads(benchmark, CONFIG.probes.benchmarks[benchmark])
            for kind in kinds(benchmark)
        ]
        + [
            str(path.with_suffix(".per_image.npz"))
            for benchmark in CONFIG.finetune.benchmarks
            for path in finetune_files(CONFIG, benchmark)
        ],
        models=[
            f"results/models/{model}/seed{seed}/train.json"
            for model in MODELS
            for seed in CONFIG.seeds
        ],
        labels=[f"results/labels/{store}/index.json" for store in CONFIG.label_stores],
        agreement=AGREEMENT,
        suite=(
            ["results/clip_benchmark/table.json"]
            if CONFIG.clip_benchmark.suite
            else []
        ),
    output:
        page=report(
            "results/report.html",
            caption="../report/page.rst",
            category="Report",
            labels={"file": "the whole page"},
        ),
        tables=report(
            directory("results/report"),
            patterns=["{name}.{kind,csv|svg}"],
            caption="../report/files.rst",
            category="Tables and charts",
            subcategory="{kind}",
            labels={"name": "{name}"},
        ),
    log:
        "logs/report.log",
    benchmark:
        "results/timings/report/all.tsv"
    # too short for a job on a cluster
    localrule: MINIATURE
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="4GB",
        runtime="30m",
    params:
        # everything but the sections that the report does not use
        config=subset(
            *(
                type(CONFIG).model_fields.keys()
                - (
                    {"plugins", "study"}
                    if CONFIG.clip_benchmark.suite
                    else {"clip_benchmark", "plugins", "study"}
                )
            )
        ),
        version=versions.REPORT,
    message:
        "Write the report"
    shell:
        "cliptex --log {log} report --config {params.config:q}"
