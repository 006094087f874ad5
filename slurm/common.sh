# shellcheck shell=bash
# What the batch scripts share. Sourced, with the working folder at the project's root.

# Caches of Python packages are large and a home quota is small: they go to SCRATCH_DIR, else into the project.
scratch="${SCRATCH_DIR:-${SCRATCH:-$PWD}}/.cache"
export XDG_CACHE_HOME="${XDG_CACHE_HOME:-$scratch}"
export PIP_CACHE_DIR="${PIP_CACHE_DIR:-$scratch/pip}"
export HF_HOME="${HF_HOME:-$scratch/huggingface}"
export TORCH_HOME="${TORCH_HOME:-$scratch/torch}"
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$scratch/triton}"
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$scratch/torch_extensions}"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$scratch/inductor}"
export MPLCONFIGDIR="${MPLCONFIGDIR:-$scratch/matplotlib}"

# Compute nodes have no internet: everything was fetched before.
export HF_HUB_OFFLINE=1
export NO_ALBUMENTATIONS_UPDATE=1
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

python="${VENV:-$PWD/.venv}/bin/python"
if [[ ! -x $python ]]; then
    echo "error: there is no Python environment at ${VENV:-$PWD/.venv}; run 'make install VENV=...' and set VENV" >&2
    exit 2
fi

on_all_ranks() {
    # srun does not take --cpus-per-task from sbatch; one dead rank ends all.
    srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$python" -m segformer_spark "$@"
}
