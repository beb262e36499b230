"""Clips in which content recurs far away: a task that tells attention that sees far from one that
does not, with the least loss that either can have.

Begin with layouts.py, which says where copies lie; clips.py draws, floors.py computes.
"""
