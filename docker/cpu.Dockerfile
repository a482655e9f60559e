# syntax=docker/dockerfile:1
# For laptops and CI: the embedded Triton from its wheel with the demo models, no NVIDIA anything needed.
#
#   docker build -f docker/cpu.Dockerfile -t visard-cpu .
#   docker run --rm --read-only --tmpfs /tmp:exec -p 127.0.0.1:8001:8001 visard-cpu
FROM python:3.11-slim-bookworm
WORKDIR /src
COPY . .
# What is installed is this checkout, with the versions that it asks for.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[serve]' \
    && python -c 'from pathlib import Path; from visard_export.prebuilt import put_together; put_together(Path("/models"))'
WORKDIR /
ENV PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
EXPOSE 8001 8000 8002
STOPSIGNAL SIGTERM
ENTRYPOINT ["visard", "serve", "/models", "--host", "0.0.0.0", "--port", "8001", "--http-port", "8000", \
            "--metrics-port", "8002"]
HEALTHCHECK --interval=10s --timeout=3s --start-period=1m \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready')"]
