"""RegNet as a registration stage beside elastix: public names, imported when they are first used."""
