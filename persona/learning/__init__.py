"""Continual learning: a student learns new identities without forgetting the old ones."""
