# Encoders trained end to end on benchmarks. Their results have a folder of their own, next to those of frozen encoders.

FINETUNED_TABLES = [
    f"results/finetuned/{benchmark}.json" for benchmark in CONFIG.finetune.benchmarks
]

for benchmark in CONFIG.finetune.benchmarks:

    rule:
        name:
            f"finetune_{benchmark}"
        input:
            data=MARKS[benchmark],
            encoder=lambda wildcards: encoders([wildcards.tuned], wildcards.seed),
        output:
            expand(
                "results/finetuned/{benchmark}/{{tuned}}/seed{{seed}}/{head}.{kind}",
                benchmark=benchmark,
                head=tuned_heads(
                    benchmark,
                    protocol_of(
                        benchmark, CONFIG.probes.benchmarks.get(benchmark, {})
                    ),
                    CONFIG.finetune.benchmarks[benchmark],
                ),
                kind=kinds(benchmark),
            ),
        log:
            f"logs/finetune/{benchmark}/{{tuned}}-seed{{seed}}.log",
        benchmark:
            f"results/timings/finetune/{benchmark}-{{tuned}}-seed{{seed}}.tsv"
        wildcard_constraints:
            tuned="|".join(tuned_models(CONFIG)) or NONE,
        conda:
            "../../envs/cliptex.yaml"
        resources:
            mem="8GB",
            runtime="12h",
            gpu=1,
        params:
            config=CONFIG.subset(
                f"finetune.benchmarks.{benchmark}",
                *(
                    [f"probes.benchmarks.{benchmark}"]
                    if benchmark in CONFIG.probes.benchmarks
                    else []
                ),
                "probes.models",
                "probes.holdout",
                "probes.save_predictions",
                "dataset.source",
                "models",
            ),
            benchmark=benchmark,
            version=versions.FINETUNE,
        message:
            "Fine-tune {wildcards.tuned} on {params.benchmark}, seed {wildcards.seed}"
        shell:
            "cliptex --log {log} --threads {threads} finetune --benchmark {params.benchmark} --model {wildcards.tuned}"
            " --seed {wildcards.seed} --config {params.config:q}"


rule tabulate_finetuned:
    input:
        lambda wildcards: map(str, finetune_files(CONFIG, wildcards.tuned_on)),
    output:
        "results/finetuned/{tuned_on}.json",
    log:
        "logs/tabulate_finetuned/{tuned_on}.log",
    wildcard_constraints:
        tuned_on="|".join(CONFIG.finetune.benchmarks) or NONE,
    localrule: True
    conda:
        "../../envs/cliptex.yaml"
    params:
        config=lambda wildcards: CONFIG.subset(
            "finetune",
            *(
                [f"probes.benchmarks.{wildcards.tuned_on}"]
                if wildcards.tuned_on in CONFIG.probes.benchmarks
                else []
            ),
            "probes.models",
            "seeds",
            "models",
        ),
    message:
        "Gather results of fine-tuning on {wildcards.tuned_on} into a table"
    shell:
        "cliptex --log {log} tabulate-finetuned --benchmark {wildcards.tuned_on} --config {params.config:q}"
