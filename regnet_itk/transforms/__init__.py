"""T and its files: types, chains, elastix and ITK files, and all that is done with a transform."""
