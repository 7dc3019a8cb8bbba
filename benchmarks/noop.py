"""A node for ``overhead.py`` that offers the no-op alone."""

import posemesh

node = posemesh.Node()
