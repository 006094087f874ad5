#!/usr/bin/env bash
# Reads every file of the data set once, writes the manifest and the cache of the training split; no GPU:
#   DATA_ROOT=/scratch/spark CACHE_DIR=/scratch/cache CACHE_SIZE=512 sbatch slurm/prepare_data.sh
# Submitted again, it continues where it was cut off. Then train with DATA_CACHE=<CACHE_DIR>.
#SBATCH --job-name=prepare-data
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue

cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}" || exit 2
# shellcheck source=slurm/common.sh
source slurm/common.sh || {
    echo "error: submit from the project's root folder: sbatch slurm/prepare_data.sh" >&2
    exit 2
}
announce 'prepare data'

config="${CONFIG:-configs/spark_${SEGFORMER_VARIANT:-b2}.yaml}"
cache=()
[[ -z ${CACHE_DIR:-} ]] || cache=(--output "$CACHE_DIR")
workers="${SLURM_CPUS_PER_TASK:-4}"
in_step --nodes=1 --ntasks=1 "$python" -m segformer_spark data check --config "$config" --from-env \
    --num-workers "$workers" &&
    in_step --nodes=1 --ntasks=1 "$python" -m segformer_spark data cache --config "$config" --from-env \
        --num-workers "$workers" "${cache[@]}" --size "${CACHE_SIZE:-native}" --verify
status=$?
finish "$status" 'prepare data' "train from the cache: DATA_CACHE=<the folder named above> sbatch slurm/segformer_train.sh"
