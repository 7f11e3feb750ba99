from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym.environments.builtin.sql import SHOWN_ROWS, Sql
from gym.environments.builtin.sql_database import Database, QueryFailed
from gym.environments.builtin.sql_results import same_result
from gym.environments.builtin.sql_shop import QUESTIONS, SHOP_DATA, SHOP_SCHEMA
from gym.environments.hosting.session import EnvironmentSession
from gym.errors import EnvironmentFailed

pytestmark = pytest.mark.anyio
Open = Callable[..., EnvironmentSession]
Episode = Callable[..., Any]
COUNT_UP = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT {limit}) SELECT x FROM n"


def row(**fields: Any) -> dict[str, Any]:
    return {"responses_create_params": {"input": "?"}, "expected_rows": [[1]], **fields}


async def query(session: EnvironmentSession, sql: str) -> Any:
    return json.loads((await session.call_tool("query", json.dumps({"sql": sql}))).output)


async def reward_of(session: EnvironmentSession, trajectory: Any, *queries: str) -> float:
    await session.setup()
    for sql in queries:
        await query(session, sql)
    reward = await session.verify(trajectory)
    await session.close()
    return reward.value


async def test_the_tools_show_the_database_of_the_row(open_session: Open) -> None:
    session = open_session(Sql)
    await session.setup()
    assert json.loads((await session.call_tool("list_tables", "")).output) == ["authors", "books"]
    assert json.loads((await session.call_tool("describe", '{"table": "authors"}')).output) == [
        {"name": "author_id", "type": "INTEGER", "nullable": True, "primary_key": True},
        {"name": "name", "type": "TEXT", "nullable": False, "primary_key": False},
    ]
    assert await query(session, "SELECT name FROM authors WHERE author_id = 2") == {
        "columns": ["name"],
        "rows": [["Italo Calvino"]],
    }
    missing = await session.call_tool("describe", '{"table": "editors"}')
    assert "there is no table editors; there are authors, books" in missing.output


async def test_two_rollouts_of_a_row_have_databases_of_their_own(open_session: Open) -> None:
    first, second = open_session(Sql), open_session(Sql)
    await first.setup()
    await second.setup()
    await first.close()
    assert (await query(second, "SELECT COUNT(*) FROM books"))["rows"] == [[4]]
    await second.close()


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM authors",
        "UPDATE authors SET name = 'x'",
        "INSERT INTO authors VALUES (9, 'x')",
        "CREATE TABLE x (y)",
        "CREATE TEMP TABLE x (y)",
        "DROP TABLE authors",
        "ATTACH 'leaked.db' AS leaked",
        "VACUUM INTO 'leaked.db'",
        "PRAGMA query_only = OFF",
        "PRAGMA database_list",
        "SELECT * FROM pragma_database_list",
        "BEGIN",
        "SELECT load_extension('x')",
        "SELECT writefile('leaked.db', 'x')",
        "SELECT 1; DELETE FROM authors",
        "",
        "-- nothing",
        "SELECT zeroblob(1000000000)",
        "SELECT \x00",
        "not sql at all",
    ],
)
async def test_a_query_can_only_read_and_an_error_is_text_for_the_model(open_session: Open, sql: str) -> None:
    session = open_session(Sql)
    await session.setup()
    assert "QueryFailed" in (await query(session, sql))["error"]
    assert (await query(session, "SELECT COUNT(*) FROM authors"))["rows"] == [[3]]


@pytest.mark.parametrize(
    "schema",
    [
        "ATTACH 'leaked.db' AS leaked",
        "CREATE TABLE a (b); VACUUM INTO 'leaked.db'",
        "PRAGMA writable_schema = ON",
        "CREATE TABEL a (b)",
        "CREATE TABLE a AS WITH RECURSIVE n(x) AS (SELECT zeroblob(999000) UNION ALL SELECT x FROM n) SELECT x FROM n",
    ],
)
async def test_a_broken_or_harmful_schema_fails_the_setup(open_session: Open, schema: str) -> None:
    session = open_session(Sql, row(schema=schema))
    with pytest.raises(EnvironmentFailed, match="sql, setup"):
        await session.setup()
    await session.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"schema": "CREATE TABLE a (b)", "data": {"a": [[1, 2]]}},
        {"schema": "CREATE TABLE a (b)", "data": "INSERT INTO c VALUES (1)"},
        {"schema": "CREATE TABLE a (b UNIQUE)", "data": {"a": [[1], [1]]}},
        {"expected_rows": None, "expected_sql": "SELECT nothing FROM nowhere"},
        {"expected_rows": None, "expected_sql": COUNT_UP.format(limit=10_001)},
    ],
)
async def test_data_or_an_expectation_that_does_not_run_fails_the_setup(open_session: Open, fields: Any) -> None:
    with pytest.raises(EnvironmentFailed, match="sql, setup"):
        await open_session(Sql, row(**fields)).setup()


async def test_a_query_that_does_not_end_is_stopped(open_session: Open) -> None:
    session = open_session(Sql)
    await session.setup()
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT COUNT(*) FROM n"
    assert "ran longer than 2 s" in (await query(session, endless))["error"]


async def test_a_long_result_is_cut_with_a_note_and_still_verified_whole(open_session: Open, episode: Episode) -> None:
    session = open_session(Sql, row(expected_rows=[[number] for number in range(1, 1001)]))
    await session.setup()
    shown = await query(session, COUNT_UP.format(limit=1000))
    assert len(shown["rows"]) == SHOWN_ROWS
    assert shown["note"] == f"cut after {SHOWN_ROWS} rows; there are more"
    assert (await session.verify(episode("done"))).value == 1.0


