#!/usr/bin/env bash
# Makes the locks anew, all of them or those of the roles named: envs/lock.sh [ROLE ...]
# Needs uv (pip install uv). Linux on x86-64, from the oldest Python that is supported; every file has its SHA-256.
set -euo pipefail
cd "$(dirname "$0")/.."
for role in "${@:-cliptex clip_benchmark docs download slurm test}"; do
    for name in $role; do
        given=(pyproject.toml)
        case $name in
            cliptex) ;;
            download) given=(-) ;; # an environment without the package
            *) given+=(--extra "${name//_/-}") ;;
        esac
        { [ "$name" != download ] || echo 'img2dataset>=1.47,<2'; } |
            uv pip compile "${given[@]}" --quiet --generate-hashes --no-annotate --python-version 3.11 \
                --python-platform x86_64-manylinux_2_28 --custom-compile-command "envs/lock.sh $name" -o "envs/$name.lock.txt"
    done
done
