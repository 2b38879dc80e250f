#!/usr/bin/env bash
# Paper, Figure 7: 1600 epochs of pre-training. ViT-L/16.
# Accuracy there, in %: 85.1 fine-tuned, 75.1 linear.
exec bash "$(dirname "$0")/../pretrain/pretrain-vit-l16-224-in1k-800ep.sh" \
    --name "$(basename "$0" .sh)" --training-steps $((1281167 * 1600 / 4096)) "$@"
