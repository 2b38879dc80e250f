#!/bin/sh
# Ctrl-C or SIGTERM to this script ends it.
trap 'ended=1' INT TERM
while :; do
docker run --rm \
    --name maejax-train --init --stop-timeout 300 \
    --gpus 8 --shm-size 1g \
    --memory 64g \
    --env WANDB_API_KEY \
    --volume /home/me/runs:/runs \
    ghcr.io/me/maejax:1 maejax train \
    --output-dir /runs
code=$?
# 75: stopped after saving. The same command goes on.
[ $code -eq 75 ] && [ -z "$ended" ] || exit $code
done
