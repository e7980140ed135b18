"""hello: two devices that live in the node, each behind its own tor, and ping each other for the page to show.

In: somebody looks at `/hello.json`. Out: the latest end-to-end ping through the mailbox onion; a new one is
started when the last is older than five seconds, and never two at a time, so that looking costs little.
"""
