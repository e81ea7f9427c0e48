"""Measuring a network: embeddings, protocols, figures."""
