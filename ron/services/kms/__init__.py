"""ron-kms: keys are made, used and destroyed here, and never leave; every act is in a log that nobody can rewrite.

In: requests of `ron.proto.kms` with a capability. Out: signatures, envelopes, public halves; an audit record before
each answer. Custody is behind `Backend`, the log behind `AuditLog`, what nobody may do alone behind `Quorum`.
"""
