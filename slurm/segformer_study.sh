#!/usr/bin/env bash
# Evaluates what an array trained of a study, and writes its report; what is evaluated already is kept:
#   sbatch --array=0-6 slurm/segformer_sweep.sh configs/study/b_street_hazards.yaml
#   sbatch --dependency=afterany:JOB slurm/segformer_study.sh configs/study/b_street_hazards.yaml
# ABLATION=1 writes the report of an ablation.
#SBATCH --job-name=segformer-study
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
    echo "error: submit from the project's root folder: sbatch slurm/segformer_study.sh STUDY.yaml" >&2
    exit 2
}
study="${1:?which study? sbatch slurm/segformer_study.sh configs/study/NAME.yaml}"
verb=compare
[[ ${ABLATION:-0} == 0 ]] || verb=ablate
shift
announce "$verb $study"

on_this_node "$verb" report "$study" --from-env "$@"
finish "$?" "$study" "open studies/$(basename "$study" .yaml)/report.html"
