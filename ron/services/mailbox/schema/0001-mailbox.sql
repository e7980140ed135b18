-- One row per message, from the send that was answered until it is forgotten.
--
-- state  0 ready   waiting for a receiver            due_ms: when it was sent (or last became ready by a release)
--        1 leased  with a receiver, invisible         due_ms: when it becomes ready again by itself
--        2 acked   done, payload gone, a tombstone    due_ms: when the row may be forgotten
--
-- `seq` is the order of arrival. `receipt` is the token of the newest lease, sixteen zero bytes before the first: it
-- has one width for life, as have `due_ms` and the states, so that leasing a large message rewrites a few bytes of its
-- row and not its payload. `digest` (BLAKE3 of the payload) is there only beside an idempotency key.
CREATE TABLE message (
    seq      INTEGER PRIMARY KEY,
    msg_id   BLOB    NOT NULL,
    topic    TEXT    NOT NULL,
    priority INTEGER NOT NULL CHECK (priority BETWEEN 0 AND 2),
    state    INTEGER NOT NULL CHECK (state BETWEEN 0 AND 2),
    due_ms   INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,
    receipt  BLOB    NOT NULL,
    size     INTEGER NOT NULL,
    idem_key TEXT,
    digest   BLOB,
    payload  BLOB
);

CREATE UNIQUE INDEX message_by_id ON message (msg_id);

-- What recv takes next: highest priority first, then first come first served.
CREATE INDEX message_ready ON message (topic, priority DESC, seq) WHERE state = 0;

-- Whose lease of a topic ends next.
CREATE INDEX message_leased ON message (topic, due_ms) WHERE state = 1;

-- Which message a repeated idempotency key means.
CREATE UNIQUE INDEX message_by_key ON message (topic, idem_key) WHERE idem_key IS NOT NULL;

-- Which tombstones to forget next. Those of keyed messages are promised a life; the others give way when there are many.
CREATE INDEX message_acked ON message (due_ms) WHERE state = 2 AND idem_key IS NULL;
CREATE INDEX message_acked_keyed ON message (due_ms) WHERE state = 2 AND idem_key IS NOT NULL;
