"""The format as old buckets contain it."""
