#!/usr/bin/env bash
# Anomaly scores of runs, or of every finished run of a study, joined in one table (docs/anomaly.md):
#   DATA_ROOT=/scratch/street_hazards sbatch slurm/segformer_anomaly.sh --study configs/study/b_street_hazards.yaml
#   DATA_ROOT=/scratch/street_hazards sbatch slurm/segformer_anomaly.sh runs/one runs/two
# Statistics of training data are fitted first, for the scores that need them; then all scores are evaluated.
#SBATCH --job-name=segformer-anomaly
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=06:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue

cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}" || exit 2
# shellcheck source=slurm/common.sh
source slurm/common.sh || {
    echo "error: submit from the project's root folder: sbatch slurm/segformer_anomaly.sh RUN..." >&2
    exit 2
}
(($# > 0)) || fail "which runs? sbatch slurm/segformer_anomaly.sh RUN..., or --study configs/study/NAME.yaml"
announce "anomaly scores of $*"

on_this_node anomaly fit "$@" --from-env && on_this_node anomaly eval "$@" --methods all --from-env
finish "$?" "$*" "the table is in the study's folder, or in anomaly/"
