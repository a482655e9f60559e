# syntax=docker/dockerfile:1
# Production on a GPU: NVIDIA's Triton with an exported model repository in it. No torch inside, no shell, no root.
#
#   docker build -f docker/server.Dockerfile -t visard-server .
#   ... --build-context weights=DIR    own weights instead of the demo's, under the names in export/visard_export/weights
#   ... --build-arg TRITON_VERSION=YY.MM
ARG TRITON_VERSION=26.05

FROM scratch AS weights
COPY export/visard_export/weights/ /

# The graphs are exported and verified on a CPU; onnxruntime builds its TensorRT engines when the server first starts,
# on the GPU that it finds, and keeps them in /var/cache/visard.
FROM python:3.12-slim-bookworm AS models
WORKDIR /src
COPY . .
# What is installed is this checkout, with the versions that it asks for.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu '.[export]' 'torch==2.13.0' \
    && install -d -o 1000 -g 1000 /cache
COPY --from=weights / /weights/
RUN ["visard", "export", "/models", "--profile", "gpu", "--precision", "fp16", "--encoded", \
     "--classifier", "/weights/gender_classifier.safetensors", \
     "--to-male", "/weights/persona.safetensors", \
     "--to-female", "/weights/persona.safetensors"]

FROM nvcr.io/nvidia/tritonserver:${TRITON_VERSION}-py3
COPY --from=models /models /models
COPY --from=models --chown=1000:1000 /cache /var/cache/visard
# For faces that travel as files (model_repository/face_decoder).
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --break-system-packages 'pillow>=11.3'
ENV PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
EXPOSE 8001 8000 8002
# Started directly, so that SIGTERM reaches it: it then finishes what is under way, for ten seconds at most. Triton's
# defaults are too small: two threads for gRPC hold up ensembles, and 64 MiB of each GPU's memory for tensors are less than
# the 75 MB of 96 faces under way. The option names the GPU: 0.
STOPSIGNAL SIGTERM
ENTRYPOINT ["/opt/tritonserver/bin/tritonserver", "--model-repository=/models", "--model-control-mode=none", \
            "--disable-auto-complete-config", "--exit-timeout-secs=10", "--metrics-config=summary_latencies=true", \
            "--grpc-infer-thread-count=8", "--cuda-memory-pool-byte-size=0:1073741824"]
HEALTHCHECK --interval=10s --timeout=3s --start-period=15m \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready')"]
