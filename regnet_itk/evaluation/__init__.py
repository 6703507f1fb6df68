"""How good a registration is: measures and pictures."""
