"""The inference server on one machine: NVIDIA Triton from a wheel, and the backend that serves ONNX models in it."""
