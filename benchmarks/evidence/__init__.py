"""The papers' claims beside ours: each experiment a script, its rows in results/, its page made."""
