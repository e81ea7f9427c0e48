"""Evaluation of a network: embeddings, protocols and their figures."""
