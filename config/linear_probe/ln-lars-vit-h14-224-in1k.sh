#!/usr/bin/env bash
# ViT-H/14, linear probe by LARS, ImageNet-1k, 90 epochs: Table 10 of the paper (its result: 76.6).
# The authors' code uses 50 epochs: append --training-steps $((1281167 * 50 / 16384)).
# Starts from $GCS_MODEL_PATH (any weights that maejax reads), reads $GCS_DATASET_DIR/imagenet-1k-wds, writes
# to $OUTPUT_DIR (default: $GCS_DATASET_DIR/CKPT). Flags given to this script come last and win.
exec maejax train --mode linear \
    --name "$(basename "$0" .sh)" \
    --output-dir "${OUTPUT_DIR:-$GCS_DATASET_DIR/CKPT}" \
    --pretrained-ckpt "$GCS_MODEL_PATH" \
    --train-dataset-shards "$GCS_DATASET_DIR/imagenet-1k-wds/imagenet1k-train-{0000..1023}.tar" \
    --valid-dataset-shards "$GCS_DATASET_DIR/imagenet-1k-wds/imagenet1k-validation-{00..63}.tar" \
    --train-batch-size 16384 --valid-batch-size 512 \
    --random-crop rrc --crop-scale 0.08 --color-jitter 0 --auto-augment none --random-erasing 0 --augment-repeats 1 \
    --mixup 0 --cutmix 0 --label-smoothing 0 --criterion ce --test-crop-ratio 0.875 \
    --layers 32 --dim 1280 --heads 16 --labels 1000 --patch-size 14 --image-size 224 --posemb sincos2d --pooling cls \
    --dropout 0 --droppath 0 \
    --optimizer lars --learning-rate 0.1 --weight-decay 0 --lr-decay 1 --clip-grad 0 --grad-accum 1 \
    --warmup-steps $((1281167 * 10 / 16384)) --training-steps $((1281167 * 90 / 16384)) \
    --log-interval 50 --eval-interval $((1281167 / 16384)) \
    "$@"
