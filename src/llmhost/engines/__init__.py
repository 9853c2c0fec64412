"""Runners: the only places that know how a model computes."""
