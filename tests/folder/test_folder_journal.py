"""The journal of `visard folder` and the manifest made of it: nothing is lost, nothing is mixed up."""

from __future__ import annotations

import csv
import json
import os
import sqlite3
import sys

import pytest

from visard_errors import OutputError
from visard_folder.journal import FaceRecord, Journal, Record, printable
from visard_folder.manifest import write_manifest


def record(path, outcome="anonymised", **changes):
    return Record(path=path, outcome=outcome, **changes)


FACE = FaceRecord(box=(1, 2, 3, 4), outcome="swapped", target="male", gender_confidence=0.9)


def test_journal_remembers_exactly(tmp_path):
    wild = os.fsdecode(b"\xff/\xe5\x86\x99\n'\".jpg")
    written = record(
        wild, hash="ab", width=3, height=4, faces_found=1, faces=(FACE,), size_bytes=5, seconds={"find": 0.1}
    )
    failed = record("a.jpg", "failed", error="CorruptPhoto", message="damaged")
    with Journal(tmp_path / "out", {"unswapped": "withhold"}) as journal:
        journal.add(written)
        journal.add(failed)
        assert journal.get(wild) == written
        assert journal.get("none") is None
        assert list(journal.records()) == [failed, written]  # by the bytes of the path
        summary = journal.summary()
        assert summary["outcomes"]["anonymised"] == summary["outcomes"]["failed"] == 1
        assert summary["errors"] == {"CorruptPhoto": 1}
    with Journal(tmp_path / "out", {"unswapped": "withhold"}) as journal:
        assert journal.get(wild) == written
        assert journal.settings() == {"unswapped": "withhold"}


def test_journal_knows_whether_its_reports_tell_all(tmp_path):
    reports = {"manifest": [tmp_path / ".visard" / "m.csv"]}
    with Journal(tmp_path, {}) as journal:
        journal.add(record("a.jpg", "failed", seconds={"read": 0.1}))
        assert journal.reports() == {}  # as after a run that was killed before its end
        reports["manifest"][0].touch()
        journal.reported(reports)
        assert journal.reports() == reports
    with Journal(tmp_path, {}) as journal:
        assert journal.reports() == reports
        assert journal.failed_as_before(record("a.jpg", "failed", seconds={"read": 0.2}))
        assert not journal.failed_as_before(record("a.jpg", "failed", message="another"))
        assert not journal.failed_as_before(record("a.jpg"))
        assert not journal.failed_as_before(record("b.jpg", "failed"))
        journal.add(record("b.jpg"))
        assert journal.reports() == {}
        journal.reported(reports)
        reports["manifest"][0].unlink()
        assert journal.reports() == {}
        reports["manifest"][0].touch()
    with Journal(tmp_path, {}, force=True) as journal:
        assert journal.reports() == {}
        assert not journal.failed_as_before(record("a.jpg", "failed"))  # it has to be done, and known, again
        assert journal.finish() == 2


def test_journal_knows_what_is_left_to_do(tmp_path):
    with Journal(tmp_path, {}) as journal:
        (tmp_path / "a.jpg").write_bytes(b"12345")
        journal.add(record("a.jpg", size_bytes=5), (9, 100))
        journal.add(record("gone.jpg", size_bytes=5), (9, 100))
        journal.add(record("withheld.jpg", "withheld"), (9, 100))
        journal.add(record("failed.jpg", "failed"), (9, 100))
        assert journal.is_done("a.jpg", (9, 100))
        assert journal.is_done("withheld.jpg", (9, 100))
        assert not journal.is_done("a.jpg", (9, 101))  # the source has changed
        journal.add(record("drawn.jpg", "withheld", boxes=((1.0, 2.0, 30.5, 40.0),)), (9, 100))
        assert journal.is_done("drawn.jpg", (9, 100), ((1.0, 2.0, 30.5, 40.0),))
        assert journal.is_done("drawn.jpg", (9, 100))  # without boxes those of before count
        assert not journal.is_done("drawn.jpg", (9, 100), ())
        assert not journal.is_done("withheld.jpg", (9, 100), ((1.0, 2.0, 30.5, 40.0),))
        assert journal.is_done("withheld.jpg", (9, 100), ())
        assert not journal.is_done("gone.jpg", (9, 100))
        assert not journal.is_done("failed.jpg", (9, 100))
        assert not journal.is_done("new.jpg", (9, 100))
        (tmp_path / "a.jpg").write_bytes(b"1234")
        assert not journal.is_done("a.jpg", (9, 100))


