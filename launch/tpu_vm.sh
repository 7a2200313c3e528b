#!/usr/bin/env bash
# Train on a Cloud TPU slice of any number of hosts, from your own machine (docs/pods.md leads there):
#
#   launch/tpu_vm.sh create     # once
#   launch/tpu_vm.sh install    # once, and after every change of the code
#   launch/tpu_vm.sh train      # also after a crash or a stop: the same workdir resumes
#   launch/tpu_vm.sh log        # follows the log of host 0
#   launch/tpu_vm.sh stop       # saves and stops all hosts, and waits until they have ended
#   launch/tpu_vm.sh delete
#
# Options of train.py follow `train`; another RUN is another workdir:
#   RUN=trial launch/tpu_vm.sh train --epochs 0.2 --optim.warmup-epochs 0
# Delete a spot slice that was preempted; then create, install and train resume from the bucket.
#
# Edit the block below, or export these variables. gcloud's own project is used. BUCKET holds tensorflow_datasets/ (made by `gnet prepare
# tfds:imagenet2012`), which all hosts mount read-only, and receives runs/ (checkpoints, logs) and xla/
# (compiled programs, which a restart finds on other machines, too). WORKERS times THREADS is at most
# the vCPUs of a host: 112 for v5e. This script has not been run on hardware; only its syntax, the
# commands that it sends and the training command are tested.
set -euo pipefail

NAME=${NAME:-gnet}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-256}             # as in `gnet plan imagenet_pod --topology v5e:16x16`
VERSION=${VERSION:-v2-alpha-tpuv5-lite} # a runtime for TYPE
SPOT=${SPOT---spot}                     # SPOT= (empty) creates an on-demand slice
BUCKET=${BUCKET:-your-bucket}
RUN=${RUN:-imagenet_pod}
WORKERS=${WORKERS:-8}
THREADS=${THREADS:-12}
EXTRAS=${EXTRAS:-tpu,fast,gcs} # add wandb for --track wandb
REPOSITORY=${REPOSITORY:-https://github.com/gnet-jax/gnet_jax} # what the hosts install
# These are passed on to the hosts if they are set here (docs/pods.md: Collectives, Trackers).
PASSED_ON="LIBTPU_INIT_ARGS WANDB_API_KEY WANDB_MODE"

on_every_host() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=all --command "$1"
}

case "${1:-}" in
create)
  # Spot is much cheaper and can be preempted: the run saves, and `train` resumes it.
  gcloud compute tpus tpu-vm create "$NAME" --zone "$ZONE" --accelerator-type "$TYPE" \
    --version "$VERSION" $SPOT
  ;;
install)
  on_every_host "
    set -e
    if [ -d gnet_jax ]; then
      git -C gnet_jax remote set-url origin $REPOSITORY
      git -C gnet_jax pull --ff-only
    else
      git clone $REPOSITORY gnet_jax
    fi
    # The images have an older Python than this project requires.
    [ -x ~/.local/bin/uv ] || curl -LsSf https://astral.sh/uv/install.sh | sh
    [ -d venv ] || ~/.local/bin/uv venv --seed --python 3.11 venv
    venv/bin/pip install --quiet -e 'gnet_jax[$EXTRAS]'
    if ! command -v gcsfuse > /dev/null; then
      key=/usr/share/keyrings/cloud.google.asc
      curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee \$key > /dev/null
      echo \"deb [signed-by=\$key] https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main\" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
      sudo apt-get update -qq
      sudo apt-get install -y -qq gcsfuse
    fi
    mkdir -p data
    mountpoint -q data || gcsfuse -o ro --implicit-dirs $BUCKET data
  "
  ;;
train)
  options=
  if [ $# -gt 1 ]; then options=$(printf ' %q' "${@:2}"); fi
  exports=
  for name in $PASSED_ON; do
    if [ -n "${!name:-}" ]; then exports+="export $name=$(printf %q "${!name}"); "; fi
  done
  # Every host runs the same command; the hosts find each other through the TPU's metadata.
  # --supervise restarts it after a crash. It keeps running when this terminal is closed; follow it with
  #   launch/tpu_vm.sh log
  on_every_host "
    set -e
    cd gnet_jax
    export TFDS_DATA_DIR=\$HOME/data/tensorflow_datasets
    export JAX_COMPILATION_CACHE_DIR=gs://$BUCKET/xla
    $exports
    nohup ../venv/bin/python train.py imagenet_pod --workdir gs://$BUCKET/runs/$RUN --distributed on --supervise --data.decoder fast --data.workers $WORKERS --data.threads $THREADS$options >> ~/train.log 2>&1 < /dev/null &
  "
  ;;
log)
  gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=0 --command "tail -F train.log"
  ;;
stop)
  # SIGTERM to any host makes all of them save the same step and exit. Until then, `train` would be
  # refused, because the workdir is in use.
  on_every_host "
    pkill -TERM -f '[t]rain.py imagenet_pod' || true
    for second in \$(seq 120); do
      pgrep -f '[t]rain.py imagenet_pod' > /dev/null || exit 0
      sleep 1
    done
    echo 'the run has not ended after 120 s; repeat stop' >&2
    exit 1
  "
  ;;
delete)
  gcloud compute tpus tpu-vm delete "$NAME" --zone "$ZONE"
  ;;
*)
  echo "usage: $0 create|install|train [OPTION ...]|log|stop|delete" >&2
  exit 2
  ;;
esac
