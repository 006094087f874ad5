# shellcheck shell=bash
# What the batch scripts share. Sourced, with the working folder at the project's root.

fail() {
    echo "error: $*" >&2
    exit 2
}

[[ ${SLURM_JOB_NAME:-job} =~ ^[A-Za-z0-9._-]{1,64}$ ]] ||
    fail "job name '$SLURM_JOB_NAME': use up to 64 letters, digits, '.', '_', '-' (sbatch --job-name=NAME)"

SITE="${SITE:-generic}"

load_modules() {
    # sbatch starts no login shell, and that is what defines `module`.
    local path="$PATH"
    if [[ $(type -t module) != function && -r /etc/profile ]]; then
        # shellcheck disable=SC1091
        source /etc/profile
        PATH="$path:$PATH"
    fi
    if [[ $(type -t module) != function ]]; then
        echo "SITE=$SITE: there is no module command on $HOSTNAME; continuing without $*"
        return
    fi
    module load "$@" || fail "SITE=$SITE: no modules $*; name others in slurm/sites/$SITE.sh (module avail Python)"
}

# Site: modules, scratch, network interface.
site="slurm/sites/$SITE.sh"
[[ $SITE =~ ^[A-Za-z0-9_-]+$ && -f $site ]] ||
    fail "SITE=$SITE: there is no $site; there are: $(cd slurm/sites && echo *.sh | sed 's/\.sh//g')"
# shellcheck source=slurm/sites/generic.sh
source "$site"

# Caches of Python packages are large and a home quota is small: they go to SCRATCH_DIR, else into the project.
scratch="${SCRATCH_DIR:-${SCRATCH:-$PWD}}/.cache"
export XDG_CACHE_HOME="${XDG_CACHE_HOME:-$scratch}"
export PIP_CACHE_DIR="${PIP_CACHE_DIR:-$scratch/pip}"
export HF_HOME="${HF_HOME:-$scratch/huggingface}"
export TORCH_HOME="${TORCH_HOME:-$scratch/torch}"
export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$scratch/torch_extensions}"
# What is compiled for a GPU stays on its node: the ranks of a node share it, and no two nodes write one file.
compiled="${SLURM_TMPDIR:-/tmp}/segformer-spark-$UID"
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$compiled/triton}"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$compiled/inductor}"
export MPLCONFIGDIR="${MPLCONFIGDIR:-$scratch/matplotlib}"

# Compute nodes have no internet: everything was fetched before.
export HF_HUB_OFFLINE=1
export NO_ALBUMENTATIONS_UPDATE=1
export PYTHONUNBUFFERED=1
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

environment="${VENV:-$PWD/.venv}"
python="$environment/bin/python"
case "${STAGE_ENV:-0}" in
    0)
        [[ -x $python ]] || fail "there is no Python environment at $environment; run 'make install VENV=...' and set VENV"
        ;;
    1)
        [[ -f $environment.tar ]] ||
            fail "STAGE_ENV=1: there is no $environment.tar; make it once: make env-archive VENV=$environment"
        [[ ! $environment/.installed -nt $environment.tar ]] ||
            fail "STAGE_ENV=1: $environment.tar is older than what is installed; make env-archive VENV=$environment"
        ;;
    *) fail "STAGE_ENV=$STAGE_ENV: set 1 to unpack the environment to the nodes, 0 to use it on shared storage" ;;
esac

# An array's bare job ids may mean all of its tasks.
job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID:-}}"
job="${job:-${SLURM_JOB_ID:-}}"
nodes="${SLURM_JOB_NUM_NODES:-1}"
gpus="${SLURM_GPUS_ON_NODE:-0}"
# One task per GPU; without GPUs as many as sbatch was told.
tasks_per_node="${SLURM_NTASKS_PER_NODE:-1}"
if ((gpus > 0)); then
    tasks_per_node="$gpus"
