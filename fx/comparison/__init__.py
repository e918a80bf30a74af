"""The comparison: what it measures, what it costs, and what it says."""
