#!/usr/bin/env bash
# ViT-L/16, fine-tuning, ImageNet-1k, 50 epochs: the authors' recipe for a model of normalised pixels (their result: 85.9).
# The paper's Table 9 differs: append --droppath 0.1 --random-erasing 0.
# Starts from $GCS_MODEL_PATH (any weights that maejax reads), reads $GCS_DATASET_DIR/imagenet-1k-wds, writes
# to $OUTPUT_DIR (default: $GCS_DATASET_DIR/CKPT). Flags given to this script come last and win.
exec maejax train --mode finetune \
    --name "$(basename "$0" .sh)" \
    --output-dir "${OUTPUT_DIR:-$GCS_DATASET_DIR/CKPT}" \
    --pretrained-ckpt "$GCS_MODEL_PATH" \
    --train-dataset-shards "$GCS_DATASET_DIR/imagenet-1k-wds/imagenet1k-train-{0000..1023}.tar" \
    --valid-dataset-shards "$GCS_DATASET_DIR/imagenet-1k-wds/imagenet1k-validation-{00..63}.tar" \
    --train-batch-size 1024 --valid-batch-size 512 \
    --random-crop rrc --crop-scale 0.08 --color-jitter 0 --auto-augment rand-m9-mstd0.5-inc1 --random-erasing 0.25 \
    --augment-repeats 1 --mixup 0.8 --cutmix 1.0 --label-smoothing 0.1 --criterion ce --test-crop-ratio 0.875 \
    --layers 24 --dim 1024 --heads 16 --labels 1000 --patch-size 16 --image-size 224 --posemb learnable --pooling gap \
    --dropout 0 --droppath 0.2 \
    --optimizer adamw --learning-rate 1e-3 --weight-decay 0.05 --adam-b1 0.9 --adam-b2 0.999 --adam-eps 1e-8 \
    --lr-decay 0.75 --clip-grad 0 --grad-accum 1 \
    --min-learning-rate 1e-6 --warmup-steps $((1281167 * 5 / 1024)) --training-steps $((1281167 * 50 / 1024)) \
    --log-interval 50 --eval-interval $((1281167 / 1024)) \
    "$@"
