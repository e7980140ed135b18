"""The one HTTP edge every service stands behind.

In: a list of `Endpoint`s. Out: a site that limits, identifies, authorises, decodes, calls, encodes, counts and answers
every failure with the error envelope; a handler's body is only its own business.
"""

from ron.web.content import Raw
from ron.web.endpoint import Call, Endpoint
from ron.web.site import Edge, make_site

__all__ = ["Call", "Edge", "Endpoint", "Raw", "make_site"]
