#!/usr/bin/env bash
# Paper, Table 1c: mask tokens in the encoder, 3.3 times the FLOP. ViT-L/16, 800 epochs.
# Accuracy there, in %: 84.2 fine-tuned, 59.6 linear.
exec bash "$(dirname "$0")/../pretrain/pretrain-vit-l16-224-in1k-800ep.sh" \
    --name "$(basename "$0" .sh)" --encoder-mask-tokens "$@"
