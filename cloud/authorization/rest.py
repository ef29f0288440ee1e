"""/api/v1/id-tokens, /id-token-groups."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query
from pydantic import AwareDatetime, BaseModel, Field

from cloud.authorization.service import Authorization, Entry
from cloud.authorization.store import Group, Token
from cloud.kernel.http import Caller, Page, Paging, Role, require
from cloud.kernel.rest import LARGEST_ID, Body

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
Operator = Annotated[Caller, Depends(require(Role.OPERATOR))]
Value = Annotated[str, Field(min_length=1, max_length=255)]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Label = Annotated[str, Field(max_length=200)]
ValuePath = Annotated[str, Path(min_length=1, max_length=255)]
Text = Annotated[str | None, Query(max_length=100)]
_MOST_AT_ONCE = 20_000


class IdTokenRequest(Body):
    value: Value
    type: str = Field("ISO14443", min_length=1, max_length=20)
    group: Name | None = None
    label: Label = ""
    blocked: bool = False
    expires_at: AwareDatetime | None = None

    def entry(self) -> Entry:
        return Entry(**self.model_dump())


class IdTokenChange(Body):
    """Fields that are left out stay as they are."""

    type: str = Field("ISO14443", min_length=1, max_length=20)
    group: Name | None = None
    label: Label = ""
    blocked: bool = False
    expires_at: AwareDatetime | None = None


class ImportRequest(Body):
    id_tokens: list[IdTokenRequest] = Field(max_length=_MOST_AT_ONCE)


class ImportView(BaseModel):
    imported: int


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
    name: Name


class GroupView(BaseModel):
    id: int
    name: str
    created_at: datetime

    @classmethod
    def of(cls, group: Group) -> GroupView:
        return cls.model_validate(group, from_attributes=True)


def router(authorization: Authorization) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["authorization"])
    _add_tokens(routes, authorization)
    _add_groups(routes, authorization)
    return routes


def _add_tokens(routes: APIRouter, authorization: Authorization) -> None:
    @routes.get("/id-tokens")
    async def list_tokens(
        caller: Viewer,
        paging: Annotated[Paging, Depends()],
        group: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None,
        blocked: bool | None = None,
        text: Text = None,
    ) -> Page[IdTokenView]:
        found = await authorization.list_tokens(
            caller,
            paging.after_int() or 0,
            paging.limit + 1,
            group=group,
            blocked=blocked,
            text=text,
        )
        return paging.page(found, IdTokenView.of, lambda token: (token.id,))

    @routes.post("/id-tokens", status_code=201)
    async def add_token(caller: Operator, request: IdTokenRequest) -> IdTokenView:
        return IdTokenView.of(await authorization.add(caller, request.entry()))

    @routes.post("/id-tokens/import")
    async def import_tokens(caller: Operator, request: ImportRequest) -> ImportView:
        entries = [token.entry() for token in request.id_tokens]
        return ImportView(imported=await authorization.put(caller, entries))

    @routes.get("/id-tokens/{value}")
    async def read_token(caller: Viewer, value: ValuePath) -> IdTokenView:
        return IdTokenView.of(await authorization.token(caller, value))

    @routes.patch("/id-tokens/{value}")
    async def change_token(
        caller: Operator, value: ValuePath, request: IdTokenChange
    ) -> IdTokenView:
        changes = request.model_dump(exclude_unset=True)
        return IdTokenView.of(await authorization.change(caller, value, changes))

    @routes.delete("/id-tokens/{value}", status_code=204)
    async def delete_token(caller: Operator, value: ValuePath) -> None:
        await authorization.delete(caller, value)


def _add_groups(routes: APIRouter, authorization: Authorization) -> None:
    @routes.get("/id-token-groups")
    async def list_groups(
        caller: Viewer, paging: Annotated[Paging, Depends()], text: Text = None
    ) -> Page[GroupView]:
        found = await authorization.list_groups(
            caller, paging.after_int() or 0, paging.limit + 1, text
        )
        return paging.page(found, GroupView.of, lambda group: (group.id,))

    @routes.post("/id-token-groups", status_code=201)
    async def add_group(caller: Operator, request: GroupRequest) -> GroupView:
        return GroupView.of(await authorization.add_group(caller, request.name))
