#!/usr/bin/env bash
# Paper, Figure 7: 800 epochs of pre-training. ViT-L/16.
# Accuracy there, in %: 84.9 fine-tuned, 73.5 linear.
exec bash "$(dirname "$0")/../pretrain/pretrain-vit-l16-224-in1k-800ep.sh" \
    --name "$(basename "$0" .sh)" --training-steps $((1281167 * 800 / 4096)) "$@"
