"""The policies by name: ours, and those of others to compare with."""
