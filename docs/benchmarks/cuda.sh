#!/usr/bin/env bash
# Denoising on one GPU, xdit and diffusers in turns: writes cuda-single.md, cuda-single.svg and the rows, cuda-single.jsonl.
#
#   cargo build --release --features cuda && docs/benchmarks/cuda.sh
#
# What may be set: MODELS, SIZES, STEPS, REPEAT, DTYPE, DEVICE; PEERS (lines of arguments of denoise_peer.py, "-" for none);
# LIMIT, seconds for each run; OUT, the folder of the results; XDIT and PYTHON, the programs.
set -u
cd "$(dirname "$0")/../.." || exit 1
MODELS=${MODELS:-flux-dev sd3 pixart-sigma hunyuandit}
SIZES=${SIZES:-1024}
STEPS=${STEPS:-28} REPEAT=${REPEAT:-3} DTYPE=${DTYPE:-bf16} DEVICE=${DEVICE:-cuda}
PEERS=${PEERS:-"--attention default
--attention cudnn
--compile max-autotune-no-cudagraphs --attention default
--compile max-autotune-no-cudagraphs --attention cudnn"}
LIMIT=${LIMIT:-400} OUT=${OUT:-docs/benchmarks}
XDIT=${XDIT:-target/release/xdit} PYTHON=${PYTHON:-python3}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
rows=$OUT/cuda-single.jsonl
log=$(mktemp) answer=$(mktemp)
trap 'rm -f "$log" "$answer"' EXIT
mkdir -p "$OUT" && : >"$rows" || exit 1

# One line of $rows: side, model, size, then the command.
row() {
  local side=$1 model=$2 size=$3 status=0 said
  shift 3
  echo "$side: $model, $size pixels" >&2
  timeout -k 10 "$LIMIT" "$@" >"$answer" 2>"$log" || status=$?
  if [ "$status" = 0 ] && [ -s "$answer" ]; then
    said="\"result\":$(tail -n 1 "$answer")"
  else
    [ "$status" != 124 ] || echo "no end within $LIMIT s" >>"$log"
    # the last words, as they may stand in JSON
    said="\"failed\":\"$(grep -v '^[[:space:]]*$' "$log" | tail -n 1 | tr -cd '[:print:]' | tr -d '"\\' | cut -c 1-200) (exit code $status)\""
    echo "  failed: ${said:10}" >&2
  fi
  printf '{"side":"%s","model":"%s","size":%s,%s}\n' "$side" "$model" "$size" "$said" >>"$rows"
}

for size in $SIZES; do
  for model in $MODELS; do
    shape=(--size "$size" --steps "$STEPS" --repeat "$REPEAT" --dtype "$DTYPE" --device "$DEVICE")
    row xdit "$model" "$size" "$XDIT" bench --random-weights "$model" "${shape[@]}" --json
    if [ "$PEERS" != - ]; then
      while read -r peer; do
        # shellcheck disable=SC2086 # arguments
        row "diffusers ${peer//--/}" "$model" "$size" "$PYTHON" docs/benchmarks/denoise_peer.py --model "$model" "${shape[@]}" $peer </dev/null
        # after each of them: a card that gets warm slows both
        row xdit "$model" "$size" "$XDIT" bench --random-weights "$model" "${shape[@]}" --json
      done <<<"$PEERS"
    fi
  done
done
"$PYTHON" docs/benchmarks/cuda_report.py "$rows" "$OUT/cuda-single"
