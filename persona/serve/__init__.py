"""A page and a JSON API on a gallery."""
