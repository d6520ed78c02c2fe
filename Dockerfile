# syntax=docker/dockerfile:1
# Two targets: `cpu` (the default) and `cuda` (docker build --target cuda .).
ARG PYTHON_VERSION=3.12

FROM python:${PYTHON_VERSION}-slim AS build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
# torch first and alone: the layer of some gigabytes survives every change of our own code.
COPY constraints.txt ./

FROM build AS build-cpu
# The index of CPU builds; a local build such as 2.13.0+cpu is preferred over plain 2.13.0.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} torch
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY mac_core mac_core
COPY server server
RUN pip install --constraint constraints.txt ".[faiss,import]"

FROM build AS build-cuda
RUN pip install --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY mac_core mac_core
COPY server server
RUN pip install --constraint constraints.txt ".[faiss,import]"

FROM python:${PYTHON_VERSION}-slim AS runtime
RUN groupadd --gid 10001 mac \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin mac \
    && install --directory --owner=10001 --group=10001 --mode=0750 /data
# HF_HUB_OFFLINE: everything the server needs is in the image; it never downloads a model.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_OFFLINE=1 \
    MAC_HOST=0.0.0.0 \
    MAC_PORT=8000 \
    MAC_DATA_DIR=/data
WORKDIR /data
VOLUME /data
EXPOSE 8000
USER 10001:10001
STOPSIGNAL SIGTERM
# Liveness: answers while the model loads. No proxy, whatever the environment names.
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s --retries=4 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['MAC_PORT'] + '/healthz', timeout=4)"]
CMD ["mac", "serve"]

FROM runtime AS cuda
ENV MAC_DEVICE=cuda
COPY --from=build-cuda /opt/venv /opt/venv
ARG COMMIT=
ENV MAC_COMMIT=${COMMIT}

FROM runtime AS cpu
COPY --from=build-cpu /opt/venv /opt/venv
ARG COMMIT=
ENV MAC_COMMIT=${COMMIT}
