#!/usr/bin/env bash
# Paper, Figure 7: 200 epochs of pre-training. ViT-L/16.
# Accuracy there, in %: 83.3 fine-tuned, 64.4 linear.
exec bash "$(dirname "$0")/../pretrain/pretrain-vit-l16-224-in1k-800ep.sh" \
    --name "$(basename "$0" .sh)" --training-steps $((1281167 * 200 / 4096)) "$@"
