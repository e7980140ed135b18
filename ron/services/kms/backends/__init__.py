"""Where private halves are kept: each of these is a `ron.services.kms.ports.Backend`, and none gives one out."""
