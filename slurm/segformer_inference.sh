#!/usr/bin/env bash
# Predicts the test images and writes the submission zip; submit it again to continue where it was cut off:
#   MODEL_PATH=runs/spark_b2_512/best TEST_IMAGES=data/spark/stream-1-test sbatch slurm/segformer_inference.sh
# Without TEST_IMAGES: stream-1-test in the data set's folder of the run.
#SBATCH --job-name=segformer-inference
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
    echo "error: submit from the project's root folder: sbatch slurm/segformer_inference.sh" >&2
    exit 2
}
: "${MODEL_PATH:?set MODEL_PATH to a run or model, as in MODEL_PATH=runs/NAME/best}"
announce inference

on_all_ranks submit --from-env
status=$?
requeue_if_cut_off "$status"
finish "$status" "inference with $MODEL_PATH" 'upload the submission.zip named above'
