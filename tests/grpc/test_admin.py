"""The admin API over gRPC: the same operations, the same audit log."""

from datetime import timedelta
from typing import Any

import grpc
import pytest
from forebay.grpc.v1 import admin_pb2 as pb
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from tests.support.grpc_calls import ADMIN, Told, ask, chat
from tests.support.processes import Gateway, Key
from tests.support.wait import until

Ask = Any


@pytest.fixture(scope="module")
def root(gateway: Gateway) -> Key:
    """An admin key."""
    key = gateway.new_key(kind="admin", account="ops")
    until(lambda: gateway.call("/admin/v1/keys", key=key.secret).status == 200, "the key")
    return key


@pytest.fixture
def admin(opened: grpc.Channel, root: Key) -> Ask:
    """Calls a method with the admin key."""

    def call(name: str, request: Any, **options: Any) -> Told:
        return ask(opened, name, request, key=root.secret, service=ADMIN, **options)

    return call


def test_a_keys_life(gateway: Gateway, opened: grpc.Channel, admin: Ask, root: Key) -> None:
    limits = pb.Limits(rpm=60)
    made = admin(
        "CreateKey",
        pb.CreateKeyRequest(
            name="grpc", account="acme", limits=limits, models=pb.ModelList(names=["sim"])
        ),
        metadata=[("x-request-id", "grpc-create")],
    )
    secret, key = made.only.secret, made.only.key
    assert made.initial["x-request-id"] == "grpc-create"
    assert secret.startswith("fb-")
    assert (key.kind, key.account, key.name) == (pb.KEY_KIND_INFERENCE, "acme", "grpc")
    assert key.limits == pb.Limits(rpm=60, rpm_burst=10, on_store_loss=pb.ON_STORE_LOSS_SHARE)
    assert key.priority == pb.PRIORITY_INTERACTIVE
    assert list(key.models.names) == ["sim"]
    assert key.create_time.seconds > 1_700_000_000
    assert not key.HasField("expire_time")

    over_http = gateway.call(f"/admin/v1/keys/{key.id}", key=root.secret).json()
    assert (over_http["rpm"], over_http["budget"], over_http["models"]) == (60, None, ["sim"])
    until(
        lambda: (
            ask(opened, "ChatCompletion", chat("sim", max_tokens=1), key=secret).code
            is grpc.StatusCode.OK
        ),
        "the key is known",
    )

    limits = pb.Limits(budget="12.50", budget_period=pb.BUDGET_PERIOD_MONTH)
    wanted = pb.Key(id=key.id, name="renamed", limits=limits)
    mask = FieldMask(paths=["name", "limits.budget", "limits.budget_period", "models"])
    changed = admin("UpdateKey", pb.UpdateKeyRequest(key=wanted, update_mask=mask)).only
    assert (changed.name, changed.limits.budget) == ("renamed", "12.50")
    assert changed.limits.rpm == 60, "what the mask does not name stays"
    assert not changed.HasField("models")

    assert admin("GetKey", pb.GetKeyRequest(id=key.id)).only == changed
    overlap = Duration()
    overlap.FromTimedelta(timedelta(hours=1))
    rotated = admin("RotateKey", pb.RotateKeyRequest(id=key.id, overlap=overlap)).only
    assert rotated.secret != secret
    assert rotated.key.HasField("previous_expire_time")
    assert admin("RevokeKey", pb.RevokeKeyRequest(id=key.id)).only.revoked
    assert admin("GetKey", pb.GetKeyRequest(id=key.id)).only.revoked

    entries = gateway.call(f"/admin/v1/audit?subject_id={key.id}", key=root.secret)
    if entries.status != 200:
        entries = gateway.call("/admin/v1/audit", key=root.secret)
    found = [entry for entry in entries.json()["data"] if key.id in str(entry)]
    assert {entry["actor"] for entry in found} == {f"key:{root.id}"}
    assert any(entry["request_id"] == "grpc-create" for entry in found)
    assert all(entry["remote"] == "127.0.0.1" for entry in found)


def test_keys_in_pages(admin: Ask, gateway: Gateway) -> None:
    ids = [gateway.new_key(account="paged").id for _ in range(3)]
    request = pb.ListKeysRequest(account="paged", page_size=2)
    first = admin("ListKeys", request).only
    assert [key.id for key in first.keys] == ids[:2]
    request.page_token = first.next_page_token
    second = admin("ListKeys", request).only
    assert [key.id for key in second.keys] == ids[2:]
    assert not second.HasField("next_page_token")


