# syntax=docker/dockerfile:1
# The page and the REST API: `visard web` before models that run elsewhere. No model, no server, no torch inside, and
# nothing to write to but /dev/shm, which is memory.
#
#   docker build -f docker/web.Dockerfile -t visard-web .
#   docker run --rm --read-only -p 127.0.0.1:8080:8080 -e VISARD_TOKEN -v ./tls.crt:/etc/visard/tls.crt:ro \
#       visard-web --server gateway.example:8443 --ca /etc/visard/tls.crt
FROM python:3.11-slim-bookworm AS package
WORKDIR /src
COPY . .
# What is installed is this checkout, with the versions that it asks for.
# hadolint ignore=DL3013
RUN python -m venv /opt/visard && /opt/visard/bin/pip install --no-cache-dir '.[web]'

FROM python:3.11-slim-bookworm
COPY --from=package /opt/visard /opt/visard
ENV PATH=/opt/visard/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1
USER 1000:1000
EXPOSE 8080
# Started directly, so that SIGTERM reaches it: it then finishes what is under way, for thirty seconds at most.
STOPSIGNAL SIGTERM
ENTRYPOINT ["visard", "web", "--host", "0.0.0.0", "--port", "8080"]
# Ready means that the models are: each question costs them a few small requests.
HEALTHCHECK --interval=30s --timeout=10s --start-period=1m \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/readyz')"]
