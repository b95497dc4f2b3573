"""Policies and what they are made of. Import the module you need; torch is loaded by those that use it."""
