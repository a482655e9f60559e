"""PyTorch eager, FP32: warm, or the way of a notebook, which loads the weights anew for every image (`--cold`).

A notebook has no server: bare TCP connections, served one image at a time, stand for its loop. The networks are
Visard's own modules from the same checkpoints that the ONNX files were made of, so `--models` is a folder of three.
"""

import argparse
import socket
import threading
from pathlib import Path

import numpy as np
import torch
from graph import IMAGE_BYTES, SHAPE, cores

from visard_export.checkpoints import load_classifier, load_generator
from visard_export.graphs import build_graph

REQUIREMENTS = ("visard[export]",)

one_at_a_time = threading.Lock()


class Networks:
    """The three graphs as torch modules."""

    def __init__(self, folder: Path) -> None:
        self.classifier = build_graph(load_classifier(folder / "gender_classifier.safetensors").network()).eval()
        network = load_generator(folder / "persona.safetensors").network()
        self.generators = [build_graph(network, direction=name).eval() for name in ("to_male", "to_female")]
        self.persona = torch.zeros(1, 1, dtype=torch.int32)

    @torch.inference_mode()
    def __call__(self, image: torch.Tensor) -> bytes:
        """Classify, swap, classify: pixels and both pairs of probabilities."""
        gender = self.classifier(image)
        swapped = self.generators[int(gender[0, 0] < gender[0, 1])](image, self.persona)
        return b"".join(tensor.numpy().tobytes() for tensor in (swapped, gender, self.classifier(swapped)))


def serve(connection: socket.socket, folder: Path, warm: Networks | None) -> None:
    """Answer one caller until it hangs up."""
    body = bytearray(IMAGE_BYTES)
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while connection.recv_into(body, IMAGE_BYTES, socket.MSG_WAITALL) == IMAGE_BYTES:
            image = torch.from_numpy(np.frombuffer(bytes(body), np.uint8).reshape(1, *SHAPE).copy())
            with one_at_a_time:
                answer = (warm or Networks(folder))(image)
            connection.sendall(answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--cold", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(cores())
    warm = None if arguments.cold else Networks(arguments.models)
    with socket.create_server(("127.0.0.1", arguments.port), backlog=64) as server:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=serve, args=(connection, arguments.models, warm), daemon=True).start()


if __name__ == "__main__":
    main()
