# The experts' weights in use, and how good they are.


rule train_expert:
    input:
        expand("resources/expert_renders/{part}.h5", part=["train", "val"]),
    output:
        "results/experts/{expert}/expert.json",
    log:
        "logs/train_expert/{expert}.log",
    benchmark:
        "results/timings/train_expert/{expert}.tsv"
    priority: 70
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="4GB",
        runtime="4h",
        gpu=1,
    params:
        config=subset("experts.{expert}", "miniature"),
        version=versions.EXPERT,
    shell:
        "cliptex --log {log} --threads {threads} train-expert --name {wildcards.expert} --config {params.config:q}"
