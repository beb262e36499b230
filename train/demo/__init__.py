"""The demo: `python -m train.demo`. Read run.py first."""
