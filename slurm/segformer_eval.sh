#!/usr/bin/env bash
# Evaluates a model on its validation split:
#   MODEL_PATH=runs/spark_b2_512/best sbatch slurm/segformer_eval.sh
#   MODEL_PATH=runs/spark_b2_512/best TTA=flips CROPS=two_pass sbatch slurm/segformer_eval.sh
#SBATCH --job-name=segformer-eval
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=02:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue

cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}" || exit 2
# shellcheck source=slurm/common.sh
source slurm/common.sh || {
    echo "error: submit from the project's root folder: sbatch slurm/segformer_eval.sh" >&2
    exit 2
}
: "${MODEL_PATH:?set MODEL_PATH to a run or model, as in MODEL_PATH=runs/NAME/best}"
announce evaluate

on_all_ranks evaluate --from-env
status=$?
requeue_if_cut_off "$status"
finish "$status" "evaluate $MODEL_PATH" 'look at results.json and worst/ in the folder named above'
