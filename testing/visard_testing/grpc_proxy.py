"""A real gRPC server in front of a real Triton that fails in ways Triton itself cannot be asked to."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass
class GrpcProxy:
    """Forwards every call as raw bytes and writes down its method and metadata, and of inferences what was sent.

    `faults` are statuses to answer with, one per inference call, before anything is forwarded; `lost` those to answer
    with instead of swapped faces, which the server has made. `token` is the bearer
    token to ask for. `credentials` make it speak TLS.
    """

    upstream: str
    faults: list[grpc.StatusCode] = field(default_factory=list)
    lost: list[grpc.StatusCode] = field(default_factory=list)
    token: str | None = None
    credentials: grpc.ServerCredentials | None = None
    calls: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    sent: list[bytes] = field(default_factory=list)
    cancelled: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self.connect()
        self._server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", -1)])
        self._server.add_generic_rpc_handlers((_Forward(self),))
        if self.credentials is None:
            port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            port = self._server.add_secure_port("127.0.0.1:0", self.credentials)
        self.url = f"127.0.0.1:{port}"
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(0).wait()
        self._channel.close()

    def connect(self) -> None:
        """Forward to `upstream` from now on."""
        self._channel = grpc.insecure_channel(self.upstream, options=[("grpc.max_receive_message_length", -1)])

    def inferences(self) -> list[tuple[str, dict[str, str]]]:
        """Those of `calls` that are inferences."""
        return [call for call in self.calls if call[0].endswith("ModelInfer")]

    def models(self) -> list[str]:
        """Whom inferences asked, in their order."""
        return [service_pb2.ModelInferRequest.FromString(request).model_name for request in self.sent]

    def personas(self) -> list[list[int]]:
        """The numbers that inferences brought, one list for each."""
        numbers = []
        for request in filter(_has_personas, self.sent):
            tensors = service_pb2.ModelInferRequest.FromString(request).raw_input_contents
            numbers.append(np.frombuffer(tensors[-1], np.int32).tolist())
        return numbers

    def forward(self, method: str, request: bytes, context: Any) -> bytes:
        """Answer one call, as `faults`, `token` and `lost` say or as the server does."""
        metadata = dict(context.invocation_metadata())
        self.calls.append((method, metadata))
        if method.endswith("ModelInfer"):
            self.sent.append(request)
        if self.token is not None and metadata.get("authorization") != f"Bearer {self.token}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "invalid token")
        if method.endswith("ModelInfer") and self.faults:
            context.abort(self.faults.pop(0), "as the test asked")
        answer = self._channel.unary_unary(method).future(request, timeout=60)

        def give_up() -> None:
            if answer.cancel():
                self.cancelled.set()

        if not context.add_callback(give_up):  # the caller has gone already
            give_up()
        try:
            answered = answer.result()
        except grpc.FutureCancelledError:
            return b""
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())
        if method.endswith("ModelInfer") and self.lost and _has_personas(request):
            context.abort(self.lost.pop(0), "as the test asked")
        return bytes(answered)


def _has_personas(request: bytes) -> bool:
    return "persona" in {tensor.name for tensor in service_pb2.ModelInferRequest.FromString(request).inputs}


class _Forward(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    def __init__(self, proxy: GrpcProxy) -> None:
        self._proxy = proxy

    def service(self, handler_call_details: Any) -> Any:
        method = handler_call_details.method
        return grpc.unary_unary_rpc_method_handler(
            lambda request, context: self._proxy.forward(method, request, context)
        )
