"""A model split at its feed-forward networks: find the parts, run the trunk once, run the rest with other weights."""
