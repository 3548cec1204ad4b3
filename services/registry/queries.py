"""The statements of queries.sql by their names."""

from __future__ import annotations

from pathlib import Path

from chassis.postgres import load_queries

QUERIES = load_queries(Path(__file__).parent / "queries.sql")
