# Image-text retrieval on captioned images, and the miniature's rendered ones.


rule render_captions:
    output:
        tar="resources/{captions}/00000.tar",
        record="resources/{captions}/miniature.json",
    log:
        "logs/render_captions/{captions}.log",
    benchmark:
        "results/timings/render_captions/{captions}.tsv"
    wildcard_constraints:
        captions="|".join(
            name
            for name in CONFIG.zeroshot.caption_sets
            if CONFIG.zeroshot.retrieval[name].rendered
        )
        or NONE,
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="1GB",
        runtime="30m",
    params:
        config=subset("miniature", "zeroshot.retrieval.{captions}"),
        version=versions.RENDER,
    message:
        "Render captioned images {wildcards.captions}"
    shell:
        "cliptex --log {log} --threads {threads} render-captions --name {wildcards.captions}"
        " --config {params.config:q}"


rule retrieval:
    input:
        tars=lambda wildcards: map(str, caption_tars(CONFIG, wildcards.captions)),
        data=lambda wildcards: MARKS.get(
            CONFIG.zeroshot.retrieval[wildcards.captions].benchmark, []
        ),
        encoders=[weights(model, seed) for model in COMPARED for seed in CONFIG.seeds],
    output:
        report(
            "results/zeroshot/{captions}.json",
            caption="../report/retrieval.rst",
            category="Results",
            subcategory="Retrieval",
            labels={"benchmark": "{captions}"},
        ),
        "results/zeroshot/{captions}.per_image.npz",
    log:
        "logs/retrieval/{captions}.log",
    benchmark:
        "results/timings/retrieval/{captions}.tsv"
    wildcard_constraints:
        captions="|".join(CONFIG.zeroshot.caption_sets) or NONE,
    priority: 10
    conda:
        "../../envs/cliptex.yaml"
    resources:
        mem="8GB",
        runtime="4h",
        gpu=1,
    params:
        config=subset(
            "zeroshot.retrieval.{captions}",
            "zeroshot.precision",
            "probes.save_predictions",
            "probes.models",
            "probes.baselines",
            "seeds",
            "models",
        ),
        version=versions.RETRIEVAL,
    message:
        "Evaluate retrieval on {wildcards.captions}"
    shell:
        "cliptex --log {log} --threads {threads} retrieval --name {wildcards.captions} --config {params.config:q}"
