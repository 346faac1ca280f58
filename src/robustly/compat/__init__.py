"""Attacks of this package with the names, arguments and results of other libraries.

Switching is one line of imports; no other library is imported. `docs/coming-from.md` lists the conventions that
differ.
"""
