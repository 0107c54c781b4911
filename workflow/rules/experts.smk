# Training or verification of the experts' weights, and their quality.


rule train_backbone:
    input:
        "resources/expert_renders/train.h5",
    output:
        "results/backbone/backbone.json",
    log:
        "logs/train_backbone/all.log",
    benchmark:
        "results/timings/train_backbone/all.tsv"
    priority: 80
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="4GB",
        runtime="4h",
        gpu=1,
    params:
        config=subset("backbone"),
        version=versions.EXPERT,
    message:
        "Train the backbone that the experts start from"
    shell:
        "cliptex --log {log} --threads {threads} train-backbone --config {params.config:q}"


rule train_expert:
    input:
        lambda wildcards: (
            expand("resources/expert_renders/{part}.h5", part=["train", "val"])
            if STUDY.experts[wildcards.expert].weights == "trained"
            else []
        ),
        lambda wildcards: (
            ["results/backbone/backbone.json"]
            if CONFIG.backbone and STUDY.experts[wildcards.expert].weights == "trained"
            else []
        ),
    output:
        "results/experts/{expert}/expert.json",
    log:
        "logs/train_expert/{expert}.log",
    benchmark:
        "results/timings/train_expert/{expert}.tsv"
    wildcard_constraints:
        expert="|".join(name for name in STUDY.experts if name not in FETCHED) or NONE,
    priority: 70
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="4GB",
        runtime="4h",
        gpu=1,
    params:
        config=subset("experts.{expert}", "backbone", "miniature", of=STUDY),
        version=versions.EXPERT,
    message:
        "Train or check expert {wildcards.expert}, and measure its quality"
    shell:
        "cliptex --log {log} --threads {threads} train-expert --name {wildcards.expert} --config {params.config:q}"


rule fetch_expert:
    output:
        "results/experts/{expert}/expert.json",
    log:
        "logs/fetch_expert/{expert}.log",
    wildcard_constraints:
        expert="|".join(FETCHED) or NONE,
    priority: 70
    localrule: True
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="4GB",
    params:
        config=subset("experts.{expert}", "backbone", "miniature"),
        version=versions.EXPERT,
    # train_expert for weights from the internet
    message:
        "Download expert {wildcards.expert}"
    shell:
        "cliptex --log {log} --threads {threads} train-expert --name {wildcards.expert} --config {params.config:q}"
