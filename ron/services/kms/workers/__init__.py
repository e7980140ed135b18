"""ron-kms on several cores: the owner keeps the log, the store and the quorum; its workers parse, check and sign.

In: calls of the port's clients, in processes that share its socket. Out: the same answers as of one process, each of a
private half only once the owner has its record on disk. docs/kms/workers.rst has the design.
"""
