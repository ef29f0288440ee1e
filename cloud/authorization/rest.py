"""/api/v1/id-tokens, /id-token-groups."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from cloud.authorization import store
from cloud.authorization.service import Authorization
from cloud.authorization.store import Group, Token
from cloud.kernel.etags import ETAG_RESPONSES, IfMatch, IfNoneMatch, version_of
from cloud.kernel.http import Caller, Role, require
from cloud.kernel.imports import Importing, ImportReport, RowReport, import_body
from cloud.kernel.lists import LIST_RESPONSES, Listing, listing
from cloud.kernel.paging import Page
from cloud.kernel.rest import LARGEST_ID, Body, Flag, Moment, example

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
Operator = Annotated[Caller, Depends(require(Role.OPERATOR))]
Value = Annotated[
    str, Field(min_length=1, max_length=255, description="as the card says; any case is the same")
]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Kind = Annotated[str, Field(min_length=1, max_length=20, description="OCPP's IdTokenEnumType")]
Label = Annotated[str, Field(max_length=200)]
GroupName = Annotated[str | None, Field(min_length=1, max_length=100)]
ValuePath = Annotated[str, Path(min_length=1, max_length=255)]
GroupPath = Annotated[int, Path(ge=1, le=LARGEST_ID)]
Text = Annotated[str | None, Query(max_length=100, description="part of value or label")]


class IdTokenRequest(Body):
    model_config = example(value="04A2B3C4D5E6F7", label="Aziza", expires_at="2030-01-01T00:00:00Z")

    value: Value
    type: Kind = "ISO14443"
    group: GroupName = None
    label: Label = ""
    blocked: Flag = False
    expires_at: Moment | None = None


_SPELLED = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _spelled(value: Any) -> bool:
    """A boolean, or how a cell of a sheet spells it."""
    found = value if isinstance(value, bool) else _SPELLED.get(str(value).lower())
    if found is None or not isinstance(value, bool | str):
        raise ValueError("write true or false")
    return found


class IdTokenRow(IdTokenRequest):
    """A row of an import; in a CSV everything is text."""

    blocked: Annotated[
        bool,
        BeforeValidator(_spelled),
        WithJsonSchema({"anyOf": [{"type": "boolean"}, {"enum": list(_SPELLED)}]}),
    ] = False


class IdTokenChange(Body):
    """Fields that are left out stay as they are."""

    model_config = example(blocked=True)

    type: Kind = "ISO14443"
    group: GroupName = None
    label: Label = ""
    blocked: Flag = False
    expires_at: Moment | None = None


class IdTokenView(BaseModel):
    value: str
    type: str
    group: str | None
    label: str
    blocked: bool
    expires_at: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, token: Token) -> IdTokenView:
        return cls(
            value=token.value,
            type=token.type,
            group=token.group_name,
            label=token.label,
            blocked=token.blocked,
            expires_at=token.expires_at,
            created_at=token.created_at,
        )


class GroupRequest(Body):
    model_config = example(name="fleet")

    name: Name


class GroupView(BaseModel):
    id: int
    name: str
    created_at: datetime

    @classmethod
    def of(cls, group: Group) -> GroupView:
        return cls.model_validate(group, from_attributes=True)


def router(authorization: Authorization) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["id tokens"])
    _add_token_lists(routes, authorization)
    _add_tokens(routes, authorization)
    _add_groups(routes, authorization)
    return routes


def _add_token_lists(routes: APIRouter, authorization: Authorization) -> None:
    @routes.get("/id-tokens", responses=LIST_RESPONSES)
    async def list_tokens(
        caller: Viewer,
        listing: Annotated[Listing, Depends(listing(store.TOKENS))],
        group: Annotated[int | None, Query(ge=1, le=LARGEST_ID, description="its number")] = None,
        type: Annotated[str | None, Query(max_length=20)] = None,  # noqa: A002  # the query parameter's name
        blocked: bool | None = None,
        expired: bool | None = None,
        text: Text = None,
    ) -> Page[IdTokenView]:
        found = await authorization.list_tokens(
            caller,
            listing.part,
            group=group,
            type=type,
            blocked=blocked,
            expired=expired,
            text=text,
        )
        return listing.answer(found, IdTokenView, IdTokenView.of)

    @routes.post("/id-tokens", status_code=201)
    async def add_token(caller: Operator, request: IdTokenRequest) -> IdTokenView:
        given = request.model_dump(exclude={"value"})
        return IdTokenView.of(await authorization.add(caller, request.value, given))

    @routes.post(
        "/id-tokens/import",
        openapi_extra=import_body(IdTokenRow, "id_tokens"),
        responses=LIST_RESPONSES,
    )
    async def import_tokens(
        caller: Operator, importing: Annotated[Importing, Depends()]
    ) -> ImportReport[RowReport]:
        """Enter or change many tokens; what a row leaves out stays as it is."""
        read = await importing.read(IdTokenRow, "id_tokens", lambda row: row.value.lower())
        report = await authorization.import_tokens(caller, importing, read)
        answer: Any = importing.answer(report, RowReport)
        return answer  # type: ignore[no-any-return]  # a Response where CSV is wanted


def _add_tokens(routes: APIRouter, authorization: Authorization) -> None:
    @routes.get("/id-tokens/{value:path}", responses=ETAG_RESPONSES)
    async def read_token(caller: Viewer, value: ValuePath, tagged: IfNoneMatch) -> IdTokenView:
        found = await authorization.token(caller, value)
        return tagged.answer(IdTokenView.of(found), version_of(found))

    @routes.patch("/id-tokens/{value:path}")
    async def change_token(
        caller: Operator,
        value: ValuePath,
        request: IdTokenChange,
        expected: IfMatch,
    ) -> IdTokenView:
        changes = request.model_dump(exclude_unset=True)
        changed = await authorization.change(caller, value, changes, expected)
        return expected.answer(IdTokenView.of(changed), version_of(changed))

    @routes.delete("/id-tokens/{value:path}", status_code=204)
    async def delete_token(caller: Operator, value: ValuePath, expected: IfMatch) -> None:
        await authorization.delete(caller, value, expected)


def _add_groups(routes: APIRouter, authorization: Authorization) -> None:
    @routes.get("/id-token-groups", responses=LIST_RESPONSES)
    async def list_groups(
        caller: Viewer,
        listing: Annotated[Listing, Depends(listing(store.GROUPS))],
        text: Annotated[str | None, Query(max_length=100, description="part of its name")] = None,
    ) -> Page[GroupView]:
        found = await authorization.list_groups(caller, listing.part, text)
        return listing.answer(found, GroupView, GroupView.of)

    @routes.post("/id-token-groups", status_code=201)
    async def add_group(caller: Operator, request: GroupRequest) -> GroupView:
        return GroupView.of(await authorization.add_group(caller, request.name))

    @routes.get("/id-token-groups/{group}", responses=ETAG_RESPONSES)
    async def read_group(caller: Viewer, group: GroupPath, tagged: IfNoneMatch) -> GroupView:
        found = await authorization.group(caller, group)
        return tagged.answer(GroupView.of(found), version_of(found))

    @routes.patch("/id-token-groups/{group}")
    async def rename_group(
        caller: Operator,
        group: GroupPath,
        request: GroupRequest,
        expected: IfMatch,
    ) -> GroupView:
        renamed = await authorization.rename_group(caller, group, request.name, expected)
        return expected.answer(GroupView.of(renamed), version_of(renamed))

    @routes.delete("/id-token-groups/{group}", status_code=204)
    async def delete_group(caller: Operator, group: GroupPath, expected: IfMatch) -> None:
        await authorization.delete_group(caller, group, expected)
