#!/usr/bin/env bash
# Fine-tuning of ViT-H/14, ImageNet-1k, 50 epochs, as the authors' code does (its FINETUNE.md, for models that predict
# normalised pixels); it trains the positions too, and ends at a rate of 1e-6 where this ends at 0.
# The paper's variant (Table 9): --droppath 0.2 --random-erasing 0.
# Reads $GCS_DATASET_DIR/imagenet-1k-wds and the pre-trained weights $GCS_MODEL_PATH (a run or a file in any layout),
# writes $GCS_DATASET_DIR/CKPT. Flags given to this script come last and win.
python3 src/main.py --mode finetune \
    --name "$(basename "$0" .sh)" \
    --output-dir "$GCS_DATASET_DIR/CKPT" \
    --train-dataset-shards "$GCS_DATASET_DIR/imagenet-1k-wds/imagenet1k-train-{0000..1023}.tar" \
    --valid-dataset-shards "$GCS_DATASET_DIR/imagenet-1k-wds/imagenet1k-validation-{00..63}.tar" \
    --pretrained-ckpt "$GCS_MODEL_PATH" \
    --train-batch-size 1024 --valid-batch-size 512 --test-crop-ratio 0.875 \
    --random-crop rrc --crop-scale 0.08 --color-jitter 0 --auto-augment rand-m9-mstd0.5-inc1 --random-erasing 0.25 \
    --augment-repeats 1 --mixup 0.8 --cutmix 1.0 --criterion ce --label-smoothing 0.1 \
    --layers 32 --dim 1280 --heads 16 --labels 1000 --patch-size 14 --image-size 224 --posemb learnable \
    --pooling gap --dropout 0 --droppath 0.3 \
    --optimizer adamw --learning-rate 1e-3 --weight-decay 0.05 --adam-b1 0.9 --adam-b2 0.999 --adam-eps 1e-8 \
    --lr-decay 0.75 --clip-grad 0 --grad-accum 1 \
    --warmup-steps $((1281167 * 5 / 1024)) --training-steps $((1281167 * 50 / 1024)) \
    --log-interval 100 --eval-interval $((1281167 / 1024)) \
    "$@"
