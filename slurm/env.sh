# shellcheck shell=bash
# What every job on a node needs. Sourced by the templates beside it, and by the jobs that dilm submits.

# Modules, and the Python environment: the repository's own where none is active.
# module load cuda
if [ -z "${VIRTUAL_ENV:-}" ] && [ -f .venv/bin/activate ]; then
  # shellcheck disable=SC1091
  source .venv/bin/activate
fi

# Slurm 22.05 to 23.02: srun doesn't inherit --cpus-per-task.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
  export SRUN_CPUS_PER_TASK="${SRUN_CPUS_PER_TASK:-$SLURM_CPUS_PER_TASK}"
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK}"
fi

# One rank that fails ends the step, with its exit status; ranks that outlive the first by a minute are ended.
export SLURM_KILL_BAD_EXIT=1 SLURM_WAIT=60

# Nodes have no internet: `python -m dilm.prefetch` on the login node has brought everything. Caches that the login
# node and all nodes see, best on scratch, are named by DILM_CACHE and TMPDIR.
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1
# export DILM_CACHE=/scratch/$USER/dilm TMPDIR=/tmp

# Lustre and NFS often refuse locks; files that are whole under their final names need none.
export HDF5_USE_FILE_LOCKING=BEST_EFFORT

# Logs appear as they are written.
export PYTHONUNBUFFERED=1
