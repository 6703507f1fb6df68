"""How lungs expand, and how their density changes, between two images."""
