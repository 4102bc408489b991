"""The pattern: an agent drafts, a person decides, and the orchestration waits for that as long as it takes."""

from datetime import timedelta

from hosting.agent_step import Step, ask_for

from activities import notify_user_for_approval, publish_content
from agent_framework_durabletask import DurableAIAgentOrchestrationContext
from durabletask.task import OrchestrationContext, when_any
from models import ContentRequest, Decision, Draft
from review_status import EVENT, WAITING, Review


class NotApproved(Exception):
    """Every draft was rejected."""


def content_generation_hitl_orchestration(context: OrchestrationContext, request: ContentRequest) -> Step[Draft]:
    """Draft, ask a person, revise by the feedback; publish what is approved."""
    time = timedelta(seconds=request.approval_timeout_seconds)
    writer = DurableAIAgentOrchestrationContext(context).get_agent("ContentWriterAgent")
    review = Review(of=request.max_review_attempts)
    prompt = f'Write a short article about "{request.topic}".'

    while review.attempt < review.of:
        draft = yield from ask_for(context, writer, prompt, Draft, show=review.model_dump_json())
        match (yield from decision_on(context, draft, review, time)):
            case Decision(approved=True):
                context.set_custom_status(review.with_headline("Publishing"))
                path = yield context.call_activity(publish_content, input=draft)
                context.set_custom_status(review.with_headline(f"Published as {path}"))
                return draft
            case Decision(feedback=feedback):
                prompt = revision_prompt(draft, feedback or "No specific feedback: write it better.")
            case None:
                context.set_custom_status(review.with_headline("Timed out"))
                raise TimeoutError(f"Not published: {review.which} timed out after {time.total_seconds():g} seconds.")

    context.set_custom_status(review.with_headline("Not approved"))
    raise NotApproved(f"Not published: none of the {review.of} drafts was approved.")


def decision_on(context: OrchestrationContext, draft: Draft, review: Review, time: timedelta) -> Step[Decision | None]:
    """Show a draft to reviewers, and wait for the first decision that counts; None: the time is over."""
    review.begin(draft, deadline=context.current_utc_datetime + time)
    context.call_activity(notify_user_for_approval, input=review.which)  # not waited for: a mail server may be down
    timer = context.create_timer(time)
    while True:
        context.set_custom_status(review.with_headline(f"{WAITING} on {review.which}"))
        event = context.wait_for_external_event(EVENT)
        # Nothing runs while this waits, be it for days: no process has to live that long.
        if (yield when_any([event, timer])) is timer:
            return None
        if decision := review.read(event.get_result()):
            return decision


def revision_prompt(draft: Draft, feedback: str) -> str:
    """All that the agent needs to know: each draft has its own conversation, so that it can be retried alone."""
    return f"Revise this article by the reviewer's feedback.\n\n{draft.model_dump_json()}\n\nFeedback: {feedback}"
