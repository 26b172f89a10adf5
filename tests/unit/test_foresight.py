"""The API believes what the daemon would, without being the daemon."""

from __future__ import annotations

from sqlalchemy.orm import Session, sessionmaker

from models.tables import Batch
from scheduler.foresight import Foresight
from scheduler.types import Arm, Query
from tests.factories import MODEL, add_batch, add_tenant, new_sessions
from tests.unit.answering import answer

QUERY = Query(id=0, model=MODEL, messages=(), prompt_tokens=9, prompt_tokens_max=9, task="sums", tenant_id="t")
ARM = Arm(model=MODEL, strategy="best_of_n")


def answered(sessions: sessionmaker[Session], *, correct: bool) -> None:
    """Thirty queries whose samples were all right, or all wrong."""
    with sessions.begin() as session:
        batch = session.query(Batch).first() or add_batch(session, add_tenant(session))
        for _ in range(30):
            answer(session, batch, "4", verifier="numeric", task="sums", correct=correct)


def test_what_is_believed_follows_the_ledger_from_one_question_to_the_next() -> None:
    with new_sessions() as sessions:
        foresight = Foresight()
        answered(sessions, correct=True)
        with sessions() as session:
            [easy] = foresight.predictor(session).predict([QUERY], [ARM])
        answered(sessions, correct=False)
        with sessions() as session:
            later = foresight.predictor(session)

        [harder] = later.predict([QUERY], [ARM])

        assert easy.success_rate > 0.9
        assert 0.4 < harder.success_rate < 0.6
        assert harder.tokens_p50 == 5
