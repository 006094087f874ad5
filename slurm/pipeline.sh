#!/usr/bin/env bash
# Submits prepare -> train -> evaluate -> inference, each after the one before has succeeded, and prints the job ids:
#   SEGFORMER_VARIANT=b3 DATA_ROOT=/scratch/spark slurm/pipeline.sh --account=PROJECT
# Options are passed to each sbatch; TRAIN_OPTIONS, as in TRAIN_OPTIONS='--nodes=4 --time=48:00:00', to training alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

config="${CONFIG:-configs/spark_${SEGFORMER_VARIANT:-b2}.yaml}"
# Asked with the settings that the jobs will have, so that a mistake is found before anything waits in the queue.
paths=$("${VENV:-$PWD/.venv}/bin/python" -m segformer_spark job paths --config "$config" --from-env)
run="${paths%%$'\n'*}" root="${paths##*$'\n'}"
export CACHE_DIR="${CACHE_DIR:-$root/cache}" TEST_IMAGES="${TEST_IMAGES:-$root/stream-1-test}"
if [[ ! -d $TEST_IMAGES ]]; then
    echo "error: there are no test images at $TEST_IMAGES; set DATA_ROOT or TEST_IMAGES" >&2
    exit 2
fi
bad=$("${VENV:-$PWD/.venv}/bin/python" -m segformer_spark doctor --excluded-nodes --names)
[[ -z $bad ]] || echo "left out, see segformer-spark doctor --excluded-nodes: $bad" >&2
IFS=' ' read -r -a train_options <<<"${TRAIN_OPTIONS:-}"

submit() { # submit NAME DEPENDENCY [OPTION...] SCRIPT
    local name="$1" after="$2" job
    shift 2
    job=$(sbatch --parsable ${bad:+--exclude="$bad"} ${after:+--dependency="afterok:$after" --kill-on-invalid-dep=yes} "$@")
    job="${job%%;*}"
    echo "$name: job $job${after:+, after $after}" >&2
    echo "$job"
}

prepare=$(submit 'prepare data' '' "$@" slurm/prepare_data.sh)
train=$(DATA_CACHE="$CACHE_DIR" submit train "$prepare" "$@" "${train_options[@]}" slurm/segformer_train.sh)
evaluate=$(MODEL_PATH="$run" submit evaluate "$train" "$@" slurm/segformer_eval.sh)
inference=$(MODEL_PATH="$run" submit inference "$evaluate" "$@" slurm/segformer_inference.sh)
echo "run: $run"
echo "jobs: $prepare $train $evaluate $inference"
echo "watch them with: squeue --jobs=$prepare,$train,$evaluate,$inference"
