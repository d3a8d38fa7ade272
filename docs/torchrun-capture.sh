#!/bin/bash
# Capture a pair with some processes of this machine: docs/torchrun-capture.sh PROCESSES PAIR LAKE [options of actlake capture]
# Several machines: TORCHRUN="--nnodes 2 --rdzv-backend c10d --rdzv-endpoint HOST:29500" on each of them.
set -euo pipefail
processes=$1 pair=$2 lake=$3
shift 3
# torchrun only starts the processes and says who they are (RANK, WORLD_SIZE, LOCAL_RANK); ranks never talk to each other.
# shellcheck disable=SC2086
torchrun ${TORCHRUN:---standalone} --nproc-per-node "$processes" --no-python \
  actlake capture "$pair" --lake "$lake" --device "${ACTLAKE_DEVICE:-cuda}" "$@"
