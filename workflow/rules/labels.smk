# Every expert labels every shard, or a published label set is taken instead. Label files are not declared as outputs,
# since Snakemake would delete them before a retry; the done file of a batch is. If a label file that it lists is
# missing, the done file is removed here and the batch runs again, which keeps the other label files.

LOST_LABELS = []
if workflow.is_main_process:
    for done, files in batches_to_redo(
        [f"results/labels/{store}" for store in STUDY.label_stores]
    ).items():
        logger.warning(
            f"{', '.join(map(str, files))}: missing or changed; making {done} again"
        )
        done.unlink(missing_ok=True)
        LOST_LABELS += [str(done), str(done.with_name("index.json"))]


rule fetch_labels:
    input:
        lambda wildcards: (
            []
            if "://" in STUDY.label_stores[wildcards.store].from_
            else f"{STUDY.label_stores[wildcards.store].from_}/labels.json"
        ),
    output:
        "resources/published_labels/{store}/set.json",
    log:
        "logs/fetch_labels/{store}.log",
    wildcard_constraints:
        store="|".join(TAKEN) or NONE,
    priority: 70
    localrule: True
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="4GB",
    params:
        config=subset("label_stores.{store}", of=STUDY),
        version=versions.FETCH,
    # a published label set instead of an expert; a changed local set is taken again
    message:
        "Fetch published labels {wildcards.store}"
    shell:
        "cliptex --log {log} --threads {threads} fetch-labels --store {wildcards.store} --config {params.config:q}"


# experts whose labels are dense features, of which the principal components are kept
FEATURES = [
    name
    for name, expert in STUDY.experts.items()
    if (expert.plugin or name) == "features"
]


rule fit_pca:
    input:
        shards="results/shards/index.json",
        expert="results/experts/{expert}/expert.json",
    output:
        "results/experts/{expert}/pca.json",
    log:
        "logs/fit_pca/{expert}.log",
    benchmark:
        "results/timings/fit_pca/{expert}.tsv"
    wildcard_constraints:
        expert="|".join(FEATURES) or NONE,
    priority: 65
    conda:
        "../../envs/cliptex.yaml"
    threads: 1 if MINIATURE else 8
    resources:
        mem="6GB",
        runtime="4h",
        gpu=1,
    params:
        config=subset("experts.{expert}", "labels", of=STUDY),
        version=versions.LABEL,
    message:
        "Fit principal components to the features of {wildcards.expert}"
    shell:
        "cliptex --log {log} --threads {threads} fit-pca --name {wildcards.expert} --config {params.config:q}"


rule label:
    input:
        shards="results/shards/index.json",
        expert=lambda wildcards: labels_source(wildcards.store),
        changed=lambda wildcards: (
            f"results/labels/{STUDY.label_stores[wildcards.store].of}/index.json"
            if STUDY.label_stores[wildcards.store].of
            else []
        ),
        pca=lambda wildcards: (
            f"results/experts/{STUDY.label_stores[wildcards.store].expert}/pca.json"
            if STUDY.label_stores[wildcards.store].expert in FEATURES
            else []
        ),
    output:
        "results/labels/{store}/batch-{batch}.json",
    log:
        "logs/label/{store}/{batch}.log",
    benchmark:
        "results/timings/label/{store}-{batch}.tsv"
    priority: 60
    conda:
        "../../envs/cliptex.yaml"
    # with a GPU, the processes that decode and encode; the miniature has more jobs than cores
    threads: 1 if MINIATURE else 8
    resources:
        mem="6GB",
        runtime="8h",
        gpu=1,
    params:
        config=lambda wildcards: labelling_config(wildcards.store),
        version=versions.LABEL,
    message:
        "Label {wildcards.store}, batch {wildcards.batch}"
    shell:
        "cliptex --log {log} --threads {threads} label --store {wildcards.store} --batch {wildcards.batch}"
        " --config {params.config:q}"


rule index_labels:
    input:
        shards="results/shards/index.json",
        batches=[
            f"results/labels/{{store}}/batch-{batch:03d}.json"
            for batch in range(num_batches(CONFIG))
        ],
    output:
        report(
            "results/labels/{store}/index.json",
            caption="../report/labels.rst",
            category="Pseudo-labels",
            labels={"label store": "{store}"},
        ),
    log:
        "logs/index_labels/{store}.log",
    benchmark:
        "results/timings/index_labels/{store}.tsv"
    priority: 60
    # too short for a job on a cluster
    localrule: MINIATURE
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="4GB",
        runtime="1h",
    params:
        config=lambda wildcards: labelling_config(wildcards.store),
        version=versions.LABEL,
    message:
        "Check and index labels {wildcards.store}"
    shell:
        "cliptex --log {log} index-labels --store {wildcards.store} --config {params.config:q}"


# Only for a configuration with several stores of one task.
AGREEMENT = ["results/labels/agreement.json"] if pairs_of_stores(CONFIG) else []


rule label_agreement:
    input:
        shards="results/shards/index.json",
        labels=sorted(
            {
                f"results/labels/{store}/index.json"
                for pair in pairs_of_stores(CONFIG)
                for store in pair
            }
        ),
    output:
        "results/labels/agreement.json",
    log:
        "logs/label_agreement.log",
    benchmark:
        "results/timings/label_agreement/all.tsv"
    # too short for a job on a cluster
    localrule: MINIATURE
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="4GB",
        runtime="30m",
    params:
        config=subset("label_stores", "experts", "labels"),
        version=versions.LABEL,
    message:
        "Compare label stores of one task"
    shell:
        "cliptex --log {log} labels agreement --config {params.config:q}"
