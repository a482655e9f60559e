"""PyTriton: a Python function bound to Triton, with Triton's dynamic batching, asked over raw gRPC.

One instance: of several, all but the first wait one second for their sibling and give up, which on a busy machine is
the rule. Triton's Python stub must load this Python's own library, or multiprocessing does not start in it: so the
process starts itself anew with the library's folder in its path.
"""

import argparse
import functools
import os
import signal
import sys
import sysconfig
import threading

import numpy as np
from graph import Graph
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

REQUIREMENTS = ("nvidia-pytriton==0.7.0", "numpy<2", "onnxruntime")


def function(models: str) -> object:
    """Make one instance's function."""
    graph = functools.cache(lambda: Graph(models))  # made in the process that runs it

    @batch
    def swap(image: np.ndarray, persona: np.ndarray) -> dict[str, np.ndarray]:
        del persona  # the graphs bring their own, as for the other peers
        answers = graph()(image)
        swapped = np.stack([np.frombuffer(answer, np.uint8, image[0].size) for answer in answers])
        return {"swapped": swapped.reshape(image.shape)}

    return swap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--models", required=True)
    arguments = parser.parse_args()
    libraries = sysconfig.get_config_var("LIBDIR")
    if libraries not in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep):
        path = os.pathsep.join(filter(None, (libraries, os.environ.get("LD_LIBRARY_PATH"))))
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "LD_LIBRARY_PATH": path})
    end = threading.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sign, lambda *_: end.set())
    config = TritonConfig(grpc_address="127.0.0.1", grpc_port=arguments.port, allow_http=False, allow_metrics=False)
    tensor = [512, 512, 3]
    with Triton(config=config) as triton:
        triton.bind(
            model_name="swap",
            infer_func=function(arguments.models),
            inputs=[
                Tensor(name="image", dtype=np.uint8, shape=tensor),
                Tensor(name="persona", dtype=np.int32, shape=[1]),
            ],
            outputs=[Tensor(name="swapped", dtype=np.uint8, shape=tensor)],
            config=ModelConfig(max_batch_size=4, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.run()
        end.wait()


if __name__ == "__main__":
    main()
