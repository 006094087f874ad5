#!/usr/bin/env bash
# Runs the tests that want a GPU and the benchmarks on one GPU of the partition, in under ten minutes; writes
# gpu_check/gpu_check.json and a table for docs/performance.md.
#   sbatch slurm/gpu_check.sh
#SBATCH --job-name=segformer-gpu-check
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=00:20:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append

cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}" || exit 2
# shellcheck source=slurm/common.sh
source slurm/common.sh || {
    echo "error: submit from the project's root folder: sbatch slurm/gpu_check.sh" >&2
    exit 2
}
announce 'GPU check'

in_step --nodes=1 --ntasks=1 "$python" -m segformer_spark.bench.gpu_check
status=$?
finish "$status" 'GPU check' 'look: gpu_check/gpu_check.md'
