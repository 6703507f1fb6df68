"""Many pairs, registered by workers that share a folder."""
