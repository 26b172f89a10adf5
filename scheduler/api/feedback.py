"""/v1/feedback: labels that come later."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import ConfigDict, Discriminator, Field, Tag

from scheduler import feedback
from scheduler.api.bodies import StrictRoute
from scheduler.api.errors import documented
from scheduler.api.security import Submitter
from scheduler.api.sessions import Now, WithServices
from scheduler.api.shapes import Body, Reply, ShortText, Text
from scheduler.database import reading

router = APIRouter(prefix="/v1/feedback", tags=["feedback"], route_class=StrictRoute)

LABELS_MAX = 10_000
COMMENT_MAX = 4096


class LabelBody(Body):
    """One answer's label: `correct` says it outright, else the answer is compared with `reference`."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["correct"], "properties": {"correct": {"type": "boolean"}}},
                {"required": ["reference"], "properties": {"reference": {"type": "string"}}},
            ]
        }
    )

    batch_id: ShortText
    custom_id: Annotated[Text, Field(min_length=1, max_length=512)]
    correct: Annotated[bool | None, Field(strict=True)] = None
    reference: Text | None = None
    comment: Annotated[Text | None, Field(max_length=COMMENT_MAX)] = None


class LabelsBody(Body):
    """Many labels, all of which are recorded, or none."""

    labels: Annotated[list[LabelBody], Field(min_length=1, max_length=LABELS_MAX)]


def _kind(body: Any) -> str:
    return "(many)" if isinstance(body, LabelsBody) or (isinstance(body, dict) and "labels" in body) else "(one)"


# Told apart by a key, so that a fault is told of the one that was meant.
LabelOrLabels = Annotated[
    Annotated[LabelBody, Tag("(one)")] | Annotated[LabelsBody, Tag("(many)")], Discriminator(_kind)
]


class FeedbackReply(Reply):
    """How many labels were recorded."""

    object: Literal["feedback"] = "feedback"
    accepted: int


@router.post("", responses=documented(409))
def give_feedback(body: LabelOrLabels, caller: Submitter, services: WithServices, now: Now) -> FeedbackReply:
    """Say whether answers were right; of several labels of one answer the newest counts."""
    given = body.labels if isinstance(body, LabelsBody) else [body]
    labels = [feedback.NewLabel(**label.model_dump()) for label in given]
    with reading(services.sessions) as session:
        judged = feedback.judge_labels(session, caller.tenant_id, labels)
    with services.sessions.begin() as session:
        return FeedbackReply(accepted=feedback.record_labels(session, judged, now))
