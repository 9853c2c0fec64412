"""Who runs next: the scheduler (pure: no torch, no thread, no clock) and the thread that drives it."""
