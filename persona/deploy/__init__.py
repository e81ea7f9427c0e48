"""A student on its way to a device: export, latency."""
