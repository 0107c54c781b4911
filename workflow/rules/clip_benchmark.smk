# The clip_benchmark command on its own data sets. Not part of `all`; the target is results/clip_benchmark/table.json.

SUITE_TASKS = datasets_of(CONFIG.clip_benchmark)
SUITE = {dataset_slug(name): name for name in SUITE_TASKS}
FEW_SHOT = {
    dataset_slug(name): name for name in few_shot_datasets(CONFIG.clip_benchmark)
}
# keys of the configuration that only a suite needs
SUITE_KEYS = ["clip_benchmark.suite"] if CONFIG.clip_benchmark.suite else []


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
            *SUITE_KEYS,
        ),
        name=lambda wildcards: SUITE[wildcards.dataset],
        task=lambda wildcards: SUITE_TASKS[SUITE[wildcards.dataset]],
        version=versions.CLIP_BENCHMARK,
    message:
        "Evaluate {wildcards.model}, seed {wildcards.seed}, on {params.name} with clip_benchmark"
    shell:
        "cliptex --log {log} --threads {threads} clip-benchmark --dataset {params.name:q} --task {params.task}"
        " --model {wildcards.model} --seed {wildcards.seed} --config {params.config:q}"


rule few_shot:
    input:
        lambda wildcards: weights(wildcards.model, wildcards.seed),
    output:
        "results/few_shot/{dataset}/{model}/seed{seed}.json",
    log:
        "logs/few_shot/{dataset}/{model}-seed{seed}.log",
    benchmark:
        "results/timings/few_shot/{dataset}-{model}-seed{seed}.tsv"
    wildcard_constraints:
        dataset="|".join(map(re.escape, FEW_SHOT)) or NONE,
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="8GB",
        runtime="4h",
        gpu=1,
    params:
        config=subset(
            "clip_benchmark.root",
            "clip_benchmark.split",
            "clip_benchmark.shots",
            *SUITE_KEYS,
        ),
        name=lambda wildcards: FEW_SHOT[wildcards.dataset],
        version=versions.FEW_SHOT,
    message:
        "Train and evaluate few-shot probes of {wildcards.model}, seed {wildcards.seed}, on {params.name}"
    shell:
        "cliptex --log {log} --threads {threads} few-shot --dataset {params.name:q}"
        " --model {wildcards.model} --seed {wildcards.seed} --config {params.config:q}"


rule tabulate_clip_benchmark:
    input:
        [str(path) for path in clip_benchmark_files(CONFIG)],
        few_shot=[str(path) for path in few_shot_files(CONFIG)],
    output:
        "results/clip_benchmark/table.json",
        "results/clip_benchmark/table.csv",
    log:
        "logs/tabulate_clip_benchmark.log",
    localrule: True
    conda:
        "../../envs/cliptex.yaml"
    params:
        config=subset(
            "clip_benchmark",
            "probes.models",
            "seeds",
            "models",
            *(["student"] if CONFIG.clip_benchmark.suite else []),
        ),
    message:
        "Gather results of clip_benchmark into a table"
    shell:
        "cliptex --log {log} tabulate-clip-benchmark --config {params.config:q}"