def test_other_settings_are_refused_and_forced(tmp_path):
    with Journal(tmp_path, {"unswapped": "withhold", "models": {"a": "1"}}) as journal:
        (tmp_path / "old.jpg").write_bytes(b"12345")
        journal.add(record("old.jpg", size_bytes=5))
    with pytest.raises(OutputError, match=r"unswapped: withhold, now cover.*--force"):
        Journal(tmp_path, {"unswapped": "cover", "models": {"a": "1"}})
    with Journal(tmp_path, {"unswapped": "cover", "models": {"a": "1"}}, force=True) as journal:
        assert not journal.is_done("old.jpg")
        assert list(journal.records()) == []
    with Journal(tmp_path, {"unswapped": "cover", "models": {"a": "1"}}) as journal:
        assert not journal.is_done("old.jpg")  # still, after a forced run was interrupted
        journal.finish()
        assert not (tmp_path / "old.jpg").exists()  # its source is gone: nothing of other settings stays


def test_one_run_at_a_time_and_nothing_foreign(tmp_path):
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "holiday.jpg").touch()
    with pytest.raises(OutputError, match="something else"):
        Journal(tmp_path / "foreign", {})
    with Journal(tmp_path / "out", {}), pytest.raises(OutputError, match="another run"):
        Journal(tmp_path / "out", {})
    with Journal(tmp_path / "out", {}):
        pass


def test_drafts_of_a_killed_run_are_swept(tmp_path):
    with Journal(tmp_path, {}) as journal:
        (journal.drafts / "half").write_bytes(b"x")
    with Journal(tmp_path, {}) as journal:
        assert list(journal.drafts.iterdir()) == []


def test_damaged_journal_is_a_clear_error(tmp_path):
    with Journal(tmp_path, {}):
        pass
    (tmp_path / ".visard" / "journal.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(OutputError, match="journal"):
        Journal(tmp_path, {})


def test_names_that_differ_by_case_are_claimed_once(tmp_path):
    with Journal(tmp_path, {}) as journal:
        assert journal.claim("sub/A.jpg") == "sub/A.jpg"
        assert journal.claim("sub/a.JPG") == "sub/A.jpg"
    with Journal(tmp_path, {}) as journal:
        assert journal.claim("sub/a.JPG") == "sub/A.jpg"  # the next run decides the same
        assert journal.claim("sub/b.jpg") == "sub/b.jpg"


def test_manifest_in_both_formats(tmp_path):
    import pyarrow.parquet as pq

    wild = os.fsdecode(b"\xff\\.jpg")
    records = [
        record("b.jpg", width=3, height=4, faces_found=1, faces=(FACE,), size_bytes=5, seconds={"find": 0.1}),
        record(wild, "withheld", error="NoFace", message='with "quotes", and\nlines'),
    ]
    with Journal(tmp_path, {}) as journal:
        for each in records:
            journal.add(each)
        written = write_manifest(journal, pytest.fail)
    assert [path.name for path in written] == ["manifest.csv", "manifest.parquet"]
    with written[0].open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["b.jpg", r"\xff\\.jpg"]
    assert json.loads(rows[0]["faces"])[0]["box"] == [1, 2, 3, 4]
    assert rows[1]["message"] == records[1].message
    table = pq.read_table(written[1]).to_pylist()
    assert [row["path"] for row in table] == [row["path"] for row in rows]
    assert table[0]["faces"][0]["target"] == "male"
    assert table[0]["seconds"]["find"] == 0.1
    assert table[1]["width"] is None


def test_manifest_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    notices = []
    with Journal(tmp_path, {}) as journal:
        (path,) = write_manifest(journal, notices.append)
    assert path.name == "manifest.csv"
    assert "visard[folder]" in notices[0]


def test_no_two_paths_look_alike():
    paths = [os.fsdecode(raw) for raw in (b"\xff.jpg", rb"\xff.jpg", rb"\\xff.jpg", "ÿ.jpg".encode())]
    assert len({printable(path) for path in paths}) == len(paths)


def test_journal_holds_neither_pixels_nor_places(tmp_path):
    with Journal(tmp_path / "out", {}) as journal:
        journal.add(record("a.jpg", faces=(FACE,)))
        database = sqlite3.connect(journal.folder / "journal.sqlite")
        everything = "\n".join(database.iterdump())
        database.close()
    assert str(tmp_path) not in everything
