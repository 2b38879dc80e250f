#!/usr/bin/env bash
# Paper, Table 1e: no augmentation, a centre crop. ViT-L/16, 800 epochs.
# Accuracy there, in %: 84.0 fine-tuned, 65.7 linear.
exec bash "$(dirname "$0")/../pretrain/pretrain-vit-l16-224-in1k-800ep.sh" \
    --name "$(basename "$0" .sh)" --random-crop none --flip none "$@"
