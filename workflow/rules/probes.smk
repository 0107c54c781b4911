# Frozen encoders judged. One job does several models of a benchmark, which share start-up and decoded images.

SIZE = CONFIG.probes.models_per_job
GROUPS = [PROBED[start : start + SIZE] for start in range(0, len(PROBED), SIZE)]
# the untrained encoder has the architecture of the first model
FIRST = MODELS[0] if MODELS else None


def encoders(models, seed):
    """Weights that the probes of some models and baselines need."""
    return sorted({weights(model if model in MODELS else FIRST, seed) for model in models})


for benchmark in CONFIG.probes.benchmarks:
    for number, group in enumerate(GROUPS):

        rule:
            name:
                f"probe_{benchmark}_{number}"
            input:
                data=f"resources/{benchmark}/miniature.json" if MINIATURE else [],
                encoders=lambda wildcards, group=group: encoders(group, wildcards.seed),
            output:
                expand(
                    "results/probes/{benchmark}/{model}/seed{{seed}}/{head}.json",
                    benchmark=benchmark,
                    model=group,
                    head=heads(benchmark),
                ),
            params:
                config=CONFIG.subset(
                    f"probes.benchmarks.{benchmark}", "probes.holdout", "probes.save_predictions", "dataset.source"
                ),
                benchmark=benchmark,
                models=",".join(group),
                version=versions.PROBE,
            log:
                f"logs/probe/{benchmark}/{number}-seed{{seed}}.log",
            benchmark:
                f"results/timings/probe/{benchmark}-{number}-seed{{seed}}.tsv"
            priority: 10
            resources:
                mem="8GB",
                runtime="12h",
                gpu=1,
            shell:
                "cliptex --log {log} --threads {threads} probe --benchmark {params.benchmark} --models {params.models}"
                " --seed {wildcards.seed} --config {params.config:q}"


rule tabulate_probes:
    input:
        lambda wildcards: expand(
            "results/probes/{benchmark}/{model}/seed{seed}/{head}.json",
            benchmark=wildcards.benchmark,
            model=PROBED,
            seed=CONFIG.seeds,
            head=heads(wildcards.benchmark),
        ),
    output:
        "results/probes/{benchmark}.json",
    params:
        config=CONFIG.subset("probes.models", "probes.baselines", "seeds", "models"),
    log:
        "logs/tabulate_probes/{benchmark}.log",
    localrule: True
    shell:
        "cliptex --log {log} tabulate-probes --benchmark {wildcards.benchmark} --config {params.config:q}"


rule zeroshot:
    input:
        data="resources/{benchmark}/miniature.json" if MINIATURE else [],
        encoders=[weights(model, seed) for model in MODELS for seed in CONFIG.seeds],
    output:
        "results/zeroshot/{benchmark}.json",
    params:
        config=CONFIG.subset("zeroshot.templates", "probes.models", "probes.baselines", "seeds", "models"),
        version=versions.ZEROSHOT,
    log:
        "logs/zeroshot/{benchmark}.log",
    benchmark:
        "results/timings/zeroshot/{benchmark}.tsv"
    priority: 10
    resources:
        mem="8GB",
        runtime="4h",
        gpu=1,
    shell:
        "cliptex --log {log} --threads {threads} zeroshot --benchmark {wildcards.benchmark} --config {params.config:q}"
