"""The trackers, one per file. `base` defines what a tracker is."""
