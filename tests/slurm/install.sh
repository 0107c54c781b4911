#!/bin/sh
# SLURM, its accounting and what both need, on Debian or Ubuntu. Starts nothing; as root.
set -eu
fail() { echo "tests/slurm/install.sh: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "as root only"
command -v apt-get >/dev/null || fail "no apt-get here; the tests want Debian's or Ubuntu's packages"
export DEBIAN_FRONTEND=noninteractive
# a database that is no service, only the program; slurmd's tasks are bound by taskset, of util-linux
packages="slurmctld slurmd slurm-client slurmdbd munge mariadb-server-core mariadb-client-core util-linux"
apt="apt-get --yes --quiet=2 -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120"
$apt update || fail "apt-get update failed; are the registries of /etc/apt reachable?"
# daemons are started by the tests alone, not by the packages
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
$apt --no-install-recommends install $packages || fail "apt-get could not install: $packages"
