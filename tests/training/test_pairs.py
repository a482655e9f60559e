from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from PIL import Image

from visard_errors import DataError, OutputError
from visard_training.pairs.folder import PairWriter, choose_pair, read_pairs

FILTERS = ("face found", "certain")


def image(value, size=16):
    return np.full((size, size, 3), value, np.uint8)


def writer(folder, **settings):
    return PairWriter(folder, settings={"seed": 1} | settings, filters=FILTERS, suffix=".png")


def add(to, source, female=10, male=20):
    return to.add(
        image(female),
        image(male),
        source=source,
        female_multiple=-0.5,
        male_multiple=1,
        p_female=0.97,
        p_male=0.99,
        split="holdout" if source == "b" else "train",
    )


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_what_is_written_is_read_again(tmp_path):
    with writer(tmp_path / "pairs") as pairs:
        add(pairs, 'a, the "first"\nphoto')
        add(pairs, "b", female=30, male=40)
    first, second = read_pairs(tmp_path / "pairs")
    assert first.source == 'a, the "first"\nphoto'
    assert (second.pair, second.source, second.split) == (1, "b", "holdout")
    assert (second.female_multiple, second.male_multiple) == (-0.5, 1)
    assert (second.p_female, second.p_male) == (0.97, 0.99)
    assert np.array_equal(np.asarray(Image.open(second.female)), image(30))
    assert np.array_equal(np.asarray(Image.open(second.male)), image(40))


def test_the_report_tells_how_many_survive_each_filter(tmp_path):
    with writer(tmp_path) as pairs:
        add(pairs, "a")
        pairs.drop("b", "face found")
        pairs.drop("c", "certain")
        pairs.drop("d", "certain")
        pairs.note("samples", {"female": 3})
    report = json.loads((tmp_path / "report.json").read_text())
    assert report == {
        "settings": {"seed": 1},
        "survival": {"sources": 4, "face found": 3, "certain": 1},
        "notes": {"samples": {"female": 3}},
    }
    with pytest.raises(ValueError, match="filter must be one of"):
        pairs.drop("e", "another")


def test_a_second_run_goes_on_after_the_first(tmp_path):
    with writer(tmp_path) as pairs:
        add(pairs, "a")
        pairs.drop("b", "certain")
    with writer(tmp_path) as pairs:
        assert pairs.done == {"a", "b"}
        assert add(pairs, "c").pair == 1
        assert pairs.survival == {"sources": 3, "face found": 3, "certain": 2}
    assert [pair.source for pair in read_pairs(tmp_path)] == ["a", "c"]


@pytest.mark.parametrize("cut", [1, 5, 30])
def test_a_row_that_was_cut_off_by_a_kill_does_not_count(tmp_path, cut):
    with writer(tmp_path) as pairs:
        add(pairs, "a")
        add(pairs, "b", female=50)
    table = tmp_path / "pairs.csv"
    table.write_bytes(table.read_bytes()[:-cut])
    with writer(tmp_path) as pairs:
        assert pairs.done == {"a"}
        add(pairs, "b", female=60)
    assert [pair.source for pair in read_pairs(tmp_path)] == ["a", "b"]
    assert np.asarray(Image.open(read_pairs(tmp_path)[1].female)).max() == 60


def test_a_folder_begun_with_other_settings_is_refused(tmp_path):
    with writer(tmp_path, certainty=0.9):
        pass
    with pytest.raises(OutputError, match=r"other settings \(certainty, psi\)"):
        writer(tmp_path, certainty=0.8, psi=1)


def test_a_failed_run_keeps_what_it_has(tmp_path):
    def run():
        with writer(tmp_path) as pairs:
            add(pairs, "a")
            raise RuntimeError("the machine is on fire")

    with pytest.raises(RuntimeError, match="fire"):
        run()
    assert [pair.source for pair in read_pairs(tmp_path)] == ["a"]
    assert json.loads((tmp_path / "report.json").read_text())["survival"]["sources"] == 1


def test_contact_sheets_show_female_left_and_male_right(tmp_path):
    with writer(tmp_path) as pairs:
        for i in range(50):
            add(pairs, str(i), female=3 * i, male=255 - 3 * i)
    assert sorted(path.name for path in tmp_path.glob("contact*")) == ["contact_sheet_1.jpg", "contact_sheet_2.jpg"]
    sheet = np.asarray(Image.open(tmp_path / "contact_sheet_1.jpg"))
    cell = sheet.shape[1] // 12
    centres = [sheet[cell // 2 + cell, cell // 2 + cell * column, 0] for column in range(12)]  # the second row
    expected = [value for i in range(6, 12) for value in (3 * i, 255 - 3 * i)]
    np.testing.assert_allclose(centres, expected, atol=2)
    rest = np.asarray(Image.open(tmp_path / "contact_sheet_2.jpg"))
    assert rest.shape[0] == cell  # 48 pairs stood on the first
    assert (rest[:, 4 * cell :] > 250).all()


@pytest.mark.parametrize(
    ("certainties", "expected"),
    [
        # p(male) from −Δ to +Δ
        ([0.01, 0.20, 0.50, 0.80, 0.99], (0, 4)),
        ([0.01, 0.02, 0.50, 0.98, 0.999], (1, 3)),  # the nearest, not the most certain
        ([0.01, 0.02, 0.03, 0.98, 0.999], (2, 3)),
        ([0.01, 0.03, 0.60, 0.96, 0.99], (1, 3)),
        ([0.04, 0.60, 0.97, 0.60, 0.99], (0, 2)),
        ([0.01, 0.50, 0.99, 0.04, 0.97], (3, 4)),
        ([0.01, 0.98, 0.01, 0.99, 0.50], (2, 3)),  # among equally near ones the more certain
        ([0.99, 0.98, 0.50, 0.02, 0.01], None),  # the wrong way round
        ([0.01, 0.02, 0.03, 0.04, 0.06], None),
        ([0.94] * 5, None),
    ],
)
def test_the_nearest_certain_versions_become_the_pair(certainties, expected):
    male = np.array(certainties)
    assert choose_pair(np.stack([1 - male, male], 1), 0.95) == expected


def lose_the_table(folder):
    (folder / "pairs.csv").unlink()


def leave_the_folder(folder):
    table = folder / "pairs.csv"
    table.write_text(table.read_text().replace("images/", "../images/"))


def lose_an_image(folder):
    next((folder / "images").glob("*_male.png")).unlink()


def lose_a_number(folder):
    table = folder / "pairs.csv"
    table.write_text(table.read_text().replace("0.97", "certain"))


def exceed_probability(folder):
    table = folder / "pairs.csv"
    table.write_text(table.read_text().replace("0.97", "97"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose_the_table, "cannot be read"),
        (leave_the_folder, "leaves the folder"),
        (lose_an_image, "lacks"),
        (lose_a_number, "damaged"),
        (exceed_probability, "probabilities"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, damage, message):
    with writer(tmp_path) as pairs:
        add(pairs, "a")
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path)


def test_a_folder_without_a_pair_is_refused_and_says_where_to_look(tmp_path):
    with writer(tmp_path) as pairs:
        pairs.drop("a", "certain")
    with pytest.raises(DataError, match=r"report\.json"):
        read_pairs(tmp_path)


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        writer(tmp_path / "file")
    with writer(tmp_path / "pairs"):
        pass
    (tmp_path / "pairs" / "dropped.csv").write_text("something,else\n1,2\n")
    with pytest.raises(DataError, match="other columns"):
        writer(tmp_path / "pairs")
