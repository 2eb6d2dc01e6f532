"""The published figures: what the page reads is whole, and they are those of the article."""

from __future__ import annotations

import json
from importlib.resources import files

import pytest

from worldr1.evaluation.measures import MEASURES

PUBLISHED = json.loads((files("worldr1") / "assets" / "published.json").read_text(encoding="utf-8"))
TABLES = {table["id"]: table for table in PUBLISHED["tables"]}


def test_every_table_says_where_it_is_from_and_what_its_columns_are() -> None:
    assert PUBLISHED["schema"] == 1 and "2604.24764" in PUBLISHED["source"]
    assert set(TABLES) == {"main", "frames_121", "ablations", "data", "vbench"} and len(PUBLISHED["tables"]) == len(
        TABLES
    )
    for table in TABLES.values():
        assert set(table) == {"id", "title", "note", "source", "frames", "rows"}
        assert "2604.24764" in table["source"] and table["title"] and table["frames"] in (81, 121)
        names = [row["name"] for row in table["rows"]]
        assert names and len(set(names)) == len(names)
        for row in table["rows"]:
            columns = row.keys() - {"name"}
            assert columns and columns <= PUBLISHED["measures"].keys()
            assert columns == table["rows"][0].keys() - {"name"}
            assert all(type(row[column]) in (int, float) for column in columns)


def test_each_measure_has_a_unit_a_direction_and_ours_beside_it() -> None:
    for name, measure in PUBLISHED["measures"].items():
        assert set(measure) == {"label", "unit", "better", "measure"} and measure["better"] in ("up", "down", "same")
        if not name.startswith("vbench") and measure["measure"] is not None:
            assert MEASURES[measure["measure"]].better == measure["better"]  # what the page puts in its own row


@pytest.mark.parametrize(
    "table, row, column, value",
    [
        ("main", 0, "psnr", 17.40), ("main", 1, "rot_err", 1.50), ("main", 2, "trans_err", 60.90),
        ("main", 3, "cam_mc", 2.95), ("frames_121", 0, "psnr", 18.32), ("frames_121", 1, "psnr", 26.32),
        ("ablations", 1, "vbench_average", 82.64), ("ablations", 2, "psnr", 24.46), ("data", 1, "psnr", 26.54),
        ("vbench", 0, "vbench_average", 85.21),
    ],
)  # fmt: skip
def test_figures_of_the_article(table: str, row: int, column: str, value: float) -> None:
    assert TABLES[table]["rows"][row][column] == value


def test_the_tables_agree_where_they_meet() -> None:
    """World-R1-Small stands in four of them, 3,000 prompts are its data."""
    small = TABLES["main"]["rows"][1]["psnr"]
    assert TABLES["ablations"]["rows"][0]["psnr"] == TABLES["data"]["rows"][2]["psnr"] == small
    assert TABLES["ablations"]["rows"][0]["vbench_average"] == TABLES["vbench"]["rows"][0]["vbench_average"]
