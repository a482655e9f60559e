# syntax=docker/dockerfile:1
# The export as a job on the target GPU: builds TensorRT engines into a volume. TensorRT must be the server's, so both
# images take the same version.
#
#   docker build -f docker/export.Dockerfile -t visard-export .
#   docker run --rm --gpus all -v visard-models:/models -v ./weights:/weights:ro visard-export
ARG TRITON_VERSION=26.05
FROM nvcr.io/nvidia/tensorrt:${TRITON_VERSION}-py3
WORKDIR /src
COPY . .
# What is installed is this checkout, with the versions that it asks for.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[export]' 'torch==2.13.0' \
    && install -d -o 1000 -g 1000 /models
USER 1000:1000
ENTRYPOINT ["visard", "export"]
CMD ["/models/served", "--profile", "tensorrt", "--precision", "fp16", \
     "--classifier", "/weights/gender_classifier.safetensors", \
     "--to-male", "/weights/persona.safetensors", \
     "--to-female", "/weights/persona.safetensors"]
