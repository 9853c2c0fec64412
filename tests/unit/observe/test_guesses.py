"""What was guessed and what of it was right, as vLLM's dashboards expect it."""

from llmhost.core.errors import EngineFailed
from llmhost.core.sampling import Sampling
from llmhost.core.step import Draw, Drawn, Row, StepResult
from llmhost.observe.metrics import Metrics


def values(metrics: Metrics) -> dict[str, float]:
    lines = metrics.render().decode().splitlines()
    return {
        name.removeprefix("vllm:spec_decode_"): float(value)
        for name, _, value in (line.rpartition(" ") for line in lines)
        if name.startswith("vllm:spec_decode") and "_created" not in name
    }


def observe(metrics: Metrics, *rows: tuple[int, Drawn]) -> None:
    fed = [
        Row(i, [1] * (1 + drafts), 4, [0], Sampling(), 0, True, drafts=drafts)
        for i, (drafts, _) in enumerate(rows)
    ]
    result = StepResult(fed, [drawn for _, drawn in rows], 0, 10, [5] * len(rows))
    metrics.step_observer("m@1")(result)


def test_guesses_are_counted_by_model_and_by_place():
    metrics = Metrics()
    observe(metrics, (3, Draw((7, 8, 9))), (2, Draw((1,))), (0, 5), (1, Draw((4, 4))))

    assert values(metrics) == {
        'num_drafts_total{model_name="m@1"}': 3,
        'num_draft_tokens_total{model_name="m@1"}': 6,
        'num_accepted_tokens_total{model_name="m@1"}': 3,
        'num_accepted_tokens_per_pos_total{model_name="m@1",position="0"}': 2,
        'num_accepted_tokens_per_pos_total{model_name="m@1",position="1"}': 1,
        'draft_acceptance_rate{model_name="m@1"}': 0.5,
    }


def test_a_row_that_failed_says_nothing_of_its_guesses():
    metrics = Metrics()
    observe(metrics, (3, EngineFailed("NaN")))

    assert values(metrics)['num_drafts_total{model_name="m@1"}'] == 0
