"""FastAPI and onnxruntime under uvicorn, one worker process per core, uvloop and httptools.

FastAPI does not batch. The image travels as the raw body of a POST, both ways: the leanest that HTTP offers, leaner
than the JSON or the multipart form of most tutorials.
"""

import os

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from graph import Graph, arguments, batch_of, cores

REQUIREMENTS = ("fastapi>=0.115", "uvicorn[standard]>=0.30", "numpy", "onnxruntime")

app = FastAPI()
graph = Graph(os.environ["PEER_MODELS"]) if "PEER_MODELS" in os.environ else None


@app.post("/swap")
async def swap(request: Request) -> Response:
    """One image in, one answer out."""
    body = await request.body()
    answer = await run_in_threadpool(lambda: graph(batch_of([body]))[0])
    return Response(answer, media_type="application/octet-stream")


def main() -> None:
    given = arguments(__doc__)
    os.environ["PEER_MODELS"] = given.models
    uvicorn.run("serve_fastapi:app", port=given.port, workers=cores(), log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
