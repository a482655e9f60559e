"""No server at all: images over bare TCP connections, a thread for each, and the graph.

The floor of what any server on loopback costs in Python: the kernel copies each image twice per direction, and nothing
is parsed, queued or batched.
"""

import socket
import threading

from graph import IMAGE_BYTES, Graph, arguments, batch_of

REQUIREMENTS = ("numpy", "onnxruntime")


def serve(connection: socket.socket, models: str) -> None:
    """Answer one caller until it hangs up."""
    graph, body = Graph(models), bytearray(IMAGE_BYTES)
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while connection.recv_into(body, IMAGE_BYTES, socket.MSG_WAITALL) == IMAGE_BYTES:
            connection.sendall(graph(batch_of([body]))[0])


def main() -> None:
    given = arguments(__doc__)
    with socket.create_server(("127.0.0.1", given.port), backlog=64) as server:
        while True:
            connection, _ = server.accept()
            threading.Thread(target=serve, args=(connection, given.models), daemon=True).start()


if __name__ == "__main__":
    main()
