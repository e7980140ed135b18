"""Engines that remember, behind small interfaces. In: operations. Out: results, once they are durable."""

from ron.store.sqlite import BatchReport, GroupCommit, open_database, schema_of

__all__ = ["BatchReport", "GroupCommit", "open_database", "schema_of"]
