"""The mailbox: sealed messages wait here until their receiver has them and says so.

In: opaque ciphertext for a topic (`send`). Out: the same bytes under a lease (`recv`), until the receiver acknowledges
(`ack`) or the lease ends and the message becomes visible again. At least once, on disk before it is answered; payloads
are never parsed or logged. See docs/mailbox.rst.
"""
