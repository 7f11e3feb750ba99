"""Cost of a query: the time limit holds whatever functions, patterns and WITH tables it uses."""

from __future__ import annotations

import sqlite3
import time
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gym.environments.builtin.sql_database import MAX_SQL_CHARS, MAX_VALUE_BYTES, TIME_LIMIT_S, Database, QueryFailed
from gym.environments.builtin.sql_expansion import expands_too_far
from gym.environments.builtin.sql_functions import BoundedFunctions
from gym.environments.builtin.sql_shop import SHOP_DATA, SHOP_SCHEMA

MOST_S = TIME_LIMIT_S + 3.0  # of CPU, on a slow machine
UP = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
A, B = "printf('%.900c', 'a')", "hex(zeroblob(100000))"
LONG = "replace(hex(zeroblob(60000)), '00', 'ab')"


def doubled(count: int) -> str:
    """Each table names the one before twice."""
    tables = ["t0 AS (SELECT 1)", *(f"t{n} AS (SELECT * FROM t{n - 1}, t{n - 1})" for n in range(1, count))]
    return f"WITH {', '.join(tables)} SELECT COUNT(*) FROM t{count - 1}"


COSTLY = [
    "SELECT printf('%.*c', 900000000, 'x')",
    "SELECT printf('%900000000d', 1)",
    "SELECT printf('%-*d', 2000000000, 1)",
    "SELECT format('%.900000000f', 1.5)",
    "SELECT format('%!.*f', 900000000, 1.5)",
    "SELECT " + "||".join(["printf('%.*c', 900000000, 'x')"] * 100),
    "SELECT length(randomblob(2000000000))",
    "SELECT length(zeroblob(2000000000))",
    f"{UP} SELECT length(randomblob(240000)) FROM n",
    f"{UP} SELECT sum(length(hex(randomblob(120000)))) FROM n",
    f"{UP} SELECT sum(length(quote(zeroblob(110000)))) FROM n",
    f"{UP} SELECT sum(length(replace({B}, '0', 'ab'))) FROM n",
    f"SELECT replace({B}, '0', {B})",
    f"SELECT instr({B}, {B} || '1')",
    f"{UP} SELECT sum(instr({LONG}, {LONG} || 'x')) FROM n",
    "SELECT instr(zeroblob(200000), zeroblob(100000) || x'01')",
    f"SELECT length(trim({B}, {B}))",
    f"{UP} SELECT sum(length(ltrim({LONG}, {LONG}))) FROM n",
    f"SELECT {B} LIKE '{'%0' * 100}1'",
    f"SELECT {B} LIKE '{'%_' * 100}1'",
    f"{UP} SELECT sum({B} LIKE '{'%0%' * 80}1') FROM n",
    f"SELECT {B} GLOB '{'*0' * 100}1'",
    f"SELECT {B} GLOB '{'*[0-9]' * 40}x'",
    f"SELECT {B} LIKE {LONG}",
    f"SELECT like(hex(zeroblob(5000)), {B})",
    f"{UP} SELECT group_concat(x) FROM n",
    f"{UP} SELECT group_concat({B}, {B}) FROM n",
    f"{UP} SELECT json_group_array({B}) FROM n",
    f"{UP} SELECT json_group_object(x, {B}) FROM n",
    f"{UP} SELECT COUNT(*) FROM n",
    f"{UP} SELECT x FROM n ORDER BY x DESC",
    f"{UP} SELECT x, sum(x) OVER (ORDER BY x) FROM n",
    f"{UP} SELECT DISTINCT hex(randomblob(1000)) FROM n",
    "SELECT COUNT(*) FROM orders a, orders b, orders c, orders d, orders e, orders f",
    f"{UP} SELECT json_valid('{'[' * 900}') FROM n",
    f"SELECT json('{'[' * 50000}')",
    "SELECT json_extract(json_array(" + ",".join(["1"] * 100) + "), '$" + "[0]" * 10000 + "')",
    "SELECT json_set('{}'" + ", '$.a', json('{}')" * 60 + ")",
    f"SELECT upper({B}) || lower({B}) || soundex({B})",
    f"SELECT {B} = {B}, {B} < {B}, abs({B}), CAST({B} AS REAL), round({B}), unicode({B})",
    f"SELECT {B} IN (" + ",".join([B] * 200) + ")",
    f"SELECT max({', '.join([B] * 90)})",
    f"SELECT substr({B}, 1, 100000) || substr({B}, -1)",
    f"SELECT strftime({B}, 'now')",
    f"SELECT strftime('{'%J' * 40000}', 'now')",
    f"{UP} SELECT strftime('{'%J' * 10000}', 'now') FROM n",
    f"SELECT date('now', {B})",
    doubled(24),
    doubled(60),
    "SELECT " + "(" * 300 + "1" + ")" * 300,
    "SELECT " + "-" * 50000 + "1",
    "SELECT " + "1+" * 40000 + "1",
    "SELECT " + " UNION SELECT ".join(["1"] * 90),
    "SELECT 1 WHERE " + " OR ".join(["1 IN (SELECT 1)"] * 400),
    "SELECT " + "1," * 200 + "1 FROM " + ",".join(f"orders o{n}" for n in range(60)),
    "SELECT CASE " + "WHEN 0 THEN 1 " * 5000 + "END",
    "SELECT '" + "x" * (MAX_SQL_CHARS + 1) + "'",
]


