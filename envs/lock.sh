#!/usr/bin/env bash
# Update all lock files, or those of some roles: envs/lock.sh [ROLE ...]
# Needs uv (pip install uv). The locks are for Linux on x86-64 and the oldest supported Python, with the SHA-256 of every file.
set -euo pipefail
cd "$(dirname "$0")/.."
for role in "${@:-cliptex clip_benchmark docs download slurm test}"; do
    for name in $role; do
        given=(pyproject.toml)
        case $name in
            cliptex) ;;
            download) given=(-) ;; # this environment does not contain the package
            *) given+=(--extra "${name//_/-}") ;;
        esac
        { [ "$name" != download ] || echo 'img2dataset>=1.47,<2'; } |
            uv pip compile "${given[@]}" --quiet --generate-hashes --no-annotate --python-version 3.11 \
                --python-platform x86_64-manylinux_2_28 --custom-compile-command "envs/lock.sh $name" -o "envs/$name.lock.txt"
    done
done
