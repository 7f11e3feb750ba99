"""Questions over a real SQLite database, one per rollout.

A row brings its own database (`schema`, and `data` as a script or as rows by table) or takes the bundled shop. The
right result is that of `expected_sql`, run on the same database, or `expected_rows`. The module
`gym.environments.builtin.sql_database` restricts queries, `gym.environments.builtin.sql_results` compares results.
"""

from __future__ import annotations

import random
import re
from typing import Annotated, Any

from pydantic import Field, model_validator

from gym.environments.base import Environment, Row, tool
from gym.environments.builtin.sql_database import Cell, Database, QueryFailed, size_of
from gym.environments.builtin.sql_results import same_result
from gym.environments.builtin.sql_shop import QUESTIONS, SHOP_DATA, SHOP_SCHEMA
from gym.jsontypes import JsonObject
from gym.plain.enclosed import enclosed
from gym.reward import Reward
from gym.trajectory import Trajectory

SHOWN_ROWS = 200
SHOWN_BYTES = 32_000
MAX_EXPECTED_ROWS = 10_000
MIN_RESULT_BYTES = 2**20  # of a compared result; one twice as large as expected is wrong
_OPENING = re.compile(r"```sql\s*\n", re.IGNORECASE)
_CLOSING = re.compile("```")
JsonCell = str | int | float | None


class SqlRow(Row):
    """A question, the database it is about, and the result that answers it."""

    question: str = ""
    schema_script: str | None = Field(default=None, alias="schema", description="CREATE statements")
    data: str | dict[str, list[list[JsonCell]]] = Field(
        default="", description="INSERT statements, or the rows of each table in the order of its columns"
    )
    expected_sql: str | None = None
    expected_rows: list[list[JsonCell]] | None = Field(default=None, max_length=MAX_EXPECTED_ROWS)
    ordered: bool = Field(default=False, description="whether the order of the rows matters")

    @model_validator(mode="after")
    def _one_expectation(self) -> SqlRow:
        if (self.expected_sql is None) == (self.expected_rows is None):
            raise ValueError("give one of `expected_sql` and `expected_rows`")
        if self.schema_script is None and self.data:
            raise ValueError("`data` needs a `schema`")
        return self


class Sql(Environment[SqlRow]):
    """Answer a question by querying a SQLite database.

    Reward 1.0 when the SQL block in the last message, or else the last query that ran, gives the expected rows.
    """

    name = "sql"
    row_model = SqlRow
    blocking = True

    def __init__(self, row: SqlRow, *, seed: int) -> None:
        super().__init__(row, seed=seed)
        self._database = Database()
        self._tables: dict[str, list[dict[str, Any]]] = {}
        self._expected: list[tuple[Cell, ...]] = []
        self._last_sql: str | None = None

    def setup(self) -> None:
        """Fill the database and compute the expected result; raises SQLite's errors."""
        row = self.row
        if row.schema_script is None:
            self._database.fill(SHOP_SCHEMA, SHOP_DATA)
        else:
            self._database.fill(row.schema_script, row.data)
        self._tables = self._database.tables()
        self._database.lock()
        if row.expected_sql is None:
            self._expected = [tuple(cells) for cells in row.expected_rows or ()]
            return
        expected = self._database.run(row.expected_sql, max_rows=MAX_EXPECTED_ROWS)
        if not expected.complete:
            raise ValueError(f"expected_sql gives more than {MAX_EXPECTED_ROWS} rows")
        self._expected = expected.rows

    @tool
    def list_tables(self) -> list[str]:
        """List the tables of the database."""
        return list(self._tables)

    @tool
    def describe(self, table: Annotated[str, Field(description="A name from list_tables.")]) -> list[dict[str, Any]]:
        """Describe the columns of a table."""
        if table not in self._tables:
            raise ValueError(f"there is no table {table[:80]}; there are {', '.join(self._tables)}")
        return self._tables[table]

    @tool
    def query(self, sql: Annotated[str, Field(description="One SELECT statement in SQLite's dialect.")]) -> JsonObject:
        """Run a query and read its result. The database can only be read."""
        result = self._database.run(sql, max_rows=SHOWN_ROWS, max_bytes=SHOWN_BYTES)
        self._last_sql = sql
        rows = [[cell.hex() if isinstance(cell, bytes) else cell for cell in row] for row in result.rows]
        cut = {} if result.complete else {"note": f"cut after {len(rows)} rows; there are more"}
        return {"columns": result.columns, "rows": rows, **cut}

    def verify(self, trajectory: Trajectory) -> Reward:
        """Run the final query again, without the limits on shown rows, and compare."""
        blocks = enclosed(trajectory.final_text, _OPENING, _CLOSING)
        sql = blocks[-1] if blocks else self._last_sql
        if sql is None:
            return Reward(0.0, {"ran": 0.0})
        try:
            most_bytes = MIN_RESULT_BYTES + 2 * size_of(self._expected)
            found = self._database.run(sql, max_rows=len(self._expected) + 1, max_bytes=most_bytes)
        except QueryFailed:
            return Reward(0.0, {"ran": 0.0})
        same = same_result(found.rows, self._expected, ordered=self.row.ordered)
        return Reward(1.0 if same else 0.0, {"ran": 1.0})

    def close(self) -> None:
        """Free the database."""
        self._database.close()

    @classmethod
    def example_row(cls) -> JsonObject:
        """Return a row with its own database of two tables."""
        question = "Which authors wrote more than one book? Give their names."
        return {
            **cls._row(
                question, "SELECT a.name FROM authors a JOIN books b USING (author_id) GROUP BY 1 HAVING COUNT(*) > 1"
            ),
            "schema": "CREATE TABLE authors (author_id INTEGER PRIMARY KEY, name TEXT NOT NULL);\n"
            "CREATE TABLE books (title TEXT NOT NULL, author_id INTEGER REFERENCES authors, year INTEGER);",
            "data": {
                "authors": [[1, "Tove Jansson"], [2, "Italo Calvino"], [3, "Harper Lee"]],
                "books": [
                    ["The Summer Book", 1, 1972],
                    ["Invisible Cities", 2, 1972],
                    ["Comet in Moominland", 1, 1946],
                    ["To Kill a Mockingbird", 3, 1960],
                ],
            },
        }

    @classmethod
    def demo_rows(cls, count: int, seed: int) -> list[JsonObject]:
        """Return questions about the bundled shop."""
        rng = random.Random(seed)
        rows = []
        for _ in range(count):
            question = rng.choice(QUESTIONS)
            values = question.draw(rng)
            rows.append(cls._row(question.text.format(**values), question.sql.format(**values), question.ordered))
        return rows

    @classmethod
    def _row(cls, question: str, expected_sql: str, ordered: bool = False) -> JsonObject:
        instruction = (
            "Answer by querying the database. Look at its tables first. "
            "End with the final query in a ```sql block; its result is your answer."
        )
        return {
            "responses_create_params": {
                "input": [{"role": "developer", "content": instruction}, {"role": "user", "content": question}]
            },
            "environment": cls.name,
            "question": question,
            "expected_sql": expected_sql,
            "ordered": ordered,
        }
