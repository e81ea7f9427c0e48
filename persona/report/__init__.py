"""Report: one HTML page that shows how good models are, where they fail and how they were made."""
