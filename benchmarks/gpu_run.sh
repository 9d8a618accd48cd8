#!/usr/bin/env bash
# Everything that a GPU is wanted for, within ten minutes, on a machine that has Python 3.12 with torch, timm and
# transformers, this checkout, and the folder that `make gpu-pack` made:
#
#     OUT=DIR benchmarks/gpu_run.sh [.gpu] [options of benchmarks/gpu/run.py]
#
# What comes back lies in DIR: result.json and at most seven pieces of 15 MB. --continue DIR goes on from there.
# A rehearsal without a GPU:  OUT=DIR benchmarks/gpu_run.sh .gpu --tiny --device cpu
set -euo pipefail
began=$(date +%s)
cd "$(dirname "$0")/.."

pack=.gpu
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    pack=$1
    shift
fi
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1

# Only where they are missing: wheels of one Python are no use to another.
if ! "$python" -c 'import pydantic, sys; sys.exit(tuple(map(int, pydantic.VERSION.split(".")[:2])) < (2, 11))' 2>/dev/null; then
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --upgrade \
        --target "$pack/site" "$pack"/wheels/*.whl
    export PYTHONPATH="$(cd "$pack" && pwd)/site${PYTHONPATH:+:$PYTHONPATH}"
fi
if command -v nvidia-smi >/dev/null; then nvidia-smi -L; fi
exec "$python" -m benchmarks.gpu.run "$pack" --began "$began" "$@"
