"""Visard's own server: the embedded Triton with the CPU profile, gRPC and shared memory open."""

import argparse

from visard_server.triton import TritonServer

REQUIREMENTS = ("visard[serve]",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--models", required=True)
    arguments = parser.parse_args()
    with TritonServer(arguments.models, grpc_port=arguments.port, shared_memory=True) as server:
        server.wait()


if __name__ == "__main__":
    main()
