#!/usr/bin/env bash
# Trains the demo model from scratch: corpus, tokenizer, weights.
#
# usage: scripts/demo_model/train.sh OUT [further options of tandem train]
#
# OUT/texts is the corpus, OUT/model what tandem serves. Two CPU cores need about an hour.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
tandem=${TANDEM_PROGRAM:-$here/../../build/release/tandem}
out=${1:?usage: train.sh OUT [options of tandem train]}
shift
mkdir -p "$out/start"
[ -e "$out/texts/train.jsonl" ] || "$here/make_corpus.py" "$out/texts" --texts 200000
cp "$here/config.json" "$out/start/"
[ -e "$out/start/tokenizer.json" ] || "$tandem" tokenizer train "$out/texts" "$out/start" --vocab-size 2048
"$tandem" train "$out/start" --init --method full --data "$out/texts" --out "$out/model" --mask-prompt \
  --ranks 2 --parallel dp --batch-size 64 --iters 4000 --dtype float32 --optimizer muon --learning-rate 4e-3 \
  --lr-schedule cosine --warmup 100 --beta2 0.95 --weight-decay 0.1 --clip 1 --balance-rate 0.001 \
  --steps-per-report 50 --steps-per-eval 500 --val-batches 16 --save-every 500 "$@"
