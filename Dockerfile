# An image with maejax, for the hosts of `maejax launch` and others:
#
#   docker build --tag REGISTRY/maejax:cpu .
#   docker build --build-arg EXTRAS=cuda,gcs,s3,k8s --tag REGISTRY/maejax:cuda .
#   docker build --build-arg EXTRAS=tpu,gcs --tag REGISTRY/maejax:tpu .
#
# EXTRAS: tpu for hosts with TPUs, cuda for NVIDIA's (it brings CUDA; the host has the driver), neither for CPUs; k8s
# for several hosts of a Kubernetes job; gcs and s3 for buckets; more in docs/index.md.
# PYTHON: 3.11, 3.12 or 3.13. CONSTRAINTS: files of constraints/, with the versions that were tested with that Python;
# those of scripts/setup.sh by default.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim
ARG EXTRAS=gcs,s3,k8s
ARG CONSTRAINTS="tpu.txt"
ENV PYTHONUNBUFFERED=1

WORKDIR /opt/maejax
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY constraints constraints
COPY config config
COPY src src
RUN set --; for name in ${CONSTRAINTS}; do set -- "$@" --constraint "constraints/$name"; done; \
    pip install --no-cache-dir "$@" ".[${EXTRAS}]"

WORKDIR /work
CMD ["maejax", "--help"]
