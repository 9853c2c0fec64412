"""The KV blocks of sequences: found again by their text, promised, taken, recorded and given back.

It knows each sequence's tokens and blocks, and not who runs when.
"""

import sys
from collections import Counter
from collections.abc import Iterable
from collections.abc import Sequence as Seq

from llmhost.core.sequence import SequenceSpec
from llmhost.core.step import KvMove
from llmhost.schedule.kv_books import KvBooks
from llmhost.schedule.plan import NO_HIT, Hit
from llmhost.schedule.prefix import Place, chain_hashes
from llmhost.schedule.sequence import Sequence


class SequenceKv:
    """What sequences hold of the KV cache. `is_kept` False keeps nothing for later requests."""

    def __init__(self, books: KvBooks, *, is_kept: bool) -> None:
        self.books = books
        self.query_tokens = 0
        """Prompt tokens of sequences that were looked up, and of those the ones that were found."""
        self.hit_tokens = 0
        self.host_hit_tokens = 0
        """Of those, the ones whose keys and values came back from host memory."""
        self._is_kept = is_kept
        self._promised: Counter[int] = Counter()
        """Hashes of prompt blocks that running sequences are about to compute."""

    def join(self, sequences: Iterable[Sequence]) -> None:
        """They have come; they hold nothing yet."""
        for sequence in sequences:
            sequence.parent = sequence.salt = self._salt(sequence.spec)

    def hit(self, sequence: Sequence, about_to: set[int]) -> Hit | None:
        """What is known of a waiting sequence's text; None while another computes or fetches what comes next in it.

        `about_to` gathers the hashes of what this plan's own admissions will compute, and of what they fetch.
        """
        places = self.look_up(sequence, about_to)
        if not places:
            return None if places is None else NO_HIT
        here = [place.block for place in places if not place.is_on_host]
        tokens = len(places) * self.books.block_tokens
        return Hit(tokens, len(here), self.books.count_kept(here))

    def look_up(self, sequence: Sequence, about_to: set[int]) -> Seq[Place] | None:
        """Where that is; it is kept in mind for `begin`."""
        if not sequence.may_hit:
            return ()
        books, prompt, asked = self.books, sequence.spec.prompt, sequence.spec.sampling
        # One token at least is computed, to draw from what it gives, or to tell how likely the one after it is.
        most = len(sequence.tokens) - 1
        if asked.prompt_logprobs is not None:
            most = min(most, asked.prompt_logprobs_from - 1)
        # A tuple is cut quicker than a list.
        known = prompt if most < len(prompt) else sequence.tokens
        places = sequence.found = books.match(sequence.salt, known, most)
        count = len(places)
        coming: Seq[int] = ()
        if count < len(prompt) // books.block_tokens:
            if not sequence.hashes:
                sequence.hashes = chain_hashes(sequence.salt, prompt, books.block_tokens)
            coming = sequence.hashes[count:]
            if coming[0] in self._promised or coming[0] in about_to:
                return None
        if count:
            fetched = [-place.serial for place in places if place.is_on_host]
            if fetched:
                if not about_to.isdisjoint(fetched):
                    return None
                about_to.update(fetched)
        if coming:
            about_to.update(coming)
        return places

    def look_up_all(self, sequences: Iterable[Sequence]) -> bool:
        """`look_up` for those of one plan. False where one of them has to wait."""
        about_to: set[int] = set()
        last: Sequence | None = None
        for sequence in sequences:
            if last is not None and _are_alike(sequence, last):
                sequence.found = last.found
                continue
            places = self.look_up(sequence, about_to)
            if places is None:
                return False
            is_all_known = len(places) == len(sequence.spec.prompt) // self.books.block_tokens
            last = sequence if is_all_known else None
        return True

    def begin(self, admitted: Iterable[Sequence]) -> None:
        """Have admitted sequences go on after what was found of them when they were looked up."""
        books = self.books
        claimed = [  # all of them before any block is taken: that may evict
            (sequence, books.claim(sequence.found) if sequence.found else ())
            for sequence in admitted
        ]
        size, promised = books.block_tokens, self._promised
        for sequence, claims in claimed:
            places, sequence.found = sequence.found, ()
            count = len(places)
            sequence.blocks = (
                books.fetch(places, claims) if claims else [place.block for place in places]
            )
            sequence.parent = places[-1].serial if places else sequence.salt
            sequence.recorded = sequence.promised = count
            sequence.computed = sequence.fed = count * size
            if count < len(sequence.hashes):
                for coming in sequence.hashes[count:]:  # `update` would be five calls
                    promised[coming] = promised.get(coming, 0) + 1
            if sequence.high_water == 0 and sequence.may_hit:  # not again after a preemption
                sequence.cached_tokens = count * size
                self.query_tokens += len(sequence.spec.prompt)
                self.hit_tokens += count * size
                self.host_hit_tokens += len(claims) * size

    def grow(self, sequence: Sequence, tokens: int) -> None:
        """Take blocks until the sequence has room for `tokens`."""
        needed = -(-tokens // self.books.block_tokens) - len(sequence.blocks)
        if needed > 0:
            sequence.blocks += self.books.take(needed)

    def record(self, sequence: Sequence) -> None:
        """Have full blocks found by their text from now on."""
        size = self.books.block_tokens
        known = min(sequence.computed, len(sequence.tokens))  # confirmed guesses are taken in later
        full = min(known // size, sequence.held)
        for place in range(sequence.recorded, full):
            text = tuple(sequence.tokens[place * size : (place + 1) * size])
            found = self.books.record(sequence.parent, text, sequence.blocks[place])
            sequence.blocks[place], sequence.parent = found.block, found.serial
        sequence.recorded = max(sequence.recorded, full)
        if sequence.promised < len(sequence.hashes):
            self._keep_promises(sequence, full)

    def let_go(self, sequence: Sequence) -> None:
        """Give back all that it holds. What is recorded stays to be found."""
        if sequence.promised < len(sequence.hashes):
            self._keep_promises(sequence, len(sequence.hashes))
        self.books.give_back(sequence.blocks)
        sequence.blocks = []
        sequence.draft = ()
        sequence.recorded = 0

    def take_moves(self) -> list[KvMove]:
        return self.books.take_moves()

    def forget_texts(self, running: Iterable[Sequence]) -> None:
        """Have nothing found that was computed until now."""
        self.books.forget_texts()
        for sequence in running:
            sequence.recorded = (
                sys.maxsize
            )  # what comes after texts that nobody knows is not recorded

    def check(self, running: Iterable[Sequence]) -> None:
        """Audit the promises; the books audit the blocks."""
        promised = Counter(h for s in running for h in s.hashes[s.promised :])
        assert +self._promised == promised, "a promise that nobody keeps, or a lost one"

    def _keep_promises(self, sequence: Sequence, upto: int) -> None:
        for kept in sequence.hashes[sequence.promised : upto]:
            self._promised[kept] -= 1
            if not self._promised[kept]:
                del self._promised[kept]
        sequence.promised = max(sequence.promised, min(upto, len(sequence.hashes)))

    def _salt(self, spec: SequenceSpec) -> str:
        """Texts are shared within a scope and an adapter, and without the cache among one request's choices."""
        scope = (spec.cache_scope or spec.tenant) if self._is_kept else spec.request_id
        return f"{scope}\0{spec.adapter or ''}"


def _are_alike(one: Sequence, other: Sequence) -> bool:
    """The same is found of them: choices of one request, or of one that came again."""
    prompt = one.spec.prompt
    return (
        prompt is other.spec.prompt
        and one.salt == other.salt
        and (one.is_plain and other.is_plain)
        and len(one.tokens) == len(other.tokens) == len(prompt)
    )
