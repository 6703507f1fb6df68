"""Where many tasks are done: by processes of this machine, or by the workers of a scheduler."""
