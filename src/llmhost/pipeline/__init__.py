"""A request's story, stage by stage, in the order in which they run."""
