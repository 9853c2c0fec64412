"""Which family of guards a chat template was written for: theirs hold the task itself."""

_SIGNS = {
    "qwen3guard": ("Safety: Safe", "Categories:"),
    "llama-guard-3": ("BEGIN UNSAFE CONTENT CATEGORIES", "S1"),
    "shieldgemma": ("guideline", "policy expert"),
    "granite-guardian": ("guardian_config",),
}
"""All of these in a template say that it is the family's. Llama Guard 4 is asked as 3 is."""


def guard_of(template: str) -> str | None:
    """The family's name, as `guard` in models.toml has it; None for a template that is no guard's."""
    return next(
        (name for name, signs in _SIGNS.items() if all(sign in template for sign in signs)), None
    )
