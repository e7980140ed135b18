-- The policy that was in force last, as JSON: one that is weaker takes a quorum (K-G7).
CREATE TABLE in_force (
    one    INTEGER PRIMARY KEY CHECK (one = 1),
    policy BLOB NOT NULL
) STRICT;
