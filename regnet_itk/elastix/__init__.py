"""elastix's library, run in processes of its own: registrations, and transforms that only it can evaluate."""
