"""Where a policy's action tokens and words look, exactly as the model computed it, and how much of that falls
on the things that matter.

`captured`, `patches`, `grounding` and `frames` are NumPy and pandas alone; `capture` and `queries` run a
policy and load torch.
"""
