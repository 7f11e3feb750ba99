"""Rows from files of every kind, and selection of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gym.client.datasets import read_rows, repeated, scan, take
from gym.errors import Malformed

ROWS: list[dict[str, Any]] = [
    {
        "responses_create_params": {"input": [{"role": "user", "content": f"question {n}"}]},
        "answer": n,
        "task_id": f"t{n}",
    }
    for n in range(10)
]


def save_to_disk(folder: Path, rows: list[dict[str, Any]], files: int = 1) -> None:
    """Write the files of Hugging Face's `datasets.Dataset.save_to_disk`: arrow streams and a state that names them."""
    folder.mkdir(parents=True)
    names = []
    for number in range(files):
        name = f"data-{number:05d}-of-{files:05d}.arrow"
        table = pa.Table.from_pylist(rows[number::files])
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        names.append({"filename": name})
    (folder / "state.json").write_text(json.dumps({"_data_files": names, "_split": None}))
    (folder / "dataset_info.json").write_text("{}")


def test_parquet_and_saved_datasets_hold_the_rows_of_the_same_jsonl(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    save_to_disk(tmp_path / "saved", ROWS)
    (tmp_path / "shards").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS[:6]), tmp_path / "shards" / "a.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS[6:]), tmp_path / "shards" / "b.parquet")

    for name in ("rows.jsonl", "rows.parquet", "saved", "shards"):
        found = read_rows(tmp_path / name)
        assert (name, found.rows) == (name, ROWS)
        assert found.lines == list(range(1, 11))


def test_a_dataset_in_several_files_is_read_in_their_order(tmp_path: Path) -> None:
    save_to_disk(tmp_path / "saved", ROWS, files=3)
    assert [row["answer"] for row in read_rows(tmp_path / "saved").rows] == [0, 3, 6, 9, 1, 4, 7, 2, 5, 8]


def test_a_dataset_with_splits_is_read_by_split(tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    save_to_disk(tmp_path / "all" / "train", ROWS[:8])
    save_to_disk(tmp_path / "all" / "test", ROWS[8:])

    assert read_rows(tmp_path / "all", split="test").rows == ROWS[8:]
    for split in (None, "dev"):
        with pytest.raises(Malformed, match="has the splits train, test"):
            read_rows(tmp_path / "all", split=split)


def test_empty_cells_are_left_out_and_parameters_may_be_json_text(tmp_path: Path) -> None:
    rows = [
        {"responses_create_params": '{"input": "hi"}', "info": {"a": 1, "b": None}, "environment": None},
        {"responses_create_params": '{"input": "ho"}', "info": {"a": None, "b": 2}, "environment": "sql"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert read_rows(tmp_path / "rows.parquet").rows == [
        {"responses_create_params": {"input": "hi"}, "info": {"a": 1}},
        {"responses_create_params": {"input": "ho"}, "info": {"b": 2}, "environment": "sql"},
    ]


def test_a_field_becomes_the_input_of_rows_that_have_none(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"question": "2 + 2?", "answer": "4"}]), tmp_path / "gsm.parquet")
    (row,) = read_rows(tmp_path / "gsm.parquet", prompt="question").rows
    assert row["responses_create_params"] == {"input": "2 + 2?"}


@pytest.mark.parametrize("name", ["bad.parquet", "bad.arrow", "empty", "missing.parquet", "missing.jsonl"])
def test_what_is_no_file_of_rows_says_so(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    for bad in ("bad.parquet", "bad.arrow"):
        (tmp_path / bad).write_bytes(b"this is no table at all")
    with pytest.raises(Malformed, match=name):
        read_rows(tmp_path / name)


def test_scanning_goes_on_behind_a_line_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n\nnot json\n{"a": 2}\n')
    found = [(line.number, line.row, line.fault is not None) for line in scan(tmp_path / "rows.jsonl")]
    assert found == [(1, {"a": 1}, False), (3, None, True), (4, {"a": 2}, False)]


def test_the_same_seed_draws_the_same_rows_out_of_the_first_ones() -> None:
    drawn = take(range(100), limit=50, sample=10, seed=7)
    assert drawn == take(range(100), limit=50, sample=10, seed=7) != take(range(100), limit=50, sample=10, seed=8)
    assert len(set(drawn)) == 10
    assert max(drawn) < 50
    assert len(take(range(3), sample=10)) == 3


def test_repeated_rows_are_tasks_of_their_own() -> None:
    rows = repeated([{"task_id": "a"}, {"n": 1}], 3)
    assert [row.get("task_id") for row in rows] == ["a", None, "a-r1", None, "a-r2", None]


def test_taken_rows_keep_their_lines(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    taken = read_rows(tmp_path / "rows.jsonl").taken(sample=4, seed=1, repeat=2)
    assert [row["answer"] + 1 for row in taken.rows] == taken.lines
    assert len(taken.rows) == 8
