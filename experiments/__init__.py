"""Controlled experiments with the kit: design as data, one resumable command each, results computed from
committed records.
"""
