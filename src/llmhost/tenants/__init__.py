"""Who may ask, and how much at once: organisations, API keys, request rates."""
