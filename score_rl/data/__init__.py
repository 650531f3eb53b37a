"""Problem sources."""
