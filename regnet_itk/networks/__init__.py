"""Networks, their files, and a network over a whole image."""
