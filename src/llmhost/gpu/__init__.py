"""Devices: their bytes and their time. It hands out leases and never knows what a model is."""
