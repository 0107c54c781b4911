# Evaluation of frozen encoders. One job evaluates several models of a benchmark, which share the decoded images.
# The rules of probe, study and fine-tuning jobs are not derived from each other (`use rule`): Snakemake lets no derived
# rule change the command.

for benchmark in CONFIG.probes.benchmarks:
    for number, group in enumerate(groups(benchmark)):

        rule:
            name:
                f"probe_{benchmark}_{number}"
            input:
                data=MARKS[benchmark],
                encoders=lambda wildcards, group=group: encoders(group, wildcards.seed),
            output:
                expand(
                    "results/probes/{benchmark}/{model}/seed{{seed}}/{head}.{kind}",
                    benchmark=benchmark,
                    model=group,
                    head=heads(benchmark, CONFIG.probes.benchmarks[benchmark]),
                    kind=kinds(benchmark),
                ),
            log:
                f"logs/probe/{benchmark}/{number}-seed{{seed}}.log",
            benchmark:
                f"results/timings/probe/{benchmark}-{number}-seed{{seed}}.tsv"
            priority: 10
            conda:
                "../../envs/cliptex.yaml"
            resources:
                mem="8GB",
                runtime="12h",
                gpu=1,
                cache=unrecorded(str(CONFIG.probes.cache_gb)),
                held=unrecorded(str(CONFIG.probes.memory_gb)),
            params:
                config=probe_config(benchmark, CONFIG),
                benchmark=benchmark,
                models=",".join(group),
                version=versions.PROBE,
            message:
                "Train and evaluate probes on {params.benchmark}: {params.models}, seed {wildcards.seed}"
            shell:
                "cliptex --log {log} --threads {threads} probe --benchmark {params.benchmark} --models {params.models}"
                " --seed {wildcards.seed} --cache-gb {resources.cache} --memory-gb {resources.held}"
                " --config {params.config:q}"


rule tabulate_probes:
    input:
        lambda wildcards: expand(
            "results/probes/{benchmark}/{model}/seed{seed}/{head}.json",
            benchmark=wildcards.benchmark,
            model=PROBED,
            seed=CONFIG.seeds,
            head=heads(
                wildcards.benchmark, CONFIG.probes.benchmarks[wildcards.benchmark]
            ),
        ),
    output:
        report(
            "results/probes/{benchmark}.json",
            caption="../report/probes.rst",
            category="Results",
            subcategory="Probes",
            labels={"benchmark": "{benchmark}"},
        ),
    log:
        "logs/tabulate_probes/{benchmark}.log",
    localrule: True
    conda:
        "../../envs/cliptex.yaml"
    params:
        config=subset(
            "probes.benchmarks.{benchmark}",
            "probes.models",
            "probes.baselines",
            "seeds",
            "models",
        ),
    message:
        "Gather probes of {wildcards.benchmark} into a table"
    shell:
        "cliptex --log {log} tabulate-probes --benchmark {wildcards.benchmark} --config {params.config:q}"


rule zeroshot:
    input:
        data=lambda wildcards: MARKS[wildcards.benchmark],
        encoders=[weights(model, seed) for model in COMPARED for seed in CONFIG.seeds],
    output:
        report(
            "results/zeroshot/{benchmark}.json",
            caption="../report/zeroshot.rst",
            category="Results",
            subcategory="Zero-shot",
            labels={"benchmark": "{benchmark}"},
        ),
        "results/zeroshot/{benchmark}.per_image.npz",
    log:
        "logs/zeroshot/{benchmark}.log",
    benchmark:
        "results/timings/zeroshot/{benchmark}.tsv"
    priority: 10
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="8GB",
        runtime="4h",
        gpu=1,
    params:
        config=subset(
            "zeroshot.templates",
            "zeroshot.published",
            "zeroshot.precision",
            "probes.save_predictions",
            "probes.models",
            "probes.baselines",
            "seeds",
            "models",
            naming="{benchmark}",
        ),
        version=versions.ZEROSHOT,
    message:
        "Evaluate zero-shot classification on {wildcards.benchmark}"
    shell:
        "cliptex --log {log} --threads {threads} zeroshot --benchmark {wildcards.benchmark} --config {params.config:q}"
