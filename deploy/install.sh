#!/bin/sh
# install.sh PYTHON FILE SOURCE...: into the environment of PYTHON, what FILE pins, every file checked by its SHA-256, and
# then the project itself (SOURCE as pip has it: . or -e .).
# TORCH_INDEX=URL: PyTorch from that index, such as its builds without CUDA, unchecked; what CUDA needs is left out.
# TORCH_PINS: other releases of it than constraints.txt names.
set -eu
python=$1 file=$2
shift 2
pip() { "$python" -m pip install -qq --disable-pip-version-check --no-deps "$@"; }

if [ -n "${TORCH_INDEX:-}" ]; then
    left_out='^(torch|torchvision|triton|nvidia-[a-z0-9-]+|cuda-[a-z]+)=='
    rest=$(mktemp)
    trap 'rm -f "$rest"' EXIT
    awk -v out="$left_out" '/^[a-z0-9]/ {left = $0 ~ out} !left' "$file" > "$rest"
    # shellcheck disable=SC2046,SC2086  # words of their own
    pip --only-binary :all: --index-url "$TORCH_INDEX" \
        ${TORCH_PINS:-$(sed -n 's/^\(torch\(vision\)\{0,1\}==[^; ]*\).*/\1/p' constraints.txt)}
    pip --only-binary :all: --require-hashes -r "$rest"
else
    pip --only-binary :all: --require-hashes -r "$file"
fi
pip --no-build-isolation "$@"
