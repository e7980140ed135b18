"""Engines that remember, behind small interfaces. In: operations. Out: results, once they are durable."""

from ron.store.database import open_database, schema_of
from ron.store.sqlite import BatchReport, GroupCommit

__all__ = ["BatchReport", "GroupCommit", "open_database", "schema_of"]
