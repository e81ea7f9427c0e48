"""Continual learning: new identities for a student that is in use, without losing the old ones."""
