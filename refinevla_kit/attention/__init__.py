"""Where a policy's action tokens look, exactly as the model computed it, and how much of that falls on the things that matter.

`patches`, `grounding` and `frames` are NumPy and pandas alone; `capture` runs a policy and loads torch.
"""
