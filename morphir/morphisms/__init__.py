"""Morphisms: parameterised local changes that leave the function unchanged at theta = 0."""
