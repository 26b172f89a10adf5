"""Replays policies on recorded samples: what the daemon would have spent and reached, without a GPU."""
