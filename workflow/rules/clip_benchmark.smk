# The clip_benchmark command on its own data sets. Not part of `all`; the target is results/clip_benchmark/table.json.

SUITE = {dataset_slug(name): name for name in CONFIG.clip_benchmark.datasets}


rule clip_benchmark:
    input:
        lambda wildcards: weights(wildcards.model, wildcards.seed),
    output:
        "results/clip_benchmark/{dataset}/{model}/seed{seed}.json",
    log:
        "logs/clip_benchmark/{dataset}/{model}-seed{seed}.log",
    benchmark:
        "results/timings/clip_benchmark/{dataset}-{model}-seed{seed}.tsv"
    wildcard_constraints:
        dataset="|".join(map(re.escape, SUITE)) or NONE,
    conda:
        "../../envs/clip_benchmark.yaml"
    resources:
        mem="8GB",
        runtime="4h",
        gpu=1,
    params:
        config=subset(
            "clip_benchmark.root",
            "clip_benchmark.split",
            "clip_benchmark.batch_size",
            "clip_benchmark.workers",
        ),
        name=lambda wildcards: SUITE[wildcards.dataset],
        task=lambda wildcards: CONFIG.clip_benchmark.datasets[SUITE[wildcards.dataset]],
        version=versions.CLIP_BENCHMARK,
    shell:
        "cliptex --log {log} --threads {threads} clip-benchmark --dataset {params.name:q} --task {params.task}"
        " --model {wildcards.model} --seed {wildcards.seed} --config {params.config:q}"


rule tabulate_clip_benchmark:
    input:
        [str(path) for path in clip_benchmark_files(CONFIG)],
    output:
        "results/clip_benchmark/table.json",
        "results/clip_benchmark/table.csv",
    log:
        "logs/tabulate_clip_benchmark.log",
    localrule: True
    conda:
        "../../envs/cliptex.yaml"
    params:
        config=subset("clip_benchmark", "probes.models", "seeds", "models"),
    shell:
        "cliptex --log {log} tabulate-clip-benchmark --config {params.config:q}"
