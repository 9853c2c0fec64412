"""How two texts share the room that a model has for both. Pure."""


def fit(first: int, second: int, room: int | None) -> tuple[int, int]:
    """Tokens that each keeps: the longer one is cut first, then both alike. None is room for all."""
    if room is None or first + second <= room:
        return first, second
    room = max(room, 0)
    shorter = min(first, second, room // 2)
    return (shorter, room - shorter) if first <= second else (room - shorter, shorter)
