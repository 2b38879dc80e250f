xpk workload create \
    --cluster mine --workload maejax-train \
    --tpu-type v5litepod-16 --docker-image ghcr.io/me/maejax:1 \
    --spot \
    --env-file <(printf '%s\n' WANDB_API_KEY HF_TOKEN) \
    --restart-on-exit-codes 1,75 --max-restarts 10 --termination-grace-period-seconds 300 \
    --command 'exec maejax train --name mine --train-dataset-shards '"'"'gs://b/sets/s-{0000..0015}.tar'"'"' --output-dir gs://b/runs --learning-rate 1e-3 --wandb --distributed'
