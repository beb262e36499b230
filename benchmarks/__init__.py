"""Every number that we quote: each script proves the result right, then times, then writes rows."""
