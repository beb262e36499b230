"""What a run will take, by formula, before it is started: `python -m train --config ... --plan`.

Begin with plan.py.
"""

from train.plan.plan import Plan, plan

__all__ = ["Plan", "plan"]
