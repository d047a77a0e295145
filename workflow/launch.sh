#!/usr/bin/env bash
# launch.sh NODES GPUS [--job LOG] VERB ...   run `dreamllm VERB ...` with one process per GPU, on NODES nodes of a
# Slurm job with GPUS each, and measure it as timings.py says
#
# A Slurm job sees only its own GPUs. Without Slurm, Snakemake limits how many GPUs jobs use but does not assign them,
# so this script locks free ones until VERB ends: from CUDA_VISIBLE_DEVICES if it is set, else from all GPUs. Up to
# JOBS_PER_GPU jobs share a GPU; with the default, 1, a job waits until it has a GPU to itself.
set -euo pipefail
export NODES=$1 GPUS=$2 CONFIG=${BASH_SOURCE[0]%/*}/accelerate.yaml
shift 2
JOBS_PER_GPU=${JOBS_PER_GPU:-1}
THREADS=${OMP_NUM_THREADS:-1} # of this job on each node; Snakemake sets it to the rule's `threads`

gpus_here() { # comma-separated indices or names of the GPUs to choose from; empty on a machine without GPUs
    if [[ -n ${CUDA_VISIBLE_DEVICES+set} ]]; then
        echo "$CUDA_VISIBLE_DEVICES"
    elif command -v nvidia-smi > /dev/null; then
        nvidia-smi --query-gpu=index --format=csv,noheader | paste -sd , -
    fi
}

take_place() { # lock place $2 of GPU $1, or fail at once: a shared or exclusive lock on the GPU, exclusive on the place
    local gpu place with=--exclusive file=${TMPDIR:-/tmp}/dreamllm-$UID-gpu-$1
    ((JOBS_PER_GPU == 1)) || with=--shared
    exec {gpu}> "$file.lock" {place}> "$file-$2.lock"
    if flock --nonblock "$with" "$gpu" && flock --nonblock "$place"; then
        locks+=("$gpu" "$place")
    else
        exec {gpu}>&- {place}>&-
        return 1
    fi
}

take_gpus() { # lock GPUS of them, all or none; the locks belong to this process and are released when it ends
    local lock here gpu place
    IFS=, read -ra here <<< "$(gpus_here)"
    ((${#here[@]})) || return 0 # CPU processes, as in the tests
    if ((${#here[@]} < GPUS)); then
        echo "machine.gpus is $GPUS, but here are ${#here[@]}: ${here[*]}" >&2
        exit 1
    fi
    while true; do
        local taken=() locks=()
        for ((place = 0; place < JOBS_PER_GPU; place++)); do # the first place of every GPU before the second of any
            for gpu in "${here[@]}"; do
                if [[ " ${taken[*]} " != *" $gpu "* ]] && take_place "$gpu" "$place"; then taken+=("$gpu"); fi
                ((${#taken[@]} == GPUS)) && break 3
            done
        done
        for lock in "${locks[@]}"; do exec {lock}>&-; done
        sleep $((1 + RANDOM % 5)) # other jobs hold them
    done
    CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${taken[*]}")
    export CUDA_VISIBLE_DEVICES
}

[[ -n ${SLURM_JOB_ID:-} ]] || take_gpus
unset DREAMLLM_JOB_SERVER # a job on a GPU, or in several processes, imports for itself
if ((NODES * GPUS == 1)); then
    exec python -m dreamllm "$@"
fi
measured=() # all processes together
if [[ $1 == --job ]]; then
    measured=(python -m dreamllm.timings "$2")
    shift 2
fi
export OMP_NUM_THREADS=$((THREADS > GPUS ? THREADS / GPUS : 1))
if ((NODES == 1)); then # port 0: a free one, so that two trainings can share a machine
    exec "${measured[@]}" accelerate launch --config_file "$CONFIG" --num_processes "$GPUS" --main_process_port 0 \
        --module dreamllm "$@"
fi
: "${SLURM_JOB_ID:?machine.nodes is $NODES: more than one node needs a Slurm job, see docs/cluster.md}"
# The same port on all nodes, different for each job, and below the range of ports that the system assigns itself.
export PORT=$((20000 + SLURM_JOB_ID % 12000))
# shellcheck disable=SC2016  # expanded on each node, where srun has set Slurm's variables
exec "${measured[@]}" srun --nodes "$NODES" --ntasks "$NODES" --ntasks-per-node 1 --cpus-per-task "$THREADS" \
    --kill-on-bad-exit=1 bash -c '
    set -euo pipefail
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # head would break the pipe
    address=$(scontrol --oneliner show node "$first" | sed -n "s/.* NodeAddr=\([^ ]*\).*/\1/p")
    exec accelerate launch --config_file "$CONFIG" --num_processes $((NODES * GPUS)) --num_machines "$NODES" \
        --machine_rank "$SLURM_PROCID" --main_process_ip "$address" --main_process_port "$PORT" --module dreamllm "$@"
    ' launch "$@"
