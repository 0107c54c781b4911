"""A number a stage, raised when the same input would give another output.

The workflow hands them to the rules as params, so that a change here redoes the stage: Snakemake does not see
edits in a module that a rule only calls. Imports nothing, because the Snakefile is parsed in every job.
"""

RENDER = 2
FETCH = 1
EXPERT = 3
LABEL = 4
TRAIN = 6
PROBE = 7
FINETUNE = 3
ZEROSHOT = 4
RETRIEVAL = 3
TRAINING_FREE = 1
CLIP_BENCHMARK = 1
FEW_SHOT = 1
REPORT = 13
STUDY = 5
