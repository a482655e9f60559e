# syntax=docker/dockerfile:1
# The export as a job on the target GPU: builds TensorRT engines into a volume. An engine runs only on the TensorRT that
# built it, so this is the server's own image, which says its TensorRT's version, with the Python interface to the same.
#
#   docker build -f docker/export.Dockerfile -t visard-export .
#   docker run --rm --gpus all -v visard-models:/models -v ./weights:/weights:ro visard-export
ARG TRITON_VERSION=26.05
FROM nvcr.io/nvidia/tritonserver:${TRITON_VERSION}-py3
WORKDIR /src
COPY . .
# What is installed is this checkout, with the versions that it asks for.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --break-system-packages '.[export]' 'torch==2.13.0' "tensorrt==${TRT_VERSION%%+*}" \
    && install -d -o 1000 -g 1000 /models
USER 1000:1000
ENTRYPOINT ["visard", "export"]
CMD ["/models/served", "--profile", "tensorrt", "--precision", "fp16", \
     "--classifier", "/weights/gender_classifier.safetensors", \
     "--to-male", "/weights/persona.safetensors", \
     "--to-female", "/weights/persona.safetensors"]