def test_usage(admin: Ask, opened: grpc.Channel, gateway: Gateway) -> None:
    key = gateway.key(account="metered")
    assert ask(opened, "ChatCompletion", chat("sim", max_tokens=2), key=key.secret).only

    def rows() -> Any:
        request = pb.QueryUsageRequest(group=pb.USAGE_GROUP_ACCOUNT, account="metered")
        return admin("QueryUsage", request).only.rows

    (row,) = until(rows, "the usage is summed")
    assert (row.group, row.requests, row.completion_tokens) == ("metered", 1, 2)
    assert row.cost


def test_upstreams(admin: Ask) -> None:
    found = admin("ListUpstreams", pb.ListUpstreamsRequest()).only
    names = [upstream.name for upstream in found.upstreams]
    assert names == sorted(names)
    assert {"raw", "sim"} <= set(names)
    page = admin("ListUpstreams", pb.ListUpstreamsRequest(page_size=1)).only
    assert [upstream.name for upstream in page.upstreams] == names[:1]
    assert page.next_page_token == names[0]
    one = admin("GetUpstream", pb.GetUpstreamRequest(name="flaky")).only
    assert (one.name, one.kind, one.draining) == ("flaky", "sglang", False)
    drained = admin("DrainUpstream", pb.DrainUpstreamRequest(name="flaky")).only
    assert (drained.draining, drained.availability) == (True, "draining")
    assert not admin("UndrainUpstream", pb.UndrainUpstreamRequest(name="flaky")).only.draining
    missing = admin("GetUpstream", pb.GetUpstreamRequest(name="nope"))
    assert missing.brief == ("NOT_FOUND", "NOT_FOUND", "upstream_not_found")


@pytest.mark.parametrize(
    ("name", "request_", "field"),
    [
        ("CreateKey", pb.CreateKeyRequest(name="x", limits=pb.Limits(rpm=-1)), "limits.rpm"),
        ("CreateKey", pb.CreateKeyRequest(name="x", kind=99), "kind"),  # type: ignore[arg-type]
        ("ListKeys", pb.ListKeysRequest(page_size=5000), "page_size"),
        ("ListKeys", pb.ListKeysRequest(page_token="nosuchkey000"), "page_token"),
        ("QueryUsage", pb.QueryUsageRequest(since=Duration(seconds=-5)), "since"),
        ("UpdateKey", pb.UpdateKeyRequest(key=pb.Key(id="x")), "update_mask"),
        (
            "UpdateKey",
            pb.UpdateKeyRequest(key=pb.Key(id="x"), update_mask=FieldMask(paths=["last4"])),
            "update_mask",
        ),
        ("ListUpstreams", pb.ListUpstreamsRequest(page_size=-1), "page_size"),
    ],
)
def test_bad_fields_are_named(admin: Ask, name: str, request_: Any, field: str) -> None:
    told = admin(name, request_)
    assert told.code is grpc.StatusCode.INVALID_ARGUMENT, told
    assert told.detail("BadRequest").field_violations[0].field == field
    assert f"'{field}'" in told.message or field == "page_token"


def test_a_key_that_is_not_there(admin: Ask) -> None:
    told = admin("GetKey", pb.GetKeyRequest(id="nosuchkey000"))
    assert told.brief == ("NOT_FOUND", "NOT_FOUND", "key_not_found")


def test_only_admin_keys(opened: grpc.Channel, key: Key) -> None:
    request = pb.ListKeysRequest()
    told = ask(opened, "ListKeys", request, key=key.secret, service=ADMIN)
    assert told.brief[:2] == ("PERMISSION_DENIED", "FORBIDDEN")
    told = ask(opened, "ListKeys", request, service=ADMIN)
    assert told.brief[:2] == ("UNAUTHENTICATED", "UNAUTHENTICATED")


def test_admin_keys_ask_no_model(opened: grpc.Channel, root: Key) -> None:
    told = ask(opened, "ChatCompletion", chat(), key=root.secret)
    assert told.brief[:2] == ("PERMISSION_DENIED", "FORBIDDEN")
