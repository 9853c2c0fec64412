"""What an answer's headers say of its safety, where its texts did not just pass."""

from llmhost.pipeline.context import RequestContext

SAFETY = "x-llmhost-safety"
NAMES = (SAFETY,)


def safety_headers(context: RequestContext) -> dict[str, str]:
    """`warn; rule=pii.email`: the strictest decision so far, of a stream that on its prompt."""
    if (screening := context.screening) is None or not screening.decision.action:
        return {}
    decision = screening.decision
    said = decision.action.name.lower()
    if decision.finding is not None:
        said += f"; rule={decision.finding.rule.encode('ascii', 'replace').decode()}"
    return {SAFETY: said}
