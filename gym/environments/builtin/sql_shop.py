"""The bundled database of the environment `sql`, a small tea shop, and questions about it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gym.environments.builtin.sql_database import Cell

SHOP_SCHEMA = """
CREATE TABLE customers (customer_id INTEGER PRIMARY KEY, name TEXT NOT NULL, city TEXT NOT NULL, joined TEXT NOT NULL);
CREATE TABLE products (product_id INTEGER PRIMARY KEY, name TEXT NOT NULL, kind TEXT NOT NULL, price REAL NOT NULL);
CREATE TABLE orders (
    order_id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customers,
    ordered_on TEXT NOT NULL, shipped_on TEXT
);
CREATE TABLE order_lines (
    order_id INTEGER NOT NULL REFERENCES orders, product_id INTEGER NOT NULL REFERENCES products,
    quantity INTEGER NOT NULL, PRIMARY KEY (order_id, product_id)
);
"""

SHOP_DATA: Mapping[str, Sequence[Sequence[Cell]]] = {
    "customers": [
        (1, "Amara Okafor", "Lagos", "2023-01-14"),
        (2, "Ben Larsen", "Bergen", "2023-02-02"),
        (3, "Chiara Russo", "Turin", "2023-02-27"),
        (4, "Daichi Mori", "Osaka", "2023-05-19"),
        (5, "Elif Kaya", "Bergen", "2023-08-30"),
        (6, "Farid Haddad", "Lagos", "2024-01-08"),
        (7, "Greta Lind", "Bergen", "2024-03-21"),
        (8, "Hugo Silva", "Turin", "2024-06-11"),
    ],
    "products": [
        (1, "Assam", "black", 6.5),
        (2, "Darjeeling", "black", 9.2),
        (3, "Sencha", "green", 8.0),
        (4, "Gyokuro", "green", 21.0),
        (5, "Tieguanyin", "oolong", 14.5),
        (6, "Dong Ding", "oolong", 12.75),
        (7, "Silver Needle", "white", 24.0),
    ],
    "orders": [
        (1, 1, "2024-01-05", "2024-01-07"),
        (2, 2, "2024-01-19", "2024-01-20"),
        (3, 1, "2024-02-11", "2024-02-15"),
        (4, 3, "2024-02-28", "2024-03-01"),
        (5, 4, "2024-03-03", None),
        (6, 5, "2024-03-22", "2024-03-25"),
        (7, 2, "2024-04-09", "2024-04-10"),
        (8, 6, "2024-04-30", None),
        (9, 7, "2024-05-17", "2024-05-18"),
        (10, 1, "2024-06-02", "2024-06-08"),
    ],
    "order_lines": [
        *((1, 1, 4), (1, 3, 1), (2, 2, 2), (3, 7, 1), (3, 5, 2), (4, 1, 3), (4, 6, 1), (5, 4, 2), (6, 3, 5)),
        *((6, 2, 1), (7, 5, 1), (7, 1, 2), (8, 6, 4), (9, 7, 2), (9, 4, 1), (10, 2, 3), (10, 3, 2), (10, 1, 1)),
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopQuestion:
    """A question and the query that answers it, both with `{values}` to be drawn."""

    text: str
    sql: str
    values: Mapping[str, Sequence[str | int]] = field(default_factory=dict)
    ordered: bool = False

    def draw(self, rng: random.Random) -> dict[str, str | int]:
        """Draw one value for each placeholder."""
        return {name: rng.choice(choices) for name, choices in self.values.items()}


_CITIES = ("Lagos", "Bergen", "Turin", "Osaka")
_KINDS = ("black", "green", "oolong", "white")

QUESTIONS = (
    ShopQuestion(
        text="How many customers live in {city}?",
        sql="SELECT COUNT(*) FROM customers WHERE city = '{city}'",
        values={"city": _CITIES},
    ),
    ShopQuestion(
        text="What are the names of the {kind} teas that cost more than {price}?",
        sql="SELECT name FROM products WHERE kind = '{kind}' AND price > {price}",
        values={"kind": _KINDS, "price": (6, 9, 13)},
    ),
    ShopQuestion(
        text="List all teas with their prices, dearest first.",
        sql="SELECT name, price FROM products ORDER BY price DESC",
        ordered=True,
    ),
    ShopQuestion(
        text="What was spent in all on {kind} tea?",
        sql="SELECT SUM(l.quantity * p.price) FROM order_lines l JOIN products p USING (product_id) "
        "WHERE p.kind = '{kind}'",
        values={"kind": _KINDS},
    ),
    ShopQuestion(
        text="Which customers have never ordered anything? Give their names.",
        sql="SELECT name FROM customers WHERE customer_id NOT IN (SELECT customer_id FROM orders)",
    ),
    ShopQuestion(
        text="How much has each customer from {city} spent? Give the name and the sum, only of those who ordered.",
        sql="SELECT c.name, SUM(l.quantity * p.price) FROM customers c JOIN orders USING (customer_id) "
        "JOIN order_lines l USING (order_id) JOIN products p USING (product_id) "
        "WHERE c.city = '{city}' GROUP BY c.name",
        values={"city": _CITIES},
    ),
    ShopQuestion(
        text="Which orders have not been shipped? Give their numbers.",
        sql="SELECT order_id FROM orders WHERE shipped_on IS NULL",
    ),
    ShopQuestion(
        text="Which {count} teas were sold most by quantity? Give the name and the quantity, most sold first, "
        "equals by name.",
        sql="SELECT p.name, SUM(l.quantity) AS sold FROM order_lines l JOIN products p USING (product_id) "
        "GROUP BY p.name ORDER BY sold DESC, p.name LIMIT {count}",
        values={"count": (2, 3, 4)},
        ordered=True,
    ),
)
