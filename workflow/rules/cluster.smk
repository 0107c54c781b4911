# For clusters: fetch everything from the internet before the run, and check the machines that jobs run on.

import time


rule fetch:
    # on a machine with internet, before the run: snakemake --cores 8 fetch
    input:
        FETCHED_SHARDS if needs_pairs(CONFIG) else [],
        [
            MARKS[name]
            for name in benchmarks_in_use(CONFIG)
            if CONFIG.benchmark_source(name).source != "miniature"
        ],
        [mark for marks in PART_MARKS.values() for mark in marks],
        # of the experts that label
        [
            f"results/experts/{expert}/expert.json"
            for expert in FETCHED
            if expert in {store.expert for store in STUDY.label_stores.values()}
        ],
        [f"resources/published_labels/{store}/set.json" for store in TAKEN],
        [
            fetched_student(name)
            for name, model in STUDY.models.items()
            if not model.sources()
        ],
    localrule: True


for kind in ("cpu", "label", "train", "probe"):

    rule:
        name:
            f"doctor_{kind}"
        output:
            f"results/doctor/{kind}.json",
        log:
            f"logs/doctor/{kind}.log",
        conda:
            "../../envs/cliptex.yaml"
        resources:
            mem="4GB",
            runtime="10m",
            gpu=0 if kind == "cpu" else 1,
        params:
            # rerun at every call, since the machines may have changed
            time=time.time(),
            kind=f"--kind {kind}" + ("" if kind == "cpu" else " --gpu"),
            submission=submission,
            config=subset(*type(CONFIG).model_fields),
        message:
            f"Check a machine for {kind} jobs"
        # failed checks are in the output, which rule doctor reads; only a missing output is an error here
        shell:
            "cliptex --log {log} doctor {params.kind} {params.submission:q} --out {output} --config {params.config:q} || test -s {output}"


rule doctor:
    input:
        expand("results/doctor/{kind}.json", kind=("cpu", "label", "train", "probe")),
    output:
        "results/doctor.json",
    log:
        "logs/doctor/all.log",
    retries: 0
    localrule: True
    conda:
        "../../envs/cliptex.yaml"
    params:
        submission=submission,
        config=subset(*type(CONFIG).model_fields),
    message:
        "Check the machines"
    shell:
        "cliptex --log {log} doctor {params.submission:q} --out {output} --config {params.config:q} {input}"
