#!/usr/bin/env bash
# Linear probing of ViT-B/16, ImageNet-1k, 90 epochs, SGD at batch 4096: the paper says that it works similarly. The
# base rate per 256 images is MoCo v3's: peak 3 x 4096 / 256 = 48.
# Reads $GCS_DATASET_DIR/imagenet-1k-wds and the pre-trained weights $GCS_MODEL_PATH (a run or a file in any layout),
# writes $GCS_DATASET_DIR/CKPT. Flags given to this script come last and win.
python3 src/main.py --mode linear \
    --name "$(basename "$0" .sh)" \
    --output-dir "$GCS_DATASET_DIR/CKPT" \
    --train-dataset-shards "$GCS_DATASET_DIR/imagenet-1k-wds/imagenet1k-train-{0000..1023}.tar" \
    --valid-dataset-shards "$GCS_DATASET_DIR/imagenet-1k-wds/imagenet1k-validation-{00..63}.tar" \
    --pretrained-ckpt "$GCS_MODEL_PATH" \
    --train-batch-size 4096 --valid-batch-size 512 \
    --random-crop rrc --crop-scale 0.08 --color-jitter 0 --auto-augment none --random-erasing 0 --augment-repeats 1 \
    --mixup 0 --cutmix 0 --criterion ce --label-smoothing 0 \
    --layers 12 --dim 768 --heads 12 --labels 1000 --patch-size 16 --image-size 224 --posemb sincos2d \
    --pooling cls --dropout 0 --droppath 0 \
    --optimizer sgd --learning-rate 3.0 --weight-decay 0 --lr-decay 1 --clip-grad 0 --grad-accum 1 \
    --warmup-steps $((1281167 * 10 / 4096)) --training-steps $((1281167 * 90 / 4096)) \
    --log-interval 100 --eval-interval $((1281167 / 4096)) \
    "$@"
