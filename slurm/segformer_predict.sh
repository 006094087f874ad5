#!/usr/bin/env bash
# Masks for images without labels; submit it again to continue where it was cut off:
#   MODEL_PATH=runs/leaves PREDICT_IMAGES=new_photos sbatch slurm/segformer_predict.sh
# Several images, folders or patterns are separated by colons. Results: OUTPUT, else predictions/ in the run.
#SBATCH --job-name=segformer-predict
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=02:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@60

cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}" || exit 2
# shellcheck source=slurm/common.sh
source slurm/common.sh || {
    echo "error: submit from the project's root folder: sbatch slurm/segformer_predict.sh" >&2
    exit 2
}
: "${MODEL_PATH:?set MODEL_PATH to a run or model, as in MODEL_PATH=runs/NAME}"
: "${PREDICT_IMAGES:?set PREDICT_IMAGES to images or folders, as in PREDICT_IMAGES=new_photos}"
announce predict

on_all_ranks predict --from-env
status=$?
requeue_if_cut_off "$status"
finish "$status" "prediction with $MODEL_PATH" 'look at overlay/ and predictions.csv in the folder named above'
