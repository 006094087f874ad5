#!/usr/bin/env bash
# Checks every node and rank of a job as training would be given: versions, GPUs, all-reduce, storage, data, weights.
#   sbatch --nodes=4 slurm/segformer_doctor.sh
#   CONFIG=configs/spark_b5.yaml sbatch --nodes=2 slurm/segformer_doctor.sh
#SBATCH --job-name=segformer-doctor
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=00:15:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append

cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}" || exit 2
# shellcheck source=slurm/common.sh
source slurm/common.sh || {
    echo "error: submit from the project's root folder: sbatch slurm/segformer_doctor.sh" >&2
    exit 2
}
announce doctor

config="${CONFIG:-configs/spark_${SEGFORMER_VARIANT:-b2}.yaml}"
on_all_ranks doctor --job --config "$config" --from-env
status=$?
finish "$status" 'doctor' 'train: sbatch slurm/segformer_train.sh'
