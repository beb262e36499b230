"""Every number that we quote: each script proves the result right, then times, then writes rows.

Begin with record.py (what a row is) and cpu/; report.py makes the pages of docs of the rows.
"""
