"""Settings: their shape, where each value came from, and errors that name the place."""