fi
if [[ -z ${SLURM_JOB_END_TIME:-} && -n ${SLURM_JOB_ID:-} ]]; then
    # SLURM sets it from 23.02 on. Time left ([days-][hours:]minutes:seconds) does not depend on SLURM_TIME_FORMAT.
    left=$(squeue --noheader --job "$job" --format %L 2>/dev/null)
    if [[ $left =~ ^(([0-9]+)-)?(([0-9]+):)?([0-9]+):([0-9]+)$ ]]; then
        left=$((10#${BASH_REMATCH[2]:-0} * 86400 + 10#${BASH_REMATCH[4]:-0} * 3600 + 10#${BASH_REMATCH[5]} * 60))
        export SLURM_JOB_END_TIME=$(($(date +%s) + left + 10#${BASH_REMATCH[6]}))
    fi
fi

# scancel ends the script as well as the step; it stays to say how the job ended.
trap 'true' TERM

announce() {
    echo "== $* == job ${SLURM_JOB_ID:-?}, attempt $((${SLURM_RESTART_COUNT:-0} + 1)), $nodes node(s) x $tasks_per_node" \
        "task(s): ${SLURM_JOB_NODELIST:-$HOSTNAME}, $(date --utc '+%Y-%m-%d %H:%M:%S') UTC"
    [[ ${STAGE_ENV:-0} == 0 ]] || stage_env
}

in_step() {
    # In the background, since bash runs traps only between commands.
    local step status last
    srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" "$@" &
    step=$!
    wait "$step"
    status=$?
    # A trap ends a wait, too; the step continues then.
    while kill -0 "$step" 2>/dev/null; do
        wait "$step"
        status=$?
    done
    # Bash remembers how it ended; 127 says that it was told already.
    wait "$step" 2>/dev/null
    last=$?
    ((last == 127)) || status=$last
    return "$status"
}

once_per_node() {
    # A node that fails does not keep the others from saying what is wrong with them.
    in_step --kill-on-bad-exit=0 --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 "$@"
}

stage_env() {
    # Every rank looks for thousands of files when it starts. An archive is read once per node, from end to end.
    staged="${LOCAL_SCRATCH:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}/segformer_spark-env-${SLURM_JOB_ID:-local}"
    if once_per_node slurm/stage_env.sh unpack "$environment.tar" "$staged"; then
        # Where SLURM ends the job it starts no step any more; the next job on the node removes the folder.
        trap 'once_per_node slurm/stage_env.sh remove "$staged" 2>/dev/null' EXIT
        python="$staged/bin/python"
    elif [[ -x $python ]]; then
        echo "STAGE_ENV=1: not on every node, see above: all use the environment on shared storage"
    else
        fail "STAGE_ENV=1: not on every node, see above, and there is no environment at $environment"
    fi
}

on_all_ranks() {
    # No --gpus-per-task: all GPUs of a node stay visible to its tasks, and each takes the one of its local rank. NCCL
    # finds NVLink only between devices that it sees (NVIDIA/nccl#1066).
    # A rank that fails ends the others: they would wait for it.
    in_step --kill-on-bad-exit=1 --nodes="$nodes" --ntasks="$((nodes * tasks_per_node))" \
        --ntasks-per-node="$tasks_per_node" "$python" -m segformer_spark "$@"
}

on_all_ranks_in_place() {
    # Each task is an agent that starts its rank, and again after a fault. What srun is to do when one is gone: end all,
    # or with spare nodes nothing, as the others go on without it.
    local spare="${SPARE_NODES:-0}" gone=(--kill-on-bad-exit=1)
    [[ $spare =~ ^[0-9]{1,4}$ ]] || fail "SPARE_NODES=$spare: give the number of nodes that wait for a lost one"
    ((spare == 0)) || gone=(--kill-on-bad-exit=0 --no-kill --wait=0)
    JOB_AGENT_KEY="$(od -An -N16 -tx1 /dev/urandom | tr -d ' ')" in_step "${gone[@]}" --nodes="$nodes" \
        --ntasks="$((nodes * tasks_per_node))" --ntasks-per-node="$tasks_per_node" \
        "$python" -m segformer_spark job supervise --tasks-per-node "$tasks_per_node" --spare-nodes "$spare" -- "$@"
}

on_every_node() {
    once_per_node "$python" -m segformer_spark "$@"
}

on_this_node() {
    "$python" -m segformer_spark "$@"
}

preflight() {
    # One second per node: versions, GPUs, storage, data, weights. What is wrong is said with the node's name.
    local word status
    word=$(on_this_node doctor --fingerprint "$@") || return
    on_every_node doctor --quick --expect "$word" "$@"
    status=$?
    if ((status > 0 && status <= 128)); then
        echo "not started: a node is not fit, see the lines above with its name" \
            "(leave it out with sbatch --exclude=NODE; look closer with sbatch slurm/segformer_doctor.sh)"
    fi
    return "$status"
}

stage_data() {
    [[ ${STAGE_DATA:-0} == 0 ]] || on_every_node job stage "$@"
}

unstage_data() {
    [[ ${STAGE_DATA:-0} == 0 ]] || on_every_node job unstage "$@"
}

train_and_requeue() {
    # Trains, and puts the job into the queue again where that helps; "$@" names the configuration for every step.
    local status verdict
    preflight "$@" && stage_data "$@"
    status=$?
    if ((status == 0)); then
        case "${RESTART_IN_PLACE:-1}" in
            1) on_all_ranks_in_place train "$@" ;;
            0) on_all_ranks train "$@" ;;
            *) fail "RESTART_IN_PLACE=$RESTART_IN_PLACE: set 0 to requeue after every fault, 1 to restart in place first" ;;
        esac
        status=$?
    elif ((status <= 128)); then
        unstage_data "$@"
        exit "$status"
    fi
    # Above 128 a signal ended it: what came before training may be preempted, too.
    on_this_node job requeue --status "$status" "$@"
    verdict=$?
    case "$verdict" in
        10 | 11) unstage_data "$@" ;; # complete, or given up
        12) [[ ${STAGE_DATA:-0} == 0 ]] || on_this_node job unstage "$@" ;; # SLURM starts no step any more
    esac
    # srun says 0 also when it loses a node: what waits for this job must not begin.
    ((status == 0 && verdict != 10)) && status=87
    # With spare nodes the agents of a lost one leave with its status, and training is complete all the same.
    ((verdict == 10)) && status=0
    exit "$status"
}

requeue_if_cut_off() {
    # For work that can simply run again: after a lost node or a signal, not after an error.
    if (($1 != 0)) && on_this_node job requeue --resumable --status "$1" --from-env; then
        exit "$1"
    fi
}

finish() {
    # finish STATUS WHAT NEXT: the log's last lines.
    if scontrol -o show job "$job" 2>/dev/null | grep -qE ' JobState=(COMPLETING|CANCELLED|NODE_FAIL|PREEMPTED) '; then
        # srun says 0 also when it loses a node.
        echo "not done: $2. SLURM is ending this job; after a lost node or a preemption it requeues it by itself"
    elif (($1 == 0)); then
        echo "done: $2. Next: $3"
    else
        echo "failed: $2 (status $1). The reason is above; lines of other ranks than 0 name rank and host"
    fi
    exit "$1"
}
