import tests.unit.kernels.interpreting  # noqa: F401
