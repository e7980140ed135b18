-- Keys, and what is public of their versions. No secret is here: those are the backend's.
CREATE TABLE key (
    key       TEXT PRIMARY KEY,
    hints     BLOB NOT NULL,
    created_s REAL NOT NULL
) STRICT, WITHOUT ROWID;

-- state: pending (said, maybe not made), live, destroying (said, maybe not gone), destroyed.
CREATE TABLE version (
    key         TEXT NOT NULL REFERENCES key (key),
    n           INTEGER NOT NULL,
    state       TEXT NOT NULL,
    halves      BLOB NOT NULL,
    attestation TEXT NOT NULL,
    created_s   REAL NOT NULL,
    PRIMARY KEY (key, n)
) STRICT, WITHOUT ROWID;
CREATE INDEX version_unsettled ON version (state) WHERE state IN ('pending', 'destroying');

-- Acts by their caller's op_id, each tenant's by itself. answer: NULL until it is done.
CREATE TABLE act (
    tenant TEXT NOT NULL,
    op_id  TEXT NOT NULL,
    digest BLOB NOT NULL,
    kid    TEXT NOT NULL,
    answer BLOB,
    at_s   REAL NOT NULL,
    PRIMARY KEY (tenant, op_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX act_at ON act (at_s);

-- Every change has a number, and a digest of all changes up to it: what the audit log has seen must still be here.
CREATE TABLE change (
    counter INTEGER PRIMARY KEY,
    head    BLOB NOT NULL
) STRICT;
