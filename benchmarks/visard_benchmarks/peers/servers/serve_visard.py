"""Visard's own server: the embedded Triton with the CPU profile, gRPC and shared memory open."""

from graph import arguments

from visard_server.triton import TritonServer

REQUIREMENTS = ("visard[serve]",)


def main() -> None:
    given = arguments(__doc__)
    with TritonServer(given.models, grpc_port=given.port, shared_memory=True) as server:
        server.wait()


if __name__ == "__main__":
    main()
