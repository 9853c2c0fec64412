"""What clients count on, row by row: each with the tests that show it. A row without its test is a promise unkept."""

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TABLE = "http/test_error_table.py"
TRAPS = "http/test_traps.py"

ERRORS = {
    "a body that is no JSON": [
        "http/test_errors.py::test_a_body_that_is_not_json_is_a_bad_request"
    ],
    "a wrong type": [f"{TABLE}::a field of a wrong type", f"{TABLE}::a field within a list"],
    "a wrong range": [f"{TABLE}::a field out of its range"],
    "a field that has to be there": [f"{TABLE}::a field that is absent"],
    "a field that is not supported": [
        f"{TABLE}::a field that is not supported",
        "http/test_parameters.py::test_what_is_refused_is_refused_by_its_name",
    ],
    "options of streams without one": [f"{TABLE}::options of a stream without one"],
    "likeliest tokens without any": [f"{TABLE}::likeliest tokens without log probabilities"],
    "a prompt longer than the window": [
        f"{TABLE}::a chat that is too long",
        f"{TABLE}::a prompt that is too long",
        f"{TABLE}::an input that is too long",
        f"{TABLE}::an answer that is too long, before its stream begins",
    ],
    "a chain that is broken": [f"{TABLE}::a chain of responses that is broken"],
    "a schema or tool that can't be enforced": [
        "http/test_structured.py::test_what_can_not_be_enforced_is_refused_before_the_answer"
    ],
    "a key that is missing or wrong": [
        f"{TABLE}::test_a_wrong_key",
        "http/test_errors.py::test_no_key_at_all_is_an_authentication_error",
    ],
    "two keys at once": ["http/test_edge.py::test_two_keys_are_refused_whichever_of_them_is_valid"],
    "a model that the key may not use": [f"{TABLE}::test_a_model_that_the_key_lacks"],
    "an unknown model": [f"{TABLE}::a model that is unknown"],
    "an unknown route or id": [
        f"{TABLE}::a route that is unknown",
        f"{TABLE}::a response that is unknown",
        f"{TABLE}::a file that is unknown",
        f"{TABLE}::a batch that is unknown",
    ],
    "a body that is too large": [f"{TABLE}::a body that is too large"],
    "a limit, where trying again helps": [f"{TABLE}::test_a_rate_where_trying_again_helps"],
    "a budget, where trying again does not": [
        f"{TABLE}::test_a_budget_where_trying_again_does_not_help"
    ],
    "our own failure": [
        f"{TABLE}::a failure that is the server's",
        f"{TABLE}::test_a_failure_amid_a_stream_is_its_last_event",
        "unit/api/test_errors.py::test_what_nobody_thought_about_says_nothing_of_its_insides",
    ],
    "a full queue": [f"{TABLE}::test_a_queue_that_is_full"],
    "a server that shuts down": [f"{TABLE}::test_a_server_that_shuts_down"],
}
"""The table of errors that clients branch on."""

