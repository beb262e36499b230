"""Which clip comes when, of which shot, at which size, and what happens where one is damaged.

Begin with stream.py.
"""
