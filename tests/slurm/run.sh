#!/usr/bin/env bash
# The tests on a real Slurm: installed from Debian's packages where it may, brought up, used, taken down.
# Skipped with a reason where it cannot. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/../.."
skip() { echo "test-slurm: skipped: $*"; exit 0; }

[ "$(uname -s)" = Linux ] || skip "needs Linux"
[ "$(id -u)" = 0 ] || skip "needs root, to start the daemons of a cluster"
missing() { for program in slurmctld slurmd munged slurmdbd mariadbd ip; do command -v $program >/dev/null || return 0; done; return 1; }
if missing; then
  command -v apt-get >/dev/null || skip "Slurm is not installed and there is no apt-get"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client \
      slurm-wlm-basic-plugins munge slurmdbd mariadb-server iproute2; } >/dev/null 2>&1 || skip "apt-get could not install Slurm"
fi
# A file system of NFS's kind for the tests that ask for one; without it they use an ordinary one.
command -v bindfs >/dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends bindfs fuse3 >/dev/null 2>&1 || true
[ ! -e /etc/slurm/slurm.conf ] || [ -L /etc/slurm/slurm.conf ] || skip "/etc/slurm/slurm.conf belongs to another cluster"
# One at a time: /etc/slurm leads to one cluster. Held by this process alone, not by the daemons.
if [ -z "${POST_TRAINING_NO_NETWORK:-}" ]; then
  exec 9>/tmp/post-training-test-slurm.lock
  flock --wait 3600 9
fi

# Without any network but loopback: what needs one fails here.
if [ -z "${POST_TRAINING_NO_NETWORK:-}" ] && unshare --net true 2>/dev/null && command -v ip >/dev/null; then
  POST_TRAINING_NO_NETWORK=1 exec unshare --net "$0" "$@"
fi
if [ -n "${POST_TRAINING_NO_NETWORK:-}" ]; then
  ip link set lo up
  # slurmctld listens only where an address is not loopback's; this one leads nowhere.
  ip address add 192.0.2.9/32 dev lo
fi

CL_DIR=$(mktemp -d /tmp/slurm-test.XXXX)
export CL_DIR CL_NODES=3 CL_GPUS=4 CL_CPUS=16 CL_MEM=16000
down() { tests/slurm/cluster.sh down --purge >/dev/null 2>&1 || true; }
trap down EXIT
python=${PYTHON:-.venv/bin/python}
export POST_TRAINING_TEST_CLUSTER=1 OMP_NUM_THREADS=1 PYTHONPATH=$PWD/src

# With arguments it may be that nothing of one kind is meant: 5 is pytest's code for that.
arguments=("$@")
run_tests() { $python -m pytest tests/slurm --durations=10 "$@" "${arguments[@]}" 9>&- || [ $? = 5 -a ${#arguments[@]} -gt 0 ]; }
echo "== with accounting"
CL_DB=1 tests/slurm/cluster.sh up 9>&-
run_tests -m "not alone" -n 2 --dist loadfile  # jobs wait more than they work
run_tests -m alone
CL_DB=1 tests/slurm/cluster.sh down >/dev/null
echo "== without accounting"
CL_DB=0 tests/slurm/cluster.sh up 9>&-
run_tests -m without_accounting
