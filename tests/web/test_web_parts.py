"""Parts of the web server that need no server: what is kept, keys, forms, errors, settings."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from dataclasses import replace

import numpy as np
import pytest

import visard_errors
from visard import Overloaded, ServerUnavailable, VisardError
from visard.pipeline import Found
from visard_errors import DataError
from visard_web.body import parse_form
from visard_web.keys import Keys
from visard_web.log import JsonLines
from visard_web.problems import Problem, problem_of
from visard_web.settings import Settings
from visard_web.store import Store


def found(pixels=100):
    return Found(photo=np.zeros((pixels, 1, 3), np.uint8), faces=(), genders=(), seconds={})


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def forgotten(store, name):
    with pytest.raises(Problem) as problem:
        store.get(name)
    return problem.value.error == "Forgotten"


def test_photos_are_kept_for_their_time():
    clock = Clock()
    store = Store(keep_s=60, most=9, most_bytes=10**6, clock=clock)
    first = store.add(found())
    clock.now = 59.9
    second = store.add(found())
    assert store.get(first).expires == 60
    clock.now = 60
    assert forgotten(store, first)
    assert (len(store), store.size) == (1, 300)
    assert store.get(second)


def test_the_oldest_make_room():
    store = Store(keep_s=60, most=2, most_bytes=1000)
    names = [store.add(found()) for _ in range(3)]
    assert forgotten(store, names[0])
    large = store.add(found(pixels=300))  # 900 bytes: there is room for nothing beside it
    assert forgotten(store, names[1])
    assert forgotten(store, names[2])
    assert store.get(large)
    larger = store.add(found(pixels=3000))  # the newest is kept in any case
    assert (store.get(larger).size, len(store)) == (9000, 1)


def test_crops_that_are_kept_for_the_swap_are_counted():
    store = Store(keep_s=60, most=9, most_bytes=10**6)
    store.add(replace(found(), aligned={0: np.zeros((512, 512, 3), np.uint8)}))
    assert store.size == 300 + 512 * 512 * 3


def test_names_cannot_be_guessed():
    store = Store(keep_s=60, most=99, most_bytes=10**6)
    names = {store.add(found()) for _ in range(50)}
    assert len(names) == 50
    assert all(len(name) == 32 for name in names)  # 24 random bytes


def test_keys_are_those_of_the_gateway_too(tmp_path):
    path = tmp_path / "keys"
    one, two = (hashlib.sha256(key).hexdigest() for key in (b"one", b"two"))
    path.write_text(f"# keys\n\n{one} alice;\n{two} bob\n")
    keys = Keys(path)
    assert [keys.name(key) for key in ("one", "two", "three", "", "é\udcff")] == ["alice", "bob", None, None, None]


@pytest.mark.parametrize("text", ["", "# nobody\n", "secret alice\n", "abc", "\xff"])
def test_key_files_that_let_nobody_in_are_refused(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match="keys"):
        Keys(path)
    with pytest.raises(DataError):
        Keys(tmp_path / "missing")


def test_forms_are_read_as_sent():
    body = (
        b'--x\r\nContent-Disposition: form-data; name="consent"\r\n\r\nyes\r\n'
        b'--x\r\ncontent-disposition: form-data; name="photo"; filename="../../etc/passwd"\r\n'
        b"Content-Type: image/png\r\n\r\n\r\n--\r\n\x00\xff--x?\r\n--x--\r\nepilogue"
    )
    assert parse_form('multipart/form-data; boundary="x"', body) == {
        "consent": b"yes",
        "photo": b"\r\n--\r\n\x00\xff--x?",
    }


def test_a_form_of_many_parts_is_refused():
    part = '--x\r\nContent-Disposition: form-data; name="%d"\r\n\r\n1\r\n'
    body = "".join(part % number for number in range(9)).encode() + b"--x--\r\n"
    with pytest.raises(Problem, match="too many"):
        parse_form("multipart/form-data; boundary=x", body)


@pytest.mark.parametrize("kind", [kind for kind in vars(visard_errors).values() if isinstance(kind, type)])
def test_every_error_has_a_status(kind):
    error = kind("web", "this") if kind is visard_errors.MissingExtra else kind("why")
    problem = problem_of(error)
    assert problem.error == kind.__name__
    if issubclass(kind, visard_errors.PhotoError):
        assert 400 <= problem.status < 500
        assert problem.detail == "why"
    elif issubclass(kind, visard_errors.ServerError):
        assert problem.status in (502, 503, 504)
    elif kind is not VisardError:
        assert problem.status == 500
    assert ("Retry-After" in problem.headers) is (problem.status == 503)


def test_a_pause_that_was_asked_for_is_passed_on():
    busy = Overloaded("full")
    busy.retry_after_s = 41.5
    assert problem_of(busy).headers["Retry-After"] == "42"
    assert "10.0.0.7" not in problem_of(ServerUnavailable("no server answers at 10.0.0.7:8001")).detail


def test_logs_are_json_without_messages_of_exceptions():
    try:
        raise ValueError("pixels of Jane Doe")
    except ValueError:
        raised = sys.exc_info()
    record = logging.makeLogRecord({"msg": "defect", "exc_info": raised, "fields": {"a": 1}})
    line = JsonLines().format(record)
    assert "Jane" not in line
    assert (json.loads(line)["exception"], json.loads(line)["a"]) == ("ValueError", 1)
    assert "test_web_parts.py" in json.loads(line)["at"][0]


@pytest.mark.parametrize(
    "values", [{"rate": "often"}, {"rate": "5"}, {"max_bytes": 0}, {"keep_s": -1}, {"in_work": 0}, {"waiting": -1}]
)
def test_settings_refuse(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        Settings(**values)
