# Pairs as shards, labelled renders for the experts, benchmarks in their official layouts.


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
    shell:
        "cliptex --log {log} --threads {threads} render-pairs --shard {wildcards.shard} --config {params.config:q}"


rule index_shards:
    input:
        [str(path) for path in shard_paths(CONFIG)],
    output:
        "results/shards/index.json",
    log:
        "logs/index_shards.log",
    benchmark:
        "results/timings/index_shards/all.tsv"
    priority: 90
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="2GB",
        runtime="2h",
    params:
        config=CONFIG.subset("dataset", "miniature.pairs", "miniature.pairs_per_shard"),
    shell:
        "cliptex --log {log} index-shards --config {params.config:q}"


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
    shell:
        "cliptex --log {log} --threads {threads} render-experts --part {wildcards.part} --config {params.config:q}"


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
        config=subset("miniature"),
        version=versions.RENDER,
    shell:
        "cliptex --log {log} --threads {threads} render-benchmark --name {wildcards.benchmark}"
        " --config {params.config:q}"
