#!/usr/bin/env bash
# Check on one GPU what only a GPU can show, in at most 8 minutes:
#
#   PEER_PYTHON=PEERS/bin/python CAFFE=FOLDER CIFAR='npz:CIFAR_{split}.npz' benchmarks/gpu_check.sh
#
#   peers     speed against torchvision: eager, and torch.compile(mode="max-autotune"), both in
#             bfloat16 autocast and channels_last (benchmarks/peers.py). PEER_PYTHON has torch
#   memory    peak memory of our training step, alone on the device
#   parity    all layers of the published network against Caffe's, in full and in default precision.
#             CAFFE is a folder with bvlc_googlenet.caffemodel and caffe_blobs_227.npz
#   modern    200 steps of the imagenet_modern recipe on synthetic JPEGs
#   cifar10   six epochs of the cifar10_gpu recipe, to their end, on CIFAR (by default, what
#             `gnet prepare cifar10` made)
#
# The results are in OUT (gpu_check): result.json, and a log of each part. A part without its input is
# skipped, and a part that exceeds its limit is stopped. Exits with 1 if any part failed. Requires the
# extras [cuda,fast]. LIMITS has the seconds of the parts, in this order. SMALL=1 runs everything in
# small, for a CPU.
set -uo pipefail
if [ $# -gt 0 ]; then # it has variables instead of options
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
  exit 2
fi
cd "$(dirname "$0")/.." || exit

OUT=${OUT:-gpu_check}
PYTHON=${PYTHON:-python}
PEER_PYTHON=${PEER_PYTHON:-}
CAFFE=${CAFFE:-}
CIFAR=${CIFAR:-tfds:cifar10}
if [ "${SMALL:-0}" = 1 ]; then
  limits=${LIMITS:-300 120 200 200 120}
  peers="--repeats 1 --batches 1 --train-batch 2 --size 128"
  batch=2 size=128 photos=16 steps=3 cifar_epochs=1
  modern="--batch-size 8 --eval-batch-size 2 --model.width-multiplier 0.125 --data.image-size 128
    --data.resize-to 144 --optim.warmup-epochs 0"
  cifar10="--model.width-multiplier 0.125 --model.dtype float32 --optim.warmup-epochs 0
    --batch-size 64 --eval-batch-size 50"
else
  limits=${LIMITS:-235 45 35 70 90} # in all, less than 8 minutes
  peers="--repeats 5 --batches 256 --train-batch 256"
  batch=256 size=224 photos=512 steps=200 cifar_epochs=6
  modern="--model.dtype bfloat16"
  cifar10="--optim.warmup-epochs 1"
fi
read -r peers_limit memory_limit parity_limit modern_limit cifar_limit <<< "$limits"
threads=$(($(nproc) < 64 ? $(nproc) : 64))

rm -rf "$OUT"
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
# The parts share compiled programs, but not those of earlier checks.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$OUT/xla}

# part NAME SECONDS COMMAND...: run a part, and keep its exit code and duration.
part() {
  local name=$1 limit=$2 began=$SECONDS code=0
  shift 2
  echo "$name ..."
  timeout --signal=INT --kill-after=10 "$limit" "$@" > "$OUT/$name.log" 2>&1 || code=$?
  printf '{"code": %d, "seconds": %d, "limit": %d}\n' $code $((SECONDS - began)) "$limit" \
    > "$OUT/$name.status"
}

skip() {
  echo "$1: skipped, $2"
  printf '{"skipped": "%s"}\n' "$2" > "$OUT/$1.status"
}

# Word splitting is wanted in the options below.
# shellcheck disable=SC2086
if [ -n "$PEER_PYTHON" ]; then
  part peers "$peers_limit" "$PYTHON" benchmarks/peers.py --peer-python "$PEER_PYTHON" \
    --dtype bfloat16 $peers --json "$OUT/peers.json"
else
  skip peers "PEER_PYTHON is not set"
fi
part memory "$memory_limit" "$PYTHON" benchmarks/gpu_check.py memory "$OUT/memory.json" \
  --batch $batch --size $size
if [ -n "$CAFFE" ]; then
  part parity "$parity_limit" "$PYTHON" benchmarks/gpu_check.py parity "$OUT/parity.json" \
    --caffe "$CAFFE"
else
  skip parity "CAFFE is not set"
fi
# shellcheck disable=SC2086
part modern "$modern_limit" "$PYTHON" benchmarks/gpu_check.py train "$OUT/modern.json" \
  --photos $photos --steps $steps imagenet_modern --workdir "$OUT/modern" --data.decoder fast \
  --data.threads "$threads" --log-every-steps 1 $modern
# shellcheck disable=SC2086
part cifar10 "$cifar_limit" "$PYTHON" benchmarks/gpu_check.py train "$OUT/cifar10.json" \
  cifar10_gpu --workdir "$OUT/cifar10" --data.source "$CIFAR" --epochs $cifar_epochs \
  --data.threads "$threads" $cifar10
"$PYTHON" benchmarks/gpu_check.py report "$OUT"
