"""The generator of `data/assets`, the asset pack that the kit ships: primitives in place of SIMPLER's meshes
and photographs.
"""
