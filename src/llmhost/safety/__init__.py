"""What may not be said, in prompts and answers: rules of the operator, then the opinions of plugins."""
