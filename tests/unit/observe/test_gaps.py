"""Times that come with every token are counted many at once, as if each had been counted when it came."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from llmhost.observe.loop import LoopHistogram

BOUNDS_S = (0.001, 0.02, 0.5)
times_ns = st.lists(
    st.one_of(st.integers(0, 2 * 10**9), st.sampled_from([10**6, 2 * 10**7, 5 * 10**8])),
    max_size=50,
)


def samples(histogram: LoopHistogram) -> dict[str, float]:
    [family] = histogram.collect()
    return {f"{s.name}{s.labels.get('le')}": round(s.value, 6) for s in family.samples}


@given(times_ns, times_ns)
def test_noted_times_are_counted_as_those_that_are_observed(
    first: list[int], later: list[int]
) -> None:
    noted = LoopHistogram("a", "A", BOUNDS_S, CollectorRegistry())
    observed = LoopHistogram("a", "A", BOUNDS_S, CollectorRegistry())
    gaps, observe = noted.gaps("echo"), observed.observer("echo")
    for times in (first, later):
        for ns in times:
            gaps.append(ns)
            observe(ns / 1e9)
        assert samples(noted) == samples(observed)
        assert not gaps
