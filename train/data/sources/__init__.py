"""Where clips come from: folders of videos, packages that can be fetched, drawn digits.

Begin with video_folder.py; open.py opens what a config names.
"""
