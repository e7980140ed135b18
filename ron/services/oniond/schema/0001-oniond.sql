-- Every onion as one document: its key never leaves this file but by an export.
CREATE TABLE onion (
    id      TEXT PRIMARY KEY,
    app     TEXT NOT NULL,
    doc     BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- Acts by their caller's op_id: a repetition gets the first one's answer. An app cannot meet another's.
CREATE TABLE act (
    app     TEXT NOT NULL,
    op_id   TEXT NOT NULL,
    digest  BLOB NOT NULL,
    onion   TEXT NOT NULL,
    at_s    REAL NOT NULL,
    PRIMARY KEY (app, op_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX act_at ON act (at_s);

-- What each tor was last seen to publish: digests of what it was told, by address.
CREATE TABLE applied (
    tor     TEXT NOT NULL,
    address TEXT NOT NULL,
    digest  TEXT NOT NULL,
    PRIMARY KEY (tor, address)
) STRICT, WITHOUT ROWID;
