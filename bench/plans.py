"""Where the server spends a statement: ``EXPLAIN ANALYZE`` by step (``WITH`` query) and trigger."""

from collections import defaultdict
from typing import Any

import psycopg

from bench.meters import caller

EVERY = 4
"""One call in so many is explained, in a savepoint that is rolled back; then the call itself follows."""

LONG = 300
"""Statements shorter than this, in characters, are not explained."""

Totals = dict[str, dict[str, list[float]]]
"""By statement and step: calls explained, milliseconds, WAL bytes."""


class Plans:
    """What was found, summed over the calls that were explained."""

    def __init__(self) -> None:
        self._seen: defaultdict[str, int] = defaultdict(int)
        self._totals: defaultdict[str, dict[str, list[float]]] = defaultdict(dict)

    def totals(self) -> Totals:
        """Return what was found; it grows as more is explained."""
        return self._totals

    def explain(self, cursor: psycopg.Cursor[Any], statement: str | bytes, parameters: Any = None) -> None:
        """Explain a statement that is about to run: what `Meter.before` asks for."""
        query = statement if isinstance(statement, bytes) else str(statement).encode()
        if len(query) < LONG:
            return
        name = caller()
        self._seen[name] += 1
        if self._seen[name] % EVERY:
            return
        with cursor.connection.transaction(force_rollback=True), psycopg.Cursor(cursor.connection) as own:
            row = own.execute(b"EXPLAIN (ANALYZE, BUFFERS, WAL, FORMAT JSON) " + query, parameters).fetchone()
        self._add(name, row[0][0] if row else {})

    def _add(self, name: str, explained: dict[str, Any]) -> None:
        steps = by_step(explained["Plan"])
        for trigger in explained["Triggers"]:
            label = trigger.get("Constraint Name", trigger["Trigger Name"])
            steps[f"trigger {label}"] = (trigger["Time"], 0)
        steps["planning"] = (explained["Planning Time"], 0)
        for step, (ms, wal_bytes) in steps.items():
            total = self._totals[name].setdefault(step, [0, 0.0, 0])
            for at, value in enumerate((1, ms, wal_bytes)):
                total[at] += value


def by_step(plan: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Return milliseconds and WAL bytes of each ``WITH`` query and of the rest, each without the others."""
    roots = {"rest": plan}
    _find(plan, roots)
    whole = {name: _of(root) for name, root in roots.items()}
    steps = {}
    for name, root in roots.items():
        ms, wal = whole[name]
        for scanned, node in _scans(root):
            # Whoever reads a step first runs it: its time is within the reader's, and is the step's own.
            if _of(node)[0] >= whole[scanned][0] * 0.9:
                ms, wal = ms - whole[scanned][0], wal - whole[scanned][1]
        steps[name] = (max(ms, 0.0), max(wal, 0.0))
    return steps


def _find(node: dict[str, Any], roots: dict[str, dict[str, Any]]) -> None:
    for child in node.get("Plans", ()):
        if child.get("Subplan Name", "").startswith("CTE "):
            roots[child["Subplan Name"].removeprefix("CTE ")] = child
        _find(child, roots)


def _below(node: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a step's nodes, without those of other steps."""
    nodes = [node]
    for child in node.get("Plans", ()):
        if not child.get("Subplan Name", "").startswith("CTE "):
            nodes += _below(child)
    return nodes


def _scans(root: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(node["CTE Name"], node) for node in _below(root) if node["Node Type"] == "CTE Scan"]


def _of(node: dict[str, Any]) -> tuple[float, float]:
    return node["Actual Total Time"] * node["Actual Loops"], node.get("WAL Bytes", 0)
