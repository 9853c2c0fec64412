"""What has to leave the KV cache waits in host memory and comes back instead of being computed again."""

from tests.unit.schedule.kit import VOCAB, Workbench, a_spec, some_limits

from llmhost.engines.fake import fake_answer


def crowded(**changes: int) -> Workbench:
    """A cache of 6 blocks: what was computed before has to leave for the next."""
    return Workbench(some_limits(kv_blocks=6, max_tokens_per_batch=32, **changes))


def say(bench: Workbench, prompt: range, tokens: int = 4) -> int:
    seq_id = bench.add(a_spec(prompt, max_new_tokens=tokens))
    bench.run_to_the_end()
    assert bench.heard[seq_id].tokens == fake_answer(prompt, tokens, VOCAB)
    return seq_id


def cached_tokens(bench: Workbench, seq_id: int) -> int:
    last = bench.heard[seq_id].last
    assert last is not None and last.usage is not None
    return last.usage.cached_tokens


def test_an_evicted_prompt_comes_back_from_the_host() -> None:
    bench = crowded(host_kv_blocks=8)
    say(bench, range(12))
    say(bench, range(40, 58))
    again = say(bench, range(12))
    assert cached_tokens(bench, again) == 8
    load = bench.scheduler.load()
    assert load.host_hit_tokens == 8
    assert load.host_blocks_used > 0


def test_without_a_host_tier_it_is_computed_again() -> None:
    bench = crowded()
    say(bench, range(12))
    say(bench, range(40, 58))
    assert cached_tokens(bench, say(bench, range(12))) == 0


def test_a_preempted_sequence_comes_back_from_the_host() -> None:
    bench = crowded(host_kv_blocks=8)
    long = bench.add(a_spec(range(12), max_new_tokens=8))
    for _ in range(3):
        bench.step()
    bench.scheduler.preempt([long])
    short = bench.add(a_spec(range(40, 58), priority=-1, max_new_tokens=2))
    bench.run_to_the_end()
    assert bench.heard[short].tokens == fake_answer(range(40, 58), 2, VOCAB)
    assert bench.heard[long].tokens == fake_answer(range(12), 8, VOCAB)
    assert bench.scheduler.load().preemptions == 1
    assert bench.scheduler.accounts.operator_ns < 2 * 997, "most of it was not computed twice"


def test_the_least_recently_used_text_leaves_the_host_first() -> None:
    bench = crowded(host_kv_blocks=4)
    for begin in (0, 20, 40, 60):
        say(bench, range(begin, begin + 16), tokens=2)
    assert cached_tokens(bench, say(bench, range(40, 56), tokens=2)) > 0
    assert cached_tokens(bench, say(bench, range(0, 16), tokens=2)) == 0
    assert bench.scheduler.books.host.evicted > 0


def test_a_failed_move_leaves_nothing_to_be_found() -> None:
    bench = crowded(host_kv_blocks=8)
    say(bench, range(12))
    say(bench, range(40, 58))
    bench.scheduler.forget_texts()
    bench.audit()
    assert cached_tokens(bench, say(bench, range(12))) == 0


def test_what_comes_after_forgotten_texts_is_not_found_under_others() -> None:
    bench = Workbench(some_limits(kv_blocks=16, max_tokens_per_batch=32))
    first = bench.add(a_spec([0] * 6, max_new_tokens=14))
    bench.step()
    bench.scheduler.forget_texts()
    bench.run_to_the_end()
    words = bench.heard[first].tokens
    skipped = [0] * 4 + words[2:]  # its first block, and what came two blocks later
    second = bench.add(a_spec(skipped, max_new_tokens=2))
    bench.run_to_the_end()
    assert bench.heard[second].tokens == fake_answer(skipped, 2, VOCAB)
    assert cached_tokens(bench, second) == 0
