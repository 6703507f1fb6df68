"""The stages that a registration is made of: elastix's own, and RegNet."""
