#!/usr/bin/env bash
# Trains the demo model from scratch: corpus, tokenizer, weights.
#
# usage: scripts/demo_model/train.sh OUT [further options of tandem train]
#
# OUT/texts is the corpus, OUT/model what tandem serves. On a CPU an epoch of the 100000 texts takes more than an hour;
# one H200 needs about a minute (--device gpu --dtype float32).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
tandem=${TANDEM_PROGRAM:-$here/../../build/release/tandem}
out=${1:?usage: train.sh OUT [options of tandem train]}
shift
mkdir -p "$out/start"
[ -e "$out/texts/train.jsonl" ] || "$here/make_corpus.py" "$out/texts" --texts 100000
cp "$here/config.json" "$out/start/"
[ -e "$out/start/tokenizer.json" ] || "$tandem" tokenizer train "$out/texts" "$out/start" --vocab-size 2048
"$tandem" train "$out/start" --init --method full --data "$out/texts" --out "$out/model" --mask-prompt \
  --ranks 2 --parallel dp --batch-size 128 --grad-accumulation-steps 2 --iters 3000 --learning-rate 3e-3 \
  --lr-schedule cosine --warmup 100 --beta2 0.95 --weight-decay 0.1 --clip 1 --balance-rate 0.001 "$@"
