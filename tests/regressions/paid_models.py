"""The models that these tests ask, and what they cost."""

INPUT_NANO, CACHED_NANO, OUTPUT_NANO = 1_000, 100, 2_000
"""Of one token of the models below that have a price."""

SETTINGS = """
[limits]
failed_auth_per_minute = 0

[models.echo]
engine = "fake"
[models.echo.price]
input = "1.00"
cached_input = "0.10"
output = "2.00"

[models.slow]
engine = "fake"
max_batch_size = 64
[models.slow.options]
token_delay_ms = 10
[models.slow.price]
input = "1.00"
output = "2.00"

[models.fragile]
engine = "fake"
[models.fragile.options]
fail_after_tokens = 3
[models.fragile.price]
input = "1.00"
output = "2.00"

[models.embedder]
engine = "fake"
[models.embedder.options]
task = "embed"
[models.embedder.price]
input = "1.00"

[models.judge]
engine = "fake"
[models.judge.options]
task = "classify"
[models.judge.price]
input = "1.00"

[models.gift]
engine = "fake"
"""

Key = dict[str, str]
"""Headers with a key."""
