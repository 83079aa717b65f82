#!/bin/bash
# user-llm launch render configs/quickstart.py --target slurm --nodes 2 --gpus 8 --mesh.fsdp 8 --run-dir runs/quickstart --out launch/slurm.sh
# sbatch FILE
#SBATCH --job-name=quickstart
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@300

trap : TERM # the script outlives its processes, which are sent it too
export JAX_COMPILATION_CACHE_DIR=runs/cache

code=0
srun --kill-on-bad-exit=0 user-llm run configs/quickstart.py --run-dir runs/quickstart --mesh.fsdp 8 || code=$?

restarts=${SLURM_RESTART_COUNT:-0}
if ((code == 42 || code >= 127)); then
  if ((restarts < 100)); then
    echo "exit code $code: starts anew, after $restarts restarts" >&2
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "exit code $code: gives up after $restarts restarts" >&2
  fi
fi
exit "$code"
