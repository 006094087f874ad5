# shellcheck shell=bash
# MeluXina (LuxProvide): GPU nodes with 4 x A100-40GB and 64 cores, given as whole nodes; modules on compute nodes only.
#   SITE=meluxina sbatch --account=p200000 --partition=gpu --qos=default --nodes=2 --cpus-per-task=16 \
#       --hint=nomultithread slurm/segformer_train.sh
# Two hardware threads per core are visible; loaders and torch want cores, hence the hint.
# Account and qos are always required; qos default: 48 h, short: 6 h, test: 30 min, dev needs a reservation.
# From the user documentation (docs.lxp.lu: quick start, system overview); not run there.

load_modules env/release/2024.1 Python/3.12.3-GCCcore-13.3.0
# Scratch storage of the project: /project/scratch/<account>.
account="${SLURM_JOB_ACCOUNT:-${SBATCH_ACCOUNT:-}}"
if [[ -z ${SCRATCH_DIR:-} && -d /project/scratch/$account && -n $account ]]; then
    export SCRATCH_DIR="/project/scratch/$account/${USER:-$(id -un)}"
fi
export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-ib0}"
export GLOO_SOCKET_IFNAME="${GLOO_SOCKET_IFNAME:-ib0}"
