#!/usr/bin/env bash
# ViT-L/16, ImageNet-1k, 800 epochs, un-normalised pixels: the original's recipe (linear probe 73.0 in its README).
# The paper's B/L/H models of Table 3 predict normalised pixels: add --norm-pix-loss for those.
# Reads $GCS_DATASET_DIR/imagenet-1k-wds, writes to $OUTPUT_DIR (default: $GCS_DATASET_DIR/CKPT).
# Flags given to this script come last and win.
exec maejax train --mode pretrain \
    --name "$(basename "$0" .sh)" \
    --output-dir "${OUTPUT_DIR:-$GCS_DATASET_DIR/CKPT}" \
    --train-dataset-shards "$GCS_DATASET_DIR/imagenet-1k-wds/imagenet1k-train-{0000..1023}.tar" \
    --valid-dataset-shards "$GCS_DATASET_DIR/imagenet-1k-wds/imagenet1k-validation-{00..63}.tar" \
    --train-batch-size 4096 --valid-batch-size 512 \
    --random-crop rrc --crop-scale 0.2 --color-jitter 0 --auto-augment none --random-erasing 0 --augment-repeats 1 \
    --layers 24 --dim 1024 --heads 16 --labels 0 --patch-size 16 --image-size 224 --posemb sincos2d \
    --dropout 0 --droppath 0 \
    --image-mask-ratio 0.75 --dec-layers 8 --dec-dim 512 --dec-heads 16 --dec-posemb sincos2d \
    --dec-dropout 0 --dec-droppath 0 \
    --optimizer adamw --learning-rate 1.5e-4 --weight-decay 0.05 --adam-b1 0.9 --adam-b2 0.95 --adam-eps 1e-8 \
    --lr-decay 1 --clip-grad 0 --grad-accum 1 \
    --warmup-steps $((1281167 * 40 / 4096)) --training-steps $((1281167 * 800 / 4096)) \
    --log-interval 100 --eval-interval $((1281167 * 20 / 4096)) \
    "$@"
