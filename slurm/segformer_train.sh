#!/usr/bin/env bash
# Trains on as many nodes and GPUs as sbatch is given, one task per GPU:
#   SEGFORMER_VARIANT=b3 IMAGE_SIZE=640 sbatch --account=PROJECT slurm/segformer_train.sh
#   sbatch --nodes=4 slurm/segformer_train.sh
# Settings come from the environment (docs/configuration.md); account, partition, qos and time from sbatch's own
# options or SBATCH_* variables. Before the time limit the run saves, requeues itself and resumes.
#SBATCH --job-name=segformer-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@180

# sbatch runs a copy of this script: the project is found through the folder it was submitted from.
cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}" || exit 2
# shellcheck source=slurm/common.sh
source slurm/common.sh || {
    echo "error: submit from the project's root folder: sbatch slurm/segformer_train.sh" >&2
    exit 2
}

config="${CONFIG:-configs/spark_${SEGFORMER_VARIANT:-b2}.yaml}"
announce train

train_and_requeue --config "$config" --from-env
