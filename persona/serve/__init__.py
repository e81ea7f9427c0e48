"""A web server for a gallery: a page and a JSON API."""
