#!/bin/sh
# SLURM, its accounting and what both need, on Debian or Ubuntu. Starts nothing; as root.
set -eu
export DEBIAN_FRONTEND=noninteractive
packages="slurm-wlm slurmdbd munge mariadb-server"
apt-get install --yes --quiet=2 --no-install-recommends $packages || {
    apt-get update --quiet=2
    apt-get install --yes --quiet=2 --no-install-recommends $packages
}
