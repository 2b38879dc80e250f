# An image with maejax, for the hosts of `maejax launch` and others:
#
#   docker build --build-arg EXTRAS=cuda,gcs,s3,k8s --tag REGISTRY/maejax .
#
# EXTRAS: tpu for hosts with TPUs, cuda for NVIDIA's (it brings CUDA; the host has the driver), neither for CPUs; k8s
# for several hosts of a Kubernetes job; gcs and s3 for buckets; more in docs/index.md. Versions are those of
# scripts/setup.sh.
FROM python:3.12-slim
ARG EXTRAS=gcs,s3,k8s
ENV PYTHONUNBUFFERED=1

WORKDIR /opt/maejax
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY constraints constraints
COPY src src
RUN pip install --no-cache-dir --constraint constraints/tpu.txt ".[${EXTRAS}]"

WORKDIR /work
CMD ["maejax", "--help"]
