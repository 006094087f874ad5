#!/usr/bin/env bash
# Measures training on 1, 2, 4 ... nodes of one job, and writes one CSV with a line for each:
#   sbatch --nodes=4 slurm/benchmark_scaling.sh
#   SEGFORMER_VARIANT=b0 OUTPUT=scaling_b0.csv sbatch --nodes=16 slurm/benchmark_scaling.sh
#SBATCH --job-name=benchmark-scaling
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=01:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append

cd "${SLURM_SUBMIT_DIR:?submit this script with sbatch}" || exit 2
# shellcheck source=slurm/common.sh
source slurm/common.sh || {
    echo "error: submit from the project's root folder: sbatch slurm/benchmark_scaling.sh" >&2
    exit 2
}
announce 'benchmark scaling'

config="${CONFIG:-configs/spark_${SEGFORMER_VARIANT:-b2}.yaml}"
table="${OUTPUT:-benchmark-scaling-${SLURM_JOB_ID:-local}.csv}"
all="$nodes" status=0
for ((nodes = 1; nodes <= all; nodes *= 2)); do
    on_all_ranks bench scaling --config "$config" --from-env --csv "$table"
    status=$?
    ((status == 0)) || break
done
finish "$status" 'benchmark scaling' "look at $table"