KNOWN_TRAPS = {
    "chunks without choices": [
        f"{TRAPS}::test_without_wish_for_usage_no_chunk_is_without_choices_and_none_has_usage",
        f"{TRAPS}::test_usage_is_alone_in_the_last_chunk_and_null_before",
    ],
    "the reason of an end": [
        f"{TRAPS}::test_every_choice_of_a_stream_ends_with_exactly_one_reason",
        "http/test_structured.py::test_required_calls_keep_their_tools_schemas",
        "http/test_tools.py::test_an_agent_gets_its_calls_and_then_its_answer",
    ],
    "pieces of calls": [
        f"{TRAPS}::test_a_streamed_call_is_named_once_and_goes_on_in_texts",
        "unit/api/test_calls.py::test_calls_come_out_as_they_went_in",
        "unit/text/test_calls.py::test_calls_are_the_same_wherever_the_text_is_cut",
    ],
    "history as clients write it": [
        f"{TRAPS}::test_what_an_assistant_said_is_taken_back_however_it_is_written",
        f"{TRAPS}::test_an_answer_without_calls_has_no_list_of_them",
    ],
    "limits and roles by their newer names": [
        f"{TRAPS}::test_both_names_of_the_limit_limit",
        f"{TRAPS}::test_a_developer_may_speak_where_a_system_may",
    ],
    "vectors in base64": [
        "http/test_pooling.py::test_the_client_reads_the_vectors_whatever_it_asks_for"
    ],
    "errors that programs can read": [
        f"{TRAPS}::test_an_overflow_is_a_400_also_of_a_stream",
        f"{TRAPS}::test_codes_are_texts_and_nothing_has_a_detail",
        "http/test_errors.py::test_a_failure_in_mid_stream_is_one_error_event_and_no_done",
    ],
    "money that is tried again": [f"{TABLE}::test_a_budget_where_trying_again_does_not_help"],
    "usage that is paid twice or never": [
        f"{TRAPS}::test_what_a_cache_had_is_a_part_of_the_prompt",
        f"{TRAPS}::test_who_hangs_up_before_the_usage_is_charged_all_the_same",
        "http/test_metering.py::test_a_stream_without_usage_is_billed_all_the_same",
        "unit/api/test_messages_frames.py::test_usage_tells_what_a_cache_had_apart",
    ],
    "events of responses": [
        "http/test_responses.py::test_a_stream_has_its_events_in_order_and_ends_with_the_whole",
        "http/test_responses.py::test_what_breaks_amid_a_stream_is_told_as_its_last_events",
        "unit/api/test_response_items.py::test_events_add_up_to_the_whole_answer",
    ],
    "thoughts": [
        "unit/api/test_tools.py::test_thoughts_are_told_apart_by_both_names",
        "unit/api/test_tools.py::test_an_answer_whose_prompt_begins_thoughts_begins_amid_them",
        "unit/api/test_tools.py::test_a_model_is_told_what_it_called_thought_and_learnt",
    ],
    "silence": [
        f"{TRAPS}::test_headers_do_not_wait_for_a_token_and_silence_is_a_comment",
        f"{TRAPS}::test_the_client_reads_over_silence",
    ],
    "Anthropic's usage, blocks and counts": [
        "http/test_messages.py::test_a_stream_is_the_golden_one",
        "unit/api/test_messages_frames.py::test_a_stream_begins_with_the_prompts_tokens_and_ends_with_what_is_paid",
        "unit/api/test_messages_wire.py::test_a_system_message_amid_others_keeps_its_place",
        "unit/api/test_count_tokens.py::test_as_many_are_counted_as_an_answer_says_that_its_prompt_had",
    ],
    "chunks that agree": [
        f"{TRAPS}::test_chunks_agree_and_the_role_is_said_once",
        f"{TRAPS}::test_a_whole_answer_has_the_key_of_log_probabilities_also_without_them",
        f"{TRAPS}::test_log_probabilities_are_json_numbers_whatever_can_not_be_said",
    ],
    "parameters that are not honoured": [
        "http/test_parameters.py::test_what_is_honoured_or_ignored_is_taken",
        "http/test_parameters.py::test_what_nobody_knows_is_accepted",
        "docs/test_parameters.py::test_a_parameter_does_what_its_row_says",
    ],
    "names of models": [
        f"{TRAPS}::test_an_alias_is_answered_by_its_name_and_a_strange_one_not_at_all"
    ],
    "seeds": [f"{TRAPS}::test_the_same_seed_says_the_same_alone_and_among_others"],
    "choices of tools and forms, beside streams and each other": [
        "http/test_structured.py::test_a_streamed_call_adds_up_to_the_whole_one",
        "http/test_streams_are_wholes.py::test_a_stream_adds_up_to_its_whole_answer",
        "unit/api/test_tools.py::test_an_answer_that_has_a_form_already_is_not_held_to_calls",
    ],
    "probes": [
        f"{TRAPS}::test_a_key_is_tried_out_by_listing_models",
        "http/test_wire.py::test_a_preflight_allows_what_it_asks_for",
        "http/test_edge.py::test_head_says_what_get_says_without_the_body",
    ],
    "what evaluations ask for": [
        f"{TRAPS}::test_prompts_choices_and_echo_go_together",
        f"{TRAPS}::test_a_text_is_scored_without_an_answer",
    ],
    "pictures and sound": [f"{TRAPS}::test_pictures_and_sound_are_refused_by_their_place"],
    "one prompt by every route": [
        "http/test_same_prompt.py::test_each_route_asks_the_model_the_same"
    ],
}
"""What users of other servers' clients ran into."""


@cache
def names_in(file: str) -> frozenset[str]:
    """Tests of a file, and the keys of its tables."""
    tree = ast.parse((TESTS / file).read_text("utf-8"))
    functions = {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    keys = {
        key.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    }
    return frozenset(functions | keys)


@pytest.mark.parametrize("table", [ERRORS, KNOWN_TRAPS], ids=["errors", "traps"])
def test_every_row_has_tests_that_are_there(table: dict[str, list[str]]) -> None:
    lost = [
        (row, test)
        for row, tests in table.items()
        for test in tests
        if test.split("::")[1] not in names_in(test.split("::")[0])
    ]

    assert lost == []
    assert all(table.values())


def test_every_row_of_the_table_that_is_asked_is_named_here() -> None:
    tree = ast.parse((TESTS / TABLE).read_text("utf-8"))
    [rows] = [
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "ROWS"
    ]
    assert isinstance(rows, ast.Dict)
    asked = {f"{TABLE}::{ast.literal_eval(key)}" for key in rows.keys if key is not None}

    assert asked <= {test for tests in ERRORS.values() for test in tests}
