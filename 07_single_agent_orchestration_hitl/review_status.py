"""The state of a review: the orchestration writes it into its custom status, reviewers read it there."""

from datetime import datetime, timezone

from hosting.payloads import in_words
from hosting.terminal import clean

from models import Decision, Draft
from pydantic import BaseModel, ValidationError

EVENT = "HumanApproval"  # the external event that carries a decision
WAITING = "Requesting human feedback"  # how the custom status begins while a draft waits for a decision
SHOWN_LIMIT = 20_000  # characters of a draft in the custom status, which has room for 1 MB


class LastDecision(BaseModel):
    """What became of the decision that came last: it counted, unless there is a reason why it was ignored."""

    approved: bool | None = None
    attempt: int | None = None
    decision_id: str | None = None
    by: str | None = None
    ignored: str | None = None


class Review(BaseModel):
    """What the custom status has below its first line, as JSON.

    Attributes:
        attempt: the number of the latest draft, from 1.
        of: how many drafts there will be at most.
        deadline: until when a decision on the draft counts (UTC).
        draft: the draft, shortened to SHOWN_LIMIT; the history has the whole.
        counted: for each draft that was decided on, the id of the decision that counted; null if it had none.
    """

    attempt: int = 0
    of: int
    deadline: datetime | None = None
    draft: Draft | None = None
    last_decision: LastDecision | None = None
    counted: list[str | None] = []

    @property
    def which(self) -> str:
        """The latest draft, for people."""
        return f"draft {self.attempt} of {self.of}"

    def begin(self, draft: Draft, deadline: datetime) -> None:
        """The next draft waits for a decision."""
        self.attempt, self.deadline = self.attempt + 1, deadline.replace(tzinfo=timezone.utc)
        left_out = len(draft.content) - SHOWN_LIMIT
        end = f"\n[… {left_out:,} more characters: the orchestration's history has the whole draft.]"
        self.draft = Draft(title=draft.title[:300], content=draft.content[:SHOWN_LIMIT] + (end if left_out > 0 else ""))

    def read(self, event_data: object) -> Decision | None:
        """The decision in an event's data, if it counts for the draft that waits; `last_decision` says why not."""
        try:
            decision = Decision.read(event_data)
        except ValidationError as error:
            self.last_decision = LastDecision(ignored=f"It is not a decision: {clean(in_words(error))[:300]}")
            return None
        self.last_decision = LastDecision(**decision.model_dump(exclude={"feedback"}))
        if decision.attempt not in (None, self.attempt):  # without a number, it counts for the draft that waits
            self.last_decision.ignored = f"It is for draft {decision.attempt}; draft {self.attempt} is waiting."
            return None
        self.counted.append(decision.decision_id)
        return decision

    def with_headline(self, line: str) -> str:
        """The custom status: a line for people, and below it the review for programs."""
        return f"{line}\n{self.model_dump_json()}"
