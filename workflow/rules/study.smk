# A study (config/studies/): models in addition to those of the main run, evaluated by a few heads. The target: `study`.
# All results of a study, those of its reference too, are in its own folder, so that studies do not rerun each other's
# probes.

STUDY_SECTION = CONFIG.study
EVALUATED = STUDY_SECTION.compared if STUDY_SECTION else []
CORRUPTIONS = (
    STUDY_SECTION.corruptions.model_dump_json()
    if STUDY_SECTION and STUDY_SECTION.corruptions
    else "null"
)
LOOKS = (
    STUDY_SECTION.corruptions.looks
    if STUDY_SECTION and STUDY_SECTION.corruptions
    else []
)


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
        config=subset("miniature", naming="{benchmark}"),
        version=versions.RENDER,
    message:
        "Render benchmark {wildcards.benchmark} with another look, {wildcards.look}"
    shell:
        "cliptex --log {log} --threads {threads} render-benchmark --name {wildcards.benchmark}"
        " --look {wildcards.look} --config {params.config:q}"


for benchmark in STUDY_SECTION.probes if STUDY_SECTION else []:

    rule:
        name:
            f"probe_study_{benchmark}"
        input:
            data=study_inputs(benchmark),
            encoders=lambda wildcards: encoders(EVALUATED, wildcards.seed),
        output:
            expand(
                "results/studies/{study}/probes/{benchmark}/{model}/seed{{seed}}/{head}.{kind}",
                study=STUDY_SECTION.name,
                benchmark=benchmark,
                model=EVALUATED,
                head=heads(benchmark, STUDY.probes.benchmarks[benchmark]),
                kind=["json", "per_image.npz"],
            ),
        log:
            f"logs/study/{STUDY_SECTION.name}/probe-{benchmark}-seed{{seed}}.log",
        benchmark:
            f"results/timings/study/{STUDY_SECTION.name}-probe-{benchmark}-seed{{seed}}.tsv"
        conda:
            "../../envs/cliptex.yaml"
        resources:
            mem="8GB",
            runtime="12h",
            gpu=1,
            cache=unrecorded(str(CONFIG.probes.cache_gb)),
            held=unrecorded(str(CONFIG.probes.memory_gb)),
        params:
            config=probe_config(benchmark, STUDY),
            benchmark=benchmark,
            models=",".join(EVALUATED),
            out=f"results/studies/{STUDY_SECTION.name}/probes/{benchmark}",
            corruptions=lambda wildcards: CORRUPTIONS,
            version=versions.PROBE,
        message:
            "Train and evaluate probes on {params.benchmark}: {params.models}, seed {wildcards.seed}"
        shell:
            "cliptex --log {log} --threads {threads} probe --benchmark {params.benchmark} --models {params.models}"
            " --seed {wildcards.seed} --out {params.out} --corruptions {params.corruptions:q}"
            " --cache-gb {resources.cache} --memory-gb {resources.held} --config {params.config:q}"


for benchmark in STUDY_SECTION.zeroshot if STUDY_SECTION else []:

    rule:
        name:
            f"zeroshot_study_{benchmark}"
        input:
            data=study_inputs(benchmark),
            encoders=[
                weights(model, seed) for model in EVALUATED for seed in CONFIG.seeds
            ],
        output:
            f"results/studies/{STUDY_SECTION.name}/zeroshot/{benchmark}.json",
            f"results/studies/{STUDY_SECTION.name}/zeroshot/{benchmark}.per_image.npz",
        log:
            f"logs/study/{STUDY_SECTION.name}/zeroshot-{benchmark}.log",
        benchmark:
            f"results/timings/study/{STUDY_SECTION.name}-zeroshot-{benchmark}.tsv"
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
                naming=benchmark,
            ),
            benchmark=benchmark,
            out=f"results/studies/{STUDY_SECTION.name}/zeroshot/{benchmark}.json",
            corruptions=lambda wildcards: CORRUPTIONS,
            version=versions.ZEROSHOT,
        message:
            "Evaluate zero-shot classification on {params.benchmark}"
        shell:
            "cliptex --log {log} --threads {threads} zeroshot --benchmark {params.benchmark} --out {params.out}"
            " --corruptions {params.corruptions:q} --config {params.config:q}"


STUDY_PAIRS = pairs_of_stores(STUDY) if STUDY_SECTION else []

if STUDY_PAIRS:

    # the stores of the main run and of the study; results/labels/agreement.json has only those of the main run
    rule label_agreement_study:
        input:
            shards="results/shards/index.json",
            labels=sorted(
                {
                    f"results/labels/{store}/index.json"
                    for pair in STUDY_PAIRS
                    for store in pair
                }
            ),
        output:
            f"results/studies/{STUDY_SECTION.name}/agreement.json",
        log:
            f"logs/study/{STUDY_SECTION.name}/agreement.log",
        localrule: MINIATURE
        conda:
            "../../envs/cliptex.yaml"
        resources:
            mem="4GB",
            runtime="30m",
        params:
            config=subset("label_stores", "experts", "labels", of=STUDY),
            version=versions.LABEL,
        message:
            "Compare label stores of one task"
        shell:
            "cliptex --log {log} labels agreement --out {output} --config {params.config:q}"


if STUDY_SECTION:

    rule study_page:
        input:
            agreement=(
                [f"results/studies/{STUDY_SECTION.name}/agreement.json"]
                if STUDY_PAIRS
                else []
            ),
            probes=[
                f"results/studies/{STUDY_SECTION.name}/probes/{benchmark}/{model}/seed{seed}/{head}.{kind}"
                for benchmark in STUDY_SECTION.probes
                for model in EVALUATED
                for seed in CONFIG.seeds
                for head in heads(benchmark, STUDY.probes.benchmarks[benchmark])
                for kind in ("json", "per_image.npz")
            ],
            tuned=[
                f"results/finetuned/{benchmark}/{model}/seed{seed}/{head}.{kind}"
                for benchmark in (
                    STUDY_SECTION.probes if STUDY_SECTION.form == "finetuning" else []
                )
                for model in EVALUATED
                for seed in CONFIG.seeds
                for head in heads(benchmark, STUDY.probes.benchmarks[benchmark])
                for kind in ("json", "per_image.npz")
            ],
            zeroshot=[
                f"results/studies/{STUDY_SECTION.name}/zeroshot/{benchmark}.{kind}"
                for benchmark in STUDY_SECTION.zeroshot
                for kind in ("json", "per_image.npz")
            ],
            models=[
                f"results/models/{model}/seed{seed}/train.json"
                for model in EVALUATED
                for seed in CONFIG.seeds
            ],
            experts=[
                f"results/experts/{expert}/expert.json"
                for expert in STUDY_SECTION.experts
            ],
        output:
            page=report(
                f"results/studies/{STUDY_SECTION.name}.html",
                caption="../report/study.rst",
                category="Studies",
                labels={"study": STUDY_SECTION.name},
            ),
            parts=[
                f"results/studies/{STUDY_SECTION.name}/{name}"
                for name in (
                    "study.json",
                    "table.csv",
                    "table.md",
                    "plot.svg",
                    "plot.png",
                )
            ],
        log:
            f"logs/study/{STUDY_SECTION.name}/page.log",
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
                "experts",
                "label_stores",
                "report",
                of=STUDY,
            ),
            version=versions.STUDY,
        message:
            "Write the page of the study"
        shell:
            "cliptex --log {log} study-page --config {params.config:q}"


rule study:
    input:
        lambda wildcards: study_page_path(),
    localrule: True
