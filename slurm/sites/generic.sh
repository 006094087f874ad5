# shellcheck shell=bash
# Any cluster: the environment in VENV needs nothing but its Python. Copy this file to name your own site.
#
#   load_modules Python/3.12 CUDA/12.6
#   export SCRATCH_DIR="${SCRATCH_DIR:-/scratch/$USER}"
#   export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-ib0}"
:
