"""What nobody may do alone: people propose, a quorum of them decides, the service carries out exactly that and once.

In: objects that people signed with keys of their own. Out: `Governance`, which answers the service's `Quorum` port; a
book of everything that was said, which only grows; an event for the audit log before anything takes effect.
"""
