"""Training on synthetic pairs: random displacement fields, deformed images, the loop and its configuration."""
