"""Clips filmed in Freedoom's maps: `walks.py` films, `__main__.py` is the command."""
