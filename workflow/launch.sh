#!/usr/bin/env bash
# launch.sh NODES GPUS VERB ...   `dreamllm VERB ...` in one process per GPU, on NODES nodes of a Slurm job, GPUS on each
set -euo pipefail
export NODES=$1 PROCESSES=$(($1 * $2)) CONFIG=${BASH_SOURCE[0]%/*}/accelerate.yaml
shift 2

if ((NODES == 1)); then # port 0: a free one, so that two trainings can share a machine
    exec accelerate launch --config_file "$CONFIG" --num_processes "$PROCESSES" --main_process_port 0 \
        --module dreamllm "$@"
fi
: "${SLURM_JOB_NODELIST:?machine.nodes is $NODES: more than one node needs a Slurm job, see docs/training.md}"
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # head would break the pipe
export FIRST PORT=$((20000 + SLURM_JOB_ID % 20000)) # on all nodes the same, and another one for another job
# shellcheck disable=SC2016  # to be expanded on each node
exec srun --nodes "$NODES" --ntasks "$NODES" --ntasks-per-node 1 --kill-on-bad-exit=1 bash -c '
    exec accelerate launch --config_file "$CONFIG" --num_processes "$PROCESSES" --num_machines "$NODES" \
        --machine_rank "$SLURM_PROCID" --main_process_ip "$FIRST" --main_process_port "$PORT" --module dreamllm "$@"
    ' launch "$@"
