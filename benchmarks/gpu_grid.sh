#!/usr/bin/env bash
# Cells of the accuracy grid, several side by side, on a GPU machine without network: this checkout and the folder that
# `python -m benchmarks.gpu.grid_pack` made, and Python 3.12 with torch, timm and transformers.
#
#     OUT=DIR benchmarks/gpu_grid.sh .gpu/grid --cells FILE [options of benchmarks/gpu/grid.py]
set -euo pipefail
cd "$(dirname "$0")/.."
pack=$1
site=$(mktemp -d)
"${PYTHON:-python3}" -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter="data")' "$pack/packages.tar.xz" "$site"
export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 OMP_NUM_THREADS=1
# so that no look for a GPU starts CUDA in a process that forks
export PYTORCH_NVML_BASED_CUDA_CHECK=1
exec "${PYTHON:-python3}" -m benchmarks.gpu.grid "$@" --out "$OUT"
