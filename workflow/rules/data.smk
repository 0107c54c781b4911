# Image-caption pairs as shards, labelled renders for the experts, benchmarks in their official layouts.

if workflow.is_main_process:
    for line in missing_data(CONFIG):
        logger.warning(line)


if MINIATURE:
    # otherwise the user's tars may have the same paths, and must not be overwritten

    rule render_pairs:
        output:
            "results/shards/{shard}.tar",
        log:
            "logs/render_pairs/{shard}.log",
        benchmark:
            "results/timings/render_pairs/{shard}.tsv"
        priority: 90
        conda:
            "../../envs/cliptex.yaml"
        resources:
            mem="1GB",
            runtime="30m",
        params:
            config=CONFIG.subset("miniature"),
            version=versions.RENDER,
        message:
            "Render image-caption pairs, shard {wildcards.shard}"
        shell:
            "cliptex --log {log} --threads {threads} render-pairs --shard {wildcards.shard} --config {params.config:q}"


rule download_pairs:
    input:
        CONFIG.dataset.urls.files if CONFIG.dataset.urls else [],
    output:
        temp("resources/pairs/batch-{batch}.json"),
    log:
        "logs/download_pairs/{batch}.log",
    benchmark:
        "results/timings/download_pairs/{batch}.tsv"
    priority: 95
    conda:
        "../../envs/download.yaml"
    threads: 8
    resources:
        mem="16GB",
        runtime="24h",
        python=unrecorded(CONFIG.download.python),
        how=unrecorded(CONFIG.subset("download")),
    params:
        config=subset("dataset.urls", "download.shards_per_job"),
        # Snakemake records params, but not those of functions that take `resources`. The record keeps the path that the
        # script had in earlier versions, so that their finished runs do not download again.
        recorded_job=f"{workflow.basedir}/cliptex/img2dataset_job.py",
        job=lambda wildcards, resources: f"{PACKAGE}/data/img2dataset_job.py",
    message:
        "Download image-caption pairs, batch {wildcards.batch}"
    shell:
        "{resources.python:q} -P {params.job:q} --log {log} --batch {wildcards.batch} --processes {threads}"
        " --how {resources.how:q} --config {params.config:q}"


rule build_shards:
    input:
        lambda wildcards: (
            f"resources/pairs/batch-{wildcards.batch}.json"
            if CONFIG.dataset.source == "urls"
            else own_tars(int(wildcards.batch))
        ),
    output:
        "results/shards/batch-{batch}.json",
    log:
        "logs/build_shards/{batch}.log",
    benchmark:
        "results/timings/build_shards/{batch}.tsv"
    priority: 90
    conda:
        "../../envs/cliptex.yaml"
    threads: 1 if CONFIG.dataset.source == "webdataset" else 4
    resources:
        mem="8GB",
        runtime="12h",
        # shards that were accepted stay accepted
        min_yield=unrecorded(str(CONFIG.dataset.min_yield)),
    params:
        config=subset(*SHARD_KEYS),
    message:
        "Pack image-caption pairs into shards, batch {wildcards.batch}"
    shell:
        "cliptex --log {log} --threads 1 build-shards --batch {wildcards.batch} --workers {threads}"
        " --min-yield {resources.min_yield} --config {params.config:q}"


rule index_shards:
    input:
        [str(path) for path in shard_paths(CONFIG)]
        if MINIATURE
        else [
            f"results/shards/batch-{batch:03d}.json"
            for batch in range(num_downloads(CONFIG))
        ],
    output:
        "results/shards/index.json",
    log:
        "logs/index_shards.log",
    benchmark:
        "results/timings/index_shards/all.tsv"
    priority: 90
    # too short for a job on a cluster
    localrule: MINIATURE
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="2GB" if MINIATURE else "8GB",
        runtime="2h",
        min_yield=unrecorded(str(CONFIG.dataset.min_yield)),
    params:
        config=subset(*INDEX_KEYS),
    message:
        "Check and index the shards"
    shell:
        "cliptex --log {log} index-shards --min-yield {resources.min_yield} --config {params.config:q}"


rule render_experts:
    output:
        "resources/expert_renders/{part}.h5",
    log:
        "logs/render_experts/{part}.log",
    benchmark:
        "results/timings/render_experts/{part}.tsv"
    priority: 80
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="2GB",
        runtime="30m",
    params:
        config=CONFIG.subset("miniature"),
        version=versions.RENDER,
    message:
        "Render labelled scenes for the experts, {wildcards.part}"
    shell:
        "cliptex --log {log} --threads {threads} render-experts --part {wildcards.part} --config {params.config:q}"


rule fetch_benchmark:
    output:
        "resources/{benchmark}/official.json",
    log:
        "logs/fetch_benchmark/{benchmark}.log",
    benchmark:
        "results/timings/fetch_benchmark/{benchmark}.tsv"
    priority: 95
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem=lambda wildcards: (
            "24GB"
            if CONFIG.benchmark_source(wildcards.benchmark).variant == "ladicky"
            else "8GB"
        ),
        runtime="48h",
        how=unrecorded(CONFIG.subset("benchmark_data", "dataset.source")),
        splits=lambda wildcards: (
            "--evaluation-only"
            if evaluation_only(CONFIG, wildcards.benchmark)
            else "--no-evaluation-only"
        ),
    params:
        # when more is needed than was fetched, this is fetched
        variant=lambda wildcards: (
            "evaluation only"
            if evaluation_only(CONFIG, wildcards.benchmark)
            else CONFIG.benchmark_source(wildcards.benchmark).variant
        ),
        version=versions.FETCH,
    message:
        "Download benchmark {wildcards.benchmark}"
    shell:
        "cliptex --log {log} --threads {threads} fetch --benchmark {wildcards.benchmark} --config {resources.how:q}"
        " {resources.splits}"


rule fetch_panoptic:
    input:
        "resources/{benchmark}/official.json",
    output:
        "resources/{benchmark}/panoptic.json",
    log:
        "logs/fetch_panoptic/{benchmark}.log",
    benchmark:
        "results/timings/fetch_panoptic/{benchmark}.tsv"
    priority: 95
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="8GB",
        runtime="24h",
        how=unrecorded(CONFIG.subset("benchmark_data", "dataset.source")),
    params:
        version=versions.FETCH,
    message:
        "Download the panoptic annotations of {wildcards.benchmark}"
    shell:
        "cliptex --log {log} --threads {threads} fetch --benchmark {wildcards.benchmark} --part panoptic"
        " --config {resources.how:q}"


rule render_benchmark:
    output:
        "resources/{benchmark}/miniature.json",
    log:
        "logs/render_benchmark/{benchmark}.log",
    benchmark:
        "results/timings/render_benchmark/{benchmark}.tsv"
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="2GB",
        runtime="30m",
    params:
        config=subset("miniature", naming="{benchmark}"),
        version=versions.RENDER,
    message:
        "Render benchmark {wildcards.benchmark}"
    shell:
        "cliptex --log {log} --threads {threads} render-benchmark --name {wildcards.benchmark}"
        " --config {params.config:q}"
