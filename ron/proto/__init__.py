"""Pure types everyone shares: the error taxonomy and envelope, ids. No I/O, no logic beyond validation."""
