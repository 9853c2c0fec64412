"""Prompt lookup: what it finds, what it costs, and that it never reads beyond its text."""

from hypothesis import given
from hypothesis import strategies as st

from llmhost.core.ports import DraftAsk
from llmhost.core.sampling import Sampling
from llmhost.schedule.drafting import LONGEST_MATCH, Places, PromptLookup

texts = st.lists(st.integers(0, 4), max_size=60)


def ask(tokens: list[int], most: int = 4, seq_id: int = 1) -> DraftAsk:
    return DraftAsk(seq_id, tokens, most, Sampling(temperature=0.0), 0)


def guess(tokens: list[int], most: int = 4) -> list[int]:
    (found,) = PromptLookup().propose([ask(tokens, most)])
    return list(found)


def test_what_followed_the_same_words_is_guessed():
    assert guess([1, 2, 3, 4, 5, 6, 9, 1, 2]) == [3, 4, 5, 6]


def test_nothing_is_guessed_where_nothing_repeats():
    assert guess([1, 2, 3, 4, 5]) == []
    assert guess([]) == []
    assert guess([1, 1]) == []


def test_the_longest_match_wins_over_a_later_one():
    assert guess([7, 1, 2, 5, 0, 8, 1, 2, 6, 0, 7, 1, 2], 1) == [5]


def test_the_latest_of_equal_matches_wins():
    assert guess([1, 2, 5, 0, 1, 2, 6, 0, 1, 2], 1) == [6]


def test_a_text_that_repeats_itself_is_carried_on_beyond_its_end():
    assert guess([1, 2, 3, 1, 2, 3, 1, 2], 7) == [3, 1, 2, 3, 1, 2, 3]
    assert guess([4, 4, 4], 3) == [4, 4, 4]


@given(texts, st.integers(0, 6))
def test_a_guess_is_a_continuation_of_the_best_match_of_the_texts_end(tokens: list[int], most: int):
    found = guess(tokens, most)

    pairs = [
        place for place in range(1, len(tokens) - 1) if tokens[place - 1 : place + 1] == tokens[-2:]
    ]
    assert bool(found) is (bool(pairs) and most > 0)
    if found:
        assert len(found) == most
        whole = [*tokens, *found]
        lengths = {place: common(tokens, place) for place in pairs[-8:]}
        longest = max(lengths.values())
        place = max(place for place, length in lengths.items() if length == longest)
        assert found == whole[place + 1 : place + 1 + most]


def common(tokens: list[int], place: int) -> int:
    length = 0
    while length < min(LONGEST_MATCH, place + 1) and tokens[place - length] == tokens[-1 - length]:
        length += 1
    return length


@given(texts, st.lists(st.integers(1, 9), max_size=20))
def test_a_text_read_bit_by_bit_gives_the_guesses_of_one_read_at_once(
    tokens: list[int], pieces: list[int]
):
    growing = PromptLookup()
    end = 0
    for piece in pieces:
        end = min(end + piece, len(tokens))
        (found,) = growing.propose([ask(tokens[:end])])
        assert list(found) == guess(tokens[:end])


def test_sequences_do_not_read_each_others_words():
    lookup = PromptLookup()
    lookup.propose([ask([1, 2, 3, 4], seq_id=1)])

    assert lookup.propose([ask([9, 1, 2], seq_id=2)]) == [[]]


def test_a_forgotten_sequence_leaves_nothing_behind():
    lookup = PromptLookup()
    lookup.propose([ask([1, 2, 3, 1, 2])])
    lookup.forget(1)
    lookup.forget(1)
    assert lookup._texts == {}


def test_of_a_long_text_only_the_latest_part_is_remembered():
    lookup = PromptLookup(window_tokens=50)
    tokens = [7, 8, 9, *range(100, 100 + 40)]
    for token in range(1000, 1400):
        tokens.append(token)
        lookup.propose([ask(tokens)])
        (places,) = lookup._texts.values()
        assert len(places._before) <= 100
        assert len(places._latest) <= 100
    assert lookup.propose([ask([*tokens, 7, 8])]) == [[]]  # what stood there is forgotten
    assert lookup.propose([ask([*tokens, 7, 8, 1398, 1399], 1)]) == [[7]]


def test_a_token_is_read_once_however_often_is_asked():
    class Counted(list[int]):
        reads = 0

        def __getitem__(self, place):  # type: ignore[no-untyped-def, override]
            Counted.reads += 1
            return super().__getitem__(place)

    tokens = Counted(range(10_000))
    places = Places()
    places.guess(tokens, 4)
    Counted.reads = 0
    for token in range(100):
        tokens.append(20_000 + token)
        places.guess(tokens, 4)
    assert Counted.reads < 100 * 10


def predicted(tokens: list[int], prediction: list[int], *, prompt: int, most: int = 4) -> DraftAsk:
    return DraftAsk(1, tokens, most, Sampling(temperature=0.0), 0, prompt, prediction)


def test_what_is_predicted_is_guessed_from_the_first_word_on():
    lookup, said = PromptLookup(), [1, 2]

    for place in range(5):
        ask = predicted(said, [7, 8, 9, 7, 5], prompt=2, most=2)
        assert list(*lookup.propose([ask])) == [7, 8, 9, 7, 5, *said][place : place + 2]
        said.append([7, 8, 9, 7, 5][place])


def test_a_prediction_is_found_again_behind_other_words():
    lookup = PromptLookup()
    lookup.propose([predicted([1, 2], [5, 6, 7, 8], prompt=2)])

    assert list(*lookup.propose([predicted([1, 2, 5, 9, 6, 7], [5, 6, 7, 8], prompt=2)])) == [
        *(8, 1, 2, 5)
    ]
    lookup.forget(1)
    assert list(*lookup.propose([predicted([1, 2, 6, 7], [], prompt=2)])) == []


@given(texts, texts, st.integers(1, 6), st.integers(1, 60))
def test_text_with_a_prediction_is_looked_up_as_if_it_came_first(
    tokens: list[int], prediction: list[int], most: int, prompt: int
):
    prompt = min(prompt, len(tokens))
    before = [*tokens[max(prompt - LONGEST_MATCH, 0) : prompt], *prediction]
    lookup, found = PromptLookup(), list[int]()
    for end in range(prompt, len(tokens) + 1):
        found = list(
            *lookup.propose([predicted(tokens[:end], prediction, prompt=prompt, most=most)])
        )

    if prediction:
        assert found == Places().guess([*before, *tokens], most)
    else:
        assert found == guess(tokens, most)
