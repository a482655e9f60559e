"""The examples in the docstrings of the SDK are executed as they stand there, but for the server's address."""

import asyncio
import doctest

import pytest

import visard
from visard.personas import draw

PUBLIC = [getattr(visard, name) for name in visard.__all__]
EXAMPLES = [
    test
    for public in (*(each for each in PUBLIC if isinstance(each, type)), draw)
    for test in doctest.DocTestFinder().find(public, public.__name__, globs={})
    if test.examples
]


@pytest.mark.parametrize("test", EXAMPLES, ids=lambda test: test.name)
def test_examples_run(test, tiny_server, astronaut, tmp_path, monkeypatch):
    (tmp_path / "photo.jpg").write_bytes(astronaut.read_bytes())
    monkeypatch.chdir(tmp_path)
    for example in test.examples:
        example.source = example.source.replace("127.0.0.1:8001", tiny_server.grpc_url)
    said = []
    with visard.Client(tiny_server.grpc_url) as client:
        test.globs.update(visard=visard, asyncio=asyncio, client=client, draw=draw)
        failed, _ = doctest.DocTestRunner().run(test, out=said.append)
    assert not failed, "".join(said)


def test_every_method_of_the_client_has_an_example():
    methods = {f"Client.{name}" for name in vars(visard.Client) if not name.startswith("_")}
    assert methods <= {test.name for test in EXAMPLES}
