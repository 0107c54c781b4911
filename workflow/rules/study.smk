# A study (config/studies/): models beside those of the main run, judged by a few heads; the target is `study`.
# What it judges, its reference included, lies in its own folder, so that no two studies redo each other's probes.

ASKED = CONFIG.study
JUDGED = ASKED.judged if ASKED else []
HARMED = ASKED.corruptions.model_dump_json() if ASKED and ASKED.corruptions else "null"
LOOKS = ASKED.corruptions.looks if ASKED and ASKED.corruptions else []


rule render_look:
    output:
        "resources/{benchmark}_{look}/miniature.json",
    log:
        "logs/render_look/{benchmark}_{look}.log",
    benchmark:
        "results/timings/render_look/{benchmark}_{look}.tsv"
    wildcard_constraints:
        look="|".join(LOOKS) or NONE,
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
        " --look {wildcards.look} --config {params.config:q}"


for benchmark in ASKED.probes if ASKED else []:

    rule:
        name:
            f"probe_study_{benchmark}"
        input:
            data=study_inputs(benchmark),
            encoders=lambda wildcards: encoders(JUDGED, wildcards.seed),
        output:
            expand(
                "results/studies/{study}/probes/{benchmark}/{model}/seed{{seed}}/{head}.{kind}",
                study=ASKED.name,
                benchmark=benchmark,
                model=JUDGED,
                head=heads(benchmark, STUDY.probes.benchmarks[benchmark]),
                kind=["json", "per_image.npz"],
            ),
        log:
            f"logs/study/{ASKED.name}/probe-{benchmark}-seed{{seed}}.log",
        benchmark:
            f"results/timings/study/{ASKED.name}-probe-{benchmark}-seed{{seed}}.tsv"
        conda:
            "../../envs/cliptex.yaml"
        resources:
            mem="8GB",
            runtime="12h",
            gpu=1,
            # no params, as for the main run's probes
            cache=lambda wildcards: str(CONFIG.probes.cache_gb),
            held=lambda wildcards: str(CONFIG.probes.memory_gb),
        params:
            config=subset(
                f"probes.benchmarks.{benchmark}",
                "probes.holdout",
                "probes.save_predictions",
                "dataset.source",
                of=STUDY,
            ),
            benchmark=benchmark,
            models=",".join(JUDGED),
            out=f"results/studies/{ASKED.name}/probes/{benchmark}",
            corruptions=lambda wildcards: HARMED,
            version=versions.PROBE,
        shell:
            "cliptex --log {log} --threads {threads} probe --benchmark {params.benchmark} --models {params.models}"
            " --seed {wildcards.seed} --out {params.out} --corruptions {params.corruptions:q}"
            " --cache-gb {resources.cache} --memory-gb {resources.held} --config {params.config:q}"


for benchmark in ASKED.zeroshot if ASKED else []:

    rule:
        name:
            f"zeroshot_study_{benchmark}"
        input:
            data=study_inputs(benchmark),
            encoders=[weights(model, seed) for model in JUDGED for seed in CONFIG.seeds],
        output:
            f"results/studies/{ASKED.name}/zeroshot/{benchmark}.json",
            f"results/studies/{ASKED.name}/zeroshot/{benchmark}.per_image.npz",
        log:
            f"logs/study/{ASKED.name}/zeroshot-{benchmark}.log",
        benchmark:
            f"results/timings/study/{ASKED.name}-zeroshot-{benchmark}.tsv"
        conda:
            "../../envs/cliptex.yaml"
        resources:
            mem="8GB",
            runtime="4h",
            gpu=1,
        params:
            config=subset(
                "zeroshot.templates",
                "probes.save_predictions",
                "probes.models",
                "probes.baselines",
                "seeds",
                of=STUDY,
            ),
            benchmark=benchmark,
            out=f"results/studies/{ASKED.name}/zeroshot/{benchmark}.json",
            corruptions=lambda wildcards: HARMED,
            version=versions.ZEROSHOT,
        shell:
            "cliptex --log {log} --threads {threads} zeroshot --benchmark {params.benchmark} --out {params.out}"
            " --corruptions {params.corruptions:q} --config {params.config:q}"


if ASKED:

    rule study_page:
        input:
            probes=[
                f"results/studies/{ASKED.name}/probes/{benchmark}/{model}/seed{seed}/{head}.{kind}"
                for benchmark in ASKED.probes
                for model in JUDGED
                for seed in CONFIG.seeds
                for head in heads(benchmark, STUDY.probes.benchmarks[benchmark])
                for kind in ("json", "per_image.npz")
            ],
            tuned=[
                f"results/finetuned/{benchmark}/{model}/seed{seed}/{head}.{kind}"
                for benchmark in (ASKED.probes if ASKED.form == "finetuning" else [])
                for model in JUDGED
                for seed in CONFIG.seeds
                for head in heads(benchmark, STUDY.probes.benchmarks[benchmark])
                for kind in ("json", "per_image.npz")
            ],
            zeroshot=[
                f"results/studies/{ASKED.name}/zeroshot/{benchmark}.{kind}"
                for benchmark in ASKED.zeroshot
                for kind in ("json", "per_image.npz")
            ],
            models=[
                f"results/models/{model}/seed{seed}/train.json"
                for model in JUDGED
                for seed in CONFIG.seeds
            ],
            experts=[
                f"results/experts/{expert}/expert.json" for expert in ASKED.experts
            ],
        output:
            page=report(
                f"results/studies/{ASKED.name}.html",
                caption="../report/study.rst",
                category="Studies",
                labels={"study": ASKED.name},
            ),
            parts=[
                f"results/studies/{ASKED.name}/{name}"
                for name in (
                    "study.json",
                    "table.csv",
                    "table.md",
                    "plot.svg",
                    "plot.png",
                )
            ],
        log:
            f"logs/study/{ASKED.name}/page.log",
        localrule: True
        conda:
            "../../envs/cliptex.yaml"
        params:
            config=subset(
                "study",
                "seeds",
                "dataset.source",
                "probes.benchmarks",
                "zeroshot.benchmarks",
                "models",
                "label_stores",
                "report",
                of=STUDY,
            ),
            version=versions.STUDY,
        shell:
            "cliptex --log {log} study-page --config {params.config:q}"


rule study:
    input:
        lambda wildcards: asked_pages(),
    localrule: True
