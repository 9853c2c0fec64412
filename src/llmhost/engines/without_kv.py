"""The part of the Runner port that a runner without a KV cache has to answer to."""

from collections.abc import Sequence

from llmhost.core.step import KvMove


class WithoutKv:
    """Nothing is kept between steps, so there is nothing to hold, to resize or to move."""

    def set_kv_blocks(self, count: int) -> None: ...

    def set_host_blocks(self, count: int) -> None: ...

    def move_blocks(self, moves: Sequence[KvMove]) -> None: ...
