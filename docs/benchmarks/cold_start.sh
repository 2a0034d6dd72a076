#!/usr/bin/env bash
# From the start of the program to the first step of FLUX.1-dev, its weights in the page cache: seconds by phase, and how much
# host memory the program took beside that cache.
#
#   cargo build --release --features cuda && docs/benchmarks/cold_start.sh
#
# Makes a checkpoint of FLUX.1-dev's size of random weights, 33 GB, in FOLDER, which is removed at the end. What may be set:
# FOLDER; RUNS; DEVICE; SHAPES, a file that `cold_start.py shapes` wrote where diffusers and transformers are installed;
# XDIT and PYTHON, the programs.
set -eu
cd "$(dirname "$0")/../.."
FOLDER=${FOLDER:-$(mktemp -d)} RUNS=${RUNS:-3} DEVICE=${DEVICE:-cuda}
XDIT=${XDIT:-target/release/xdit} PYTHON=${PYTHON:-python3}
model=$FOLDER/flux-dev
trap 'rm -rf "$model" "$FOLDER/shapes.json"; rmdir "$FOLDER" 2>/dev/null || true' EXIT
SHAPES=${SHAPES:-}
if [ -z "$SHAPES" ]; then
    SHAPES=$FOLDER/shapes.json
    "$PYTHON" docs/benchmarks/cold_start.py shapes "$SHAPES"
fi
"$PYTHON" docs/benchmarks/cold_start.py make "$SHAPES" "$model" --device "$DEVICE"
"$PYTHON" docs/benchmarks/cold_start.py run "$model" --xdit "$XDIT" --device "$DEVICE" --runs "$RUNS"
