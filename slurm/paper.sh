#!/usr/bin/env bash
# The whole study as a chain of arrays, on a login node: slurm/paper.sh [key=value ...]
# Each stage starts when the one before is done well, and is removed from the queue when that fails. Options of sbatch that
# all jobs need: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_QOS in the environment. tools/submit.py does the same with one
# job a configuration, leaves out what is done, and takes all that is a cluster's own from conf/site/.
set -euo pipefail
cd "$(dirname "$0")/.."

after=()
queue() {
  local id
  id=$(sbatch --parsable "${after[@]}" "$@")
  id=${id%%;*} # without the cluster's name
  after=("--dependency=afterok:$id" --kill-on-invalid-dep=yes)
  echo "$id: $1"
}

queue slurm/pretrain.sbatch "$@"
queue slurm/match.sbatch "$@"
queue slurm/generate.sbatch "$@"
queue slurm/evaluate_array.sbatch "$@"
queue slurm/collect.sbatch "$@"
