"""Deployment of a student: export, latency, web page and publishing."""