async def test_a_wide_result_is_cut_by_its_size(open_session: Open) -> None:
    session = open_session(Sql)
    await session.setup()
    shown = await query(session, "SELECT hex(zeroblob(7000)) FROM authors")
    assert len(shown["rows"]) == 2


async def test_blobs_are_shown_as_hexadecimal_digits(open_session: Open) -> None:
    session = open_session(Sql)
    await session.setup()
    assert (await query(session, "SELECT x'00ff'"))["rows"] == [["00ff"]]


RIGHT = "SELECT name FROM authors WHERE author_id = 1"
WRONG = "SELECT name FROM authors"


@pytest.mark.parametrize(
    ("queries", "text", "reward"),
    [
        ([RIGHT], "Tove Jansson", 1.0),
        ([WRONG, RIGHT], "", 1.0),
        ([RIGHT, WRONG], "", 0.0),
        ([RIGHT, "SELECT nonsense"], "", 1.0),
        ([], f"```sql\n{RIGHT}\n```", 1.0),
        ([WRONG], f"first ```sql\n{WRONG}\n``` then ```SQL\n{RIGHT};\n```", 1.0),
        ([RIGHT], f"```sql\n{WRONG}\n```", 0.0),
        ([RIGHT], "```sql\nSELECT nonsense\n```", 0.0),
        ([], "Tove Jansson", 0.0),
    ],
)
async def test_the_sql_block_of_the_last_message_counts_or_else_the_last_query_that_ran(
    open_session: Open, episode: Episode, queries: list[str], text: str, reward: float
) -> None:
    assert await reward_of(open_session(Sql), episode(text), *queries) == reward


async def test_an_empty_expectation_is_not_met_by_asking_nothing(open_session: Open, episode: Episode) -> None:
    empty = row(expected_rows=[])
    assert await reward_of(open_session(Sql, empty), episode("")) == 0.0
    assert await reward_of(open_session(Sql, empty), episode(""), "SELECT 1 WHERE 0") == 1.0


async def test_every_question_about_the_shop_is_answered_by_its_own_query(open_session: Open, episode: Episode) -> None:
    for demo in Sql.demo_rows(40, seed=0):
        block = f"```sql\n{demo['expected_sql']}\n```"
        assert await reward_of(open_session(Sql, demo), episode(block)) == 1.0


def test_every_question_has_an_answer_for_at_least_one_of_its_values() -> None:
    database = Database()
    database.fill(SHOP_SCHEMA, SHOP_DATA)
    database.lock()
    for question in QUESTIONS:
        values = {name: choices[0] for name, choices in question.values.items()}
        assert database.run(question.sql.format(**values), max_rows=100).rows, question.text
    database.close()


def test_a_database_can_be_read_only_after_it_is_locked() -> None:
    database = Database()
    database.fill("BEGIN; CREATE TABLE a (b); INSERT INTO a VALUES (1)", "")
    database.lock()
    assert database.run("SELECT b FROM a", max_rows=1).rows == [(1,)]
    with pytest.raises(QueryFailed, match="can only be read"):
        database.run("DELETE FROM a", max_rows=1)
    database.close()
    database.close()
    with pytest.raises(QueryFailed):
        database.run("SELECT 1", max_rows=1)


@pytest.mark.parametrize(
    ("found", "expected", "ordered", "same"),
    [
        ([(1,), (2,)], [(2,), (1,)], False, True),
        ([(1,), (2,)], [(2,), (1,)], True, False),
        ([(1,), (1,), (2,)], [(1,), (2,), (2,)], False, False),
        ([(1,)], [(1.0,)], True, True),
        ([(0.1 + 0.2, "a")], [(0.3, "a")], False, True),
        ([(1.0, "a"), (1.0000001, "b")], [(1.0000001, "a"), (1.0, "b")], False, True),
        ([(1.001,)], [(1.0,)], False, False),
        ([(1.0000001,), (1.0000002,)], [(1.0,), (5.0,)], False, False),
        ([("1",)], [(1,)], False, False),
        ([(None,)], [(None,)], False, True),
        ([(None,)], [(0,)], False, False),
        ([(1, 2)], [(1,)], False, False),
        ([], [], False, True),
    ],
)
def test_results_are_compared_as_multisets_unless_order_matters(
    found: Any, expected: Any, ordered: bool, same: bool
) -> None:
    assert same_result(found, expected, ordered=ordered) is same


cells = st.none() | st.integers(-3, 3) | st.floats(-3, 3) | st.text(max_size=2)


@given(
    st.lists(st.tuples(cells, cells), max_size=8).flatmap(lambda rows: st.tuples(st.just(rows), st.permutations(rows)))
)
def test_the_order_of_rows_never_matters_unless_it_is_asked_for(pair: tuple[Any, Any]) -> None:
    rows, shuffled = pair
    assert same_result(shuffled, rows, ordered=False)
    assert not same_result([*shuffled, (9, 9)], rows, ordered=False)
    assert same_result(rows, list(rows), ordered=True)


@pytest.mark.parametrize(
    "fields",
    [{"expected_sql": "SELECT 1"}, {"expected_rows": None}, {"data": {"a": [[1]]}}],
)
def test_a_row_gives_one_expectation_and_data_only_with_a_schema(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"give one of|needs a `schema`"):
        Sql.row_model.model_validate(row(**fields))


def test_the_installed_sqlite_has_the_limits_that_this_relies_on() -> None:
    assert sqlite3.threadsafety == 3
