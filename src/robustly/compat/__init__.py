"""Calls as other libraries spell them, so that switching is one line of imports.

Each part takes the arguments and returns what its namesake does, by the attacks of this package; no peer is
imported. Where conventions differ, `docs/coming-from.md` says how.
"""
