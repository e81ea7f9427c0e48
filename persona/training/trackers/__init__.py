"""Trackers, one file each; what one is stands in `base`."""