@pytest.fixture
def database() -> Database:
    made = Database()
    made.fill(SHOP_SCHEMA, SHOP_DATA)
    made.lock()
    return made


@pytest.mark.parametrize("sql", COSTLY, ids=lambda sql: sql[:60])
def test_a_costly_query_ends_within_its_time_and_the_next_one_works(database: Database, sql: str) -> None:
    tracemalloc.start()
    began = time.thread_time()
    try:
        with suppress(QueryFailed):
            database.run(sql, max_rows=200, max_bytes=32_000)
        took_s = time.thread_time() - began
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert took_s < MOST_S
    assert most < 32 * 2**20
    assert database.run("SELECT 1", max_rows=2).rows == [(1,)]
    database.close()


def own(call: str, *values: object) -> object:
    """Return the result of SQLite's own function, or that it fails."""
    connection = sqlite3.connect(":memory:")
    try:
        return connection.execute(f"SELECT {call}", values).fetchone()[0]
    except sqlite3.Error:
        return sqlite3.Error
    finally:
        connection.close()


def bounded(call: str, *values: object) -> object:
    connection = sqlite3.connect(":memory:")
    functions = BoundedFunctions(connection, max_bytes=MAX_VALUE_BYTES)
    try:
        return connection.execute(f"SELECT {call}", values).fetchone()[0]
    except sqlite3.Error:
        return sqlite3.Error
    finally:
        functions.close()
        connection.close()


TEXTS = st.text(alphabet="ab é0\x01☃", max_size=8)
VALUES = st.one_of(
    TEXTS, st.integers(-(2**63), 2**63 - 1), st.none(), st.binary(max_size=6), st.floats(allow_nan=False)
)


@given(VALUES, VALUES, VALUES)
def test_bounded_functions_give_what_sqlites_own_ones_give(first: object, second: object, third: object) -> None:
    for call, values in (
        ("replace(?, ?, ?)", (first, second, third)),
        ("instr(?, ?)", (first, second)),
        ("trim(?, ?)", (first, second)),
        ("ltrim(?, ?)", (first, second)),
        ("rtrim(?, ?)", (first, second)),
        ("trim(?)", (first,)),
        ("rtrim(?)", (first,)),
    ):
        assert bounded(call, *values) == own(call, *values), (call, values)


@pytest.mark.parametrize(
    ("form", "values"),
    [("%d items", (3,)), ("%5.2f|%-8s|%08d", (1.5, "a", 42)), ("%s%%", (5,)), ("%,d", (1234567,)), ("%q", ("a'b",))],
)
def test_printf_with_widths_that_are_written_out_is_sqlites(form: str, values: tuple[object, ...]) -> None:
    call = f"printf(?{', ?' * len(values)})"
    assert bounded(call, form, *values) == own(call, form, *values)


@pytest.mark.parametrize(
    "sql",
    [
        "WITH a AS (SELECT 1), b AS (SELECT * FROM a, a x), c AS (SELECT * FROM b JOIN b y) SELECT * FROM c",
        "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n LIMIT 5) SELECT * FROM n, n m",
        "SELECT 'with t as (' || name FROM customers",
        "WITH recent AS (SELECT * FROM orders), top AS MATERIALIZED (SELECT * FROM recent) SELECT * FROM top, recent",
    ],
)
def test_usual_with_tables_are_not_refused(sql: str) -> None:
    assert not expands_too_far(sql)


@pytest.mark.parametrize("sql", [doubled(24), doubled(24).replace("t1", '"t1"'), "/* */" + doubled(30).lower()])
def test_tables_that_double_are_refused(sql: str) -> None:
    assert expands_too_far(sql)


@pytest.mark.parametrize(
    "unit", ["with a as (", "(", "with ", "a as (select * from a),", '"', "/*", "[", "--", "'", ","]
)
def test_a_statement_is_looked_at_in_linear_time(unit: str) -> None:
    began = time.thread_time()
    expands_too_far("with " + unit * (MAX_SQL_CHARS // len(unit)))
    assert time.thread_time() - began < 2
