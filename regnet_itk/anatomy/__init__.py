"""What knows about patients: lungs, bodies, the digital chest."""
