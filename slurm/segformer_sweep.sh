#!/usr/bin/env bash
# Trains the runs of a sweep, one array task each; submitted again with RESUME=auto it finishes what is missing:
#   segformer-spark sweep configs/sweeps/lr_seed.yaml
#   sbatch --array=0-7%2 slurm/segformer_sweep.sh configs/sweeps/lr_seed.yaml
#SBATCH --job-name=segformer-sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@180

cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}" || exit 2
# shellcheck source=slurm/common.sh
source slurm/common.sh || {
    echo "error: submit from the project's root folder: sbatch --array=0-7 slurm/segformer_sweep.sh SWEEP.yaml" >&2
    exit 2
}
sweep="${1:?which sweep? sbatch --array=0-7 slurm/segformer_sweep.sh configs/sweeps/NAME.yaml}"
: "${SLURM_ARRAY_TASK_ID:?submit it as an array: sbatch --array=0-7 slurm/segformer_sweep.sh $sweep}"
announce "sweep $sweep, run $SLURM_ARRAY_TASK_ID"

train_and_requeue --sweep "$sweep" --sweep-index "$SLURM_ARRAY_TASK_ID" --from-env
