"""Logs and metrics. It knows no feature: owners hand it facts."""
