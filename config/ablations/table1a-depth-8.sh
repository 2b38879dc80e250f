#!/usr/bin/env bash
# Paper, Table 1a: a decoder of 8 blocks. ViT-L/16, 800 epochs.
# Accuracy there, in %: 84.9 fine-tuned, 73.5 linear.
exec bash "$(dirname "$0")/../pretrain/pretrain-vit-l16-224-in1k-800ep.sh" \
    --name "$(basename "$0" .sh)" --dec-layers 8 "$@"
