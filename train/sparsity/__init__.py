"""How sparse attention is while a run trains: schedules, their steps, and what was measured.

Begin with schedules.py; annealing.py applies one to a model.
"""
