"""Joint training on actions and rationales: examples, the objective, what is frozen, the loop; and how the
base was made.
"""
