"""How far a registration can be trusted: its error in millimetres, expected at every place, and a verdict."""
