#!/usr/bin/env bash
# Installs maejax on a TPU VM in the exact versions of constraints/tpu.txt, and checks the machine with `maejax doctor`.
#
#   bash scripts/setup.sh [FLAGS OF maejax doctor]
#
# The images contain Python 3.8 or 3.10, which JAX no longer supports: uv installs Python 3.12 into the home directory and
# leaves the system as it is. BUCKET=gs://... also mounts the bucket at ~/bucket; installing gcsfuse for it needs root.
# On a machine without TPU: EXTRAS=cuda, or EXTRAS= for none. A second call installs only the differences.
set -euo pipefail
cd "$(dirname "$0")/.."

EXTRAS=${EXTRAS-tpu,gcs,wandb}
PYTHON=3.12
UV=0.13.9

if ! command -v uv > /dev/null; then
    python3 -m pip install --quiet --user "uv==$UV"
    export PATH=$HOME/.local/bin:$PATH
fi
[[ -x .venv/bin/python ]] || uv venv --quiet --seed --python "$PYTHON" .venv # with pip, for further extras
uv pip install --quiet --python .venv/bin/python --constraint constraints/tpu.txt --editable ".${EXTRAS:+[$EXTRAS]}"

install_gcsfuse() { # https://cloud.google.com/storage/docs/cloud-storage-fuse/install
    local packages=https://packages.cloud.google.com key=/usr/share/keyrings/cloud.google.asc
    curl --fail --silent --show-error "$packages/apt/doc/apt-key.gpg" | sudo tee "$key" > /dev/null
    echo "deb [signed-by=$key] $packages/apt gcsfuse-$(lsb_release -cs) main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
    sudo apt-get -qq update
    sudo apt-get -qq install gcsfuse
}

# Every worker must see the files of the others at once, so nothing about files is cached.
doctor=(--constraints constraints/tpu.txt)
if [[ ${BUCKET:-} ]]; then
    command -v gcsfuse > /dev/null || install_gcsfuse
    mkdir -p ~/bucket
    bucket=${BUCKET#gs://}
    mountpoint -q ~/bucket ||
        gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "${bucket%/}" ~/bucket
    doctor+=(--bucket "$BUCKET" --output-dir ~/bucket/CKPT)
fi
.venv/bin/maejax doctor "${doctor[@]}" "$@" | sed "s/^/$(hostname): /" # the outputs of a pod's workers mix
