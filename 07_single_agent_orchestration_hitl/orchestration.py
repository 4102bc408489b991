"""The pattern: an agent drafts, a person decides, and the orchestration waits for that as long as it takes."""

from datetime import timedelta, timezone
from typing import Any

from activities import notify_user_for_approval, publish_content
from agent_framework_durabletask import DurableAIAgentOrchestrationContext
from durabletask.task import OrchestrationContext, when_any
from models import EVENT, WAITING, ContentRequest, Decision, Draft, Review
from steps import Step, ask, read_input


class NotApproved(Exception):
    """Every draft was rejected."""


def content_generation_hitl_orchestration(context: OrchestrationContext, data: Any) -> Step[dict[str, str]]:
    """Draft, ask a person, revise by the feedback; publish what is approved. Ends with {title, content}."""
    request = read_input(ContentRequest, data)
    writer = DurableAIAgentOrchestrationContext(context).get_agent("WriterAgent")
    review = Review(of=request.max_review_attempts)
    prompt = f'Write a short article about "{request.topic}".'

    while review.attempt < review.of:
        context.set_custom_status(review.as_status(f"Writing draft {review.attempt + 1} of {review.of}"))
        draft = yield from ask(context, writer, prompt, expect=Draft)
        decision = yield from decision_on(context, draft, review, request.approval_timeout_seconds)
        if decision.approved:
            context.set_custom_status(review.as_status("Publishing"))
            path = yield context.call_activity(publish_content, input=draft.model_dump())
            context.set_custom_status(review.as_status(f"Published as {path}"))
            return draft.model_dump()
        prompt = revision_prompt(draft, decision.feedback)

    context.set_custom_status(review.as_status("Not approved"))
    raise NotApproved(f"Not published: none of the {review.of} drafts was approved.")


def decision_on(context: OrchestrationContext, draft: Draft, review: Review, timeout_seconds: float) -> Step[Decision]:
    """Show a draft to reviewers, and wait for the first decision that counts. Raises TimeoutError if none comes."""
    shown = context.current_utc_datetime
    review.attempt, review.draft = review.attempt + 1, draft.shortened()
    review.since = shown.replace(tzinfo=timezone.utc)
    review.deadline = review.since + timedelta(seconds=timeout_seconds)
    which = f"draft {review.attempt} of {review.of}"
    context.set_custom_status(review.as_status(f"{WAITING} on {which}"))

    # Not waited for: reviewers who watch the list need not wait until a mail server is up again.
    context.call_activity(notify_user_for_approval, input=f"{review.draft.title!r}, {which}")

    # Nothing runs while this waits, be it for days: no process has to live that long. Once a decision has come the
    # timer fires all the same, and nobody waits for it.
    timer = context.create_timer(timedelta(seconds=timeout_seconds))
    while True:
        event = context.wait_for_external_event(EVENT)
        if (yield when_any([event, timer])) is timer:
            context.set_custom_status(review.as_status("Timed out"))
            raise TimeoutError(f"Not published: the review of {which} timed out after {timeout_seconds:g} seconds.")
        # Events that nobody waits for stand in line. What is taken from it in the very turn that shows the draft was
        # sent by somebody who cannot have seen it. This clock tells: it moves on only from turn to turn.
        decision = review.take(event.get_result(), seen=context.current_utc_datetime != shown)
        if decision:
            return decision
        context.set_custom_status(review.as_status(f"{WAITING} on {which}"))


def revision_prompt(draft: Draft, feedback: str | None) -> str:
    """What the agent is told: it knows nothing of earlier drafts, so that each step can be retried by itself."""
    wish = feedback or "No specific feedback was given. Find what is weak, and write it better."
    return f"Revise this article by the reviewer's feedback.\n\n{draft.model_dump_json()}\n\nFeedback: {wish}"
