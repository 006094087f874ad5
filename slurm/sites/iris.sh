# shellcheck shell=bash
# Iris (ULHPC): GPU nodes with 4 x V100 and 28 cores, at most 4 nodes and 48 h in partition gpu; modules on compute
# nodes only.
#   SITE=iris sbatch --partition=gpu --nodes=2 --cpus-per-task=7 slurm/segformer_train.sh
#   SITE=iris sbatch --partition=gpu --qos=besteffort --constraint=volta32 --cpus-per-task=7 slurm/segformer_train.sh
# Jobs in qos besteffort are preempted without grace: let CHECKPOINT_EVERY save often. V100 has no bf16: use
# PRECISION=fp16 or fp32. From the user documentation (hpc-docs.uni.lu: GPU nodes, qos, signals); not run there.

load_modules lang/Python
# SCRATCH is set by the site: /scratch/users/<login>, files older than 60 days are removed.
export LOCAL_SCRATCH="${LOCAL_SCRATCH:-/tmp}"
