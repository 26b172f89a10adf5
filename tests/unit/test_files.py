"""Uploads are kept in pieces, read from any byte on, and seen by their own tenant alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from models.tables import File, FileChunk, Tenant
from scheduler.errors import Conflict, InvalidRequest, NotFound, TooLarge
from scheduler.files import (
    EXPIRES_AFTER_MIN_S,
    PIECE_BYTES,
    delete_expired,
    delete_file,
    file_content,
    file_object,
    find_file,
    list_files,
    read_chunks,
    store_upload,
)
from scheduler.intake import create_batch
from scheduler.requests import ENDPOINT
from scheduler.states import BatchState
from tests.factories import NOW, add_tenant, new_sessions


@pytest.fixture
def session() -> Iterator[Session]:
    with new_sessions() as sessions, sessions() as session:
        yield session


@pytest.fixture
def tenant(session: Session) -> Tenant:
    return add_tenant(session)


def upload(session: Session, tenant: Tenant, *chunks: bytes, filename: str = "a.jsonl", later_s: int = 0) -> File:
    now = NOW + timedelta(seconds=later_s)
    return store_upload(session, tenant.id, filename, "batch", chunks, bytes_max=10 * PIECE_BYTES, now=now)


def test_an_upload_reads_back_as_it_was_sent(session: Session, tenant: Tenant) -> None:
    content = bytes(range(256)) * 10_000

    file = upload(session, tenant, content[:7], content[7:1_500_000], content[1_500_000:])

    assert b"".join(read_chunks(session, file.id)) == content
    assert file.bytes_total == len(content)
    assert session.scalar(select(func.count()).select_from(FileChunk)) == 3


def test_a_file_can_be_read_from_any_byte_on(session: Session, tenant: Tenant) -> None:
    content = b"0123456789abcdef" * (PIECE_BYTES // 8)
    file = upload(session, tenant, content)

    for begin in (
        0,
        1,
        PIECE_BYTES - 1,
        PIECE_BYTES,
        PIECE_BYTES + 5,
        len(content) - 1,
        len(content),
        len(content) + 9,
    ):
        assert b"".join(read_chunks(session, file.id, begin)) == content[begin:]


@given(sizes=st.lists(st.integers(0, PIECE_BYTES + 3), max_size=5))
def test_however_an_upload_is_cut_its_pieces_have_one_size(sizes: list[int]) -> None:
    with new_sessions() as sessions, sessions() as session:
        file = upload(session, add_tenant(session), *(b"x" * size for size in sizes))

        pieces = session.scalars(select(func.length(FileChunk.content)).order_by(FileChunk.position)).all()

        assert sum(pieces) == sum(sizes) == file.bytes_total
        assert all(piece == PIECE_BYTES for piece in pieces[:-1])


def test_an_upload_over_the_limit_is_refused_before_it_is_read_to_its_end(session: Session, tenant: Tenant) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * PIECE_BYTES

    with pytest.raises(TooLarge, match=r"larger than 3000000 bytes; split it"):
        store_upload(session, tenant.id, "big", "batch", endless(), bytes_max=3_000_000, now=NOW)


def test_a_purpose_other_than_batch_is_refused(session: Session, tenant: Tenant) -> None:
    with pytest.raises(InvalidRequest, match=r"'fine-tune' is not supported; send purpose 'batch'"):
        store_upload(session, tenant.id, "a", "fine-tune", [b"{}"], bytes_max=10, now=NOW)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd", "../../etc/passwd"),
        ("a\0b\n\ud800.jsonl", "ab.jsonl"),
        ("x" * 999, "x" * 255),
        ("", "upload.jsonl"),
    ],
)
def test_a_filename_is_kept_to_be_shown_only(session: Session, tenant: Tenant, sent: str, kept: str) -> None:
    file = upload(session, tenant, b"{}", filename=sent)

    assert file.filename == kept


def test_another_tenants_file_is_not_there(session: Session, tenant: Tenant) -> None:
    file = upload(session, tenant, b"{}")
    other = add_tenant(session, "other")

    with pytest.raises(NotFound, match=f"no file '{file.id}'"):
        find_file(session, other.id, file.id)
    assert find_file(session, tenant.id, file.id) is file
    assert find_file(session, None, file.id) is file


def test_files_are_listed_page_by_page_newest_first(session: Session, tenant: Tenant) -> None:
    ids = [upload(session, tenant, b"{}", later_s=second // 2).id for second in range(6)]
    upload(session, add_tenant(session, "other"), b"{}")

    first, has_more = list_files(session, tenant.id, limit=4)
    rest, is_more_left = list_files(session, tenant.id, limit=4, after=first[-1].id)

    assert has_more
    assert not is_more_left
    assert {file.id for file in (*first, *rest)} == set(ids)
    assert [file.created_at for file in (*first, *rest)] == sorted(
        (f.created_at for f in (*first, *rest)), reverse=True
    )


def test_files_are_listed_oldest_first_on_request(session: Session, tenant: Tenant) -> None:
    ids = [upload(session, tenant, b"{}", later_s=second).id for second in range(3)]

    files, _ = list_files(session, tenant.id, order="asc", after=ids[0])

    assert [file.id for file in files] == ids[1:]


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"limit": 10_001}, {"order": "up"}])
def test_a_page_that_cannot_be_is_refused(session: Session, tenant: Tenant, wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest, match=next(iter(wrong))):
        list_files(session, tenant.id, **wrong)  # type: ignore[arg-type]


def test_a_deleted_file_is_gone_with_its_bytes(session: Session, tenant: Tenant) -> None:
    file = upload(session, tenant, b"{}")

    delete_file(session, tenant.id, file.id, NOW)

    session.expire_all()
    with pytest.raises(NotFound):
        find_file(session, tenant.id, file.id)
    assert list_files(session, tenant.id) == ([], False)
    assert session.scalar(select(func.count()).select_from(FileChunk)) == 0


def test_a_file_that_a_batch_still_reads_cannot_be_deleted(session: Session, tenant: Tenant) -> None:
    file = upload(session, tenant, b"{}")
    batch = create_batch(session, tenant.id, input_file_id=file.id, endpoint=ENDPOINT, now=NOW)

    with pytest.raises(Conflict, match=f"Batch {batch.id} is still being read"):
        delete_file(session, tenant.id, file.id, NOW)


def test_a_file_has_openais_shape(session: Session, tenant: Tenant) -> None:
    file = upload(session, tenant, b"12345", filename="sums.jsonl")

    assert file_object(session, file) == {
        "id": file.id,
        "object": "file",
        "bytes": 5,
        "created_at": int(NOW.timestamp()),
        "expires_at": None,
        "filename": "sums.jsonl",
        "purpose": "batch",
        "status": "processed",
        "status_details": None,
    }


def test_a_batchs_output_and_error_file_can_be_read_from_the_start(session: Session, tenant: Tenant) -> None:
    file = upload(session, tenant, b"{}")
    batch = create_batch(session, tenant.id, input_file_id=file.id, endpoint=ENDPOINT, now=NOW)

    for file_id in (batch.output_file_id, batch.error_file_id):
        view = find_file(session, tenant.id, file_id or "")

        assert view.purpose == "batch_output"
        assert b"".join(file_content(session, view)) == b""
        assert file_object(session, view)["bytes"] == 0


def test_a_file_is_forgotten_when_its_time_is_up_and_not_before(session: Session, tenant: Tenant) -> None:
    file = store_upload(
        session, tenant.id, "a", "batch", [b"{}"], bytes_max=10, now=NOW, expires_after_s=EXPIRES_AFTER_MIN_S
    )
    ends_at = NOW + timedelta(seconds=EXPIRES_AFTER_MIN_S)

    early = delete_expired(session, ends_at - timedelta(seconds=1))
    kept = list(read_chunks(session, file.id))
    late = delete_expired(session, ends_at)

    session.expire_all()
    assert (early, kept, late) == (0, [b"{}"], 1)
    with pytest.raises(NotFound):
        find_file(session, tenant.id, file.id)


def test_a_file_that_is_still_being_read_outlives_its_time(session: Session, tenant: Tenant) -> None:
    file = store_upload(session, tenant.id, "a", "batch", [b"{}"], bytes_max=10, now=NOW, expires_after_s=3600)
    batch = create_batch(session, tenant.id, input_file_id=file.id, endpoint=ENDPOINT, now=NOW)
    later = NOW + timedelta(days=1)

    during = delete_expired(session, later)
    batch.state = BatchState.FAILED
    session.flush()

    assert (during, delete_expired(session, later)) == (0, 1)
