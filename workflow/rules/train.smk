# Training of CLIP models. Checkpoints are not declared as outputs, since Snakemake deletes outputs before a retry.
# Models without training steps are exported without any pairs; those that no seed changes once, and copied.

VALIDATED = CONFIG.train.watch.zero_shot if trains_models(CONFIG) else None


rule train:
    input:
        shards="results/shards/index.json",
        labels=lambda wildcards: [
            f"results/labels/{store}/index.json"
            for store in STUDY.models[wildcards.model].tasks
        ],
        init=lambda wildcards: (
            [weights(STUDY.models[wildcards.model].init, wildcards.seed)]
            if STUDY.models[wildcards.model].init
            else FETCHED_STUDENT
        ),
        # the benchmark of zero-shot validation during training
        validated=MARKS[VALIDATED] if VALIDATED else [],
    output:
        weights="results/models/{model}/seed{seed}/open_clip_model.safetensors",
        config="results/models/{model}/seed{seed}/open_clip_config.json",
        heads="results/models/{model}/seed{seed}/heads.safetensors",
        metrics="results/models/{model}/seed{seed}/metrics.jsonl",
        record=report(
            "results/models/{model}/seed{seed}/train.json",
            caption="../report/training.rst",
            category="Training",
            labels={"model": "{model}", "seed": "{seed}"},
        ),
    log:
        "logs/train/{model}/seed{seed}.log",
    benchmark:
        "results/timings/train/{model}-seed{seed}.tsv"
    wildcard_constraints:
        model="|".join(TRAINED) or NONE,
    # most other jobs wait for these
    priority: 100
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="8GB",
        runtime="24h",
        gpu=1,
        # a profile sets more nodes and GPUs (docs/slurm.md)
        nodes=1,
    params:
        config=lambda wildcards: STUDY.subset(
            "dataset.source",
            "student",
            "train",
            f"models.{wildcards.model}",
            *(
                f"label_stores.{store}"
                for store in STUDY.models[wildcards.model].tasks
            ),
            *(["zeroshot.templates"] if VALIDATED else []),
        ),
        version=versions.TRAIN,
    message:
        "Train {wildcards.model}, seed {wildcards.seed}"
    shell:
        "cliptex --log {log} --threads {threads} train --model {wildcards.model} --seed {wildcards.seed}"
        " --nodes {resources.nodes} --gpus {resources.gpu} --config {params.config:q}"


rule export_untrained:
    input:
        lambda wildcards: (
            weights(wildcards.model, CONFIG.seeds[0])
            if is_copy(wildcards)
            else (
                weights(STUDY.models[wildcards.model].init, wildcards.seed)
                if STUDY.models[wildcards.model].init
                else fetched_student(wildcards.model)
            )
        ),
    output:
        weights="results/models/{model}/seed{seed}/open_clip_model.safetensors",
        config="results/models/{model}/seed{seed}/open_clip_config.json",
        heads="results/models/{model}/seed{seed}/heads.safetensors",
        metrics="results/models/{model}/seed{seed}/metrics.jsonl",
        record=report(
            "results/models/{model}/seed{seed}/train.json",
            caption="../report/training.rst",
            category="Training",
            labels={"model": "{model}", "seed": "{seed}"},
        ),
    log:
        "logs/export_untrained/{model}/seed{seed}.log",
    benchmark:
        "results/timings/export_untrained/{model}-seed{seed}.tsv"
    wildcard_constraints:
        model="|".join(UNTRAINED) or NONE,
    priority: 100
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="8GB",
        runtime="1h",
    params:
        config=lambda wildcards: STUDY.subset(
            "dataset.source",
            "student",
            *(f"models.{model}" for model in lineage(wildcards.model)),
            # of its heads
            *(["train"] if STUDY.models[wildcards.model].tasks else []),
            *(
                f"label_stores.{store}"
                for store in STUDY.models[wildcards.model].tasks
            ),
        ),
        copied=lambda wildcards: (
            f"--same-as-seed {CONFIG.seeds[0]}" if is_copy(wildcards) else ""
        ),
        version=versions.TRAIN,
    message:
        "Export {wildcards.model}, seed {wildcards.seed}, which has no training steps"
    shell:
        "cliptex --log {log} --threads {threads} train --model {wildcards.model} --seed {wildcards.seed}"
        " {params.copied} --config {params.config:q}"


rule fetch_student:
    output:
        "resources/weights/student.json",
    log:
        "logs/fetch_student/all.log",
    priority: 100
    localrule: True
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="4GB",
    params:
        config=CONFIG.subset("student"),
    message:
        "Download the weights that training starts from"
    shell:
        "cliptex --log {log} fetch-student --config {params.config:q}"


rule fetch_released:
    output:
        "resources/weights/models/{model}.json",
    log:
        "logs/fetch_student/{model}.log",
    priority: 100
    localrule: True
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="4GB",
    params:
        config=lambda wildcards: STUDY.subset("student", f"models.{wildcards.model}"),
    message:
        "Download the weights of {wildcards.model}"
    shell:
        "cliptex --log {log} fetch-student --model {wildcards.model} --config {params.config:q}"


rule interpolate:
    input:
        lambda wildcards: [
            weights(model, wildcards.seed)
            for model in STUDY.models[wildcards.model].sources()
        ],
    output:
        weights="results/models/{model}/seed{seed}/open_clip_model.safetensors",
        config="results/models/{model}/seed{seed}/open_clip_config.json",
        record=report(
            "results/models/{model}/seed{seed}/train.json",
            caption="../report/training.rst",
            category="Training",
            labels={"model": "{model}", "seed": "{seed}"},
        ),
    log:
        "logs/interpolate/{model}/seed{seed}.log",
    benchmark:
        "results/timings/interpolate/{model}-seed{seed}.tsv"
    wildcard_constraints:
        model="|".join(INTERPOLATED) or NONE,
    priority: 100
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="8GB",
        runtime="30m",
    params:
        config=lambda wildcards: STUDY.subset(
            "dataset.source",
            *(f"models.{model}" for model in lineage(wildcards.model)),
        ),
        version=versions.TRAIN,
    message:
        "Interpolate weights to {wildcards.model}, seed {wildcards.seed}"
    shell:
        "cliptex --log {log} --threads {threads} interpolate --model {wildcards.model} --seed {wildcards.seed}"
        " --config {params.config:q}"
