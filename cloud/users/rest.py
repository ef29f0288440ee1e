"""/api/v1/api-keys, /users, /me, /login."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, Field

from cloud.kernel.etags import ETAG_RESPONSES, IfMatch, IfNoneMatch, version_of
from cloud.kernel.http import Caller, Role, require
from cloud.kernel.lists import LIST_RESPONSES, Listing, listing
from cloud.kernel.paging import Page
from cloud.kernel.rest import LARGEST_ID, Body, Flag, Moment, example
from cloud.users import store
from cloud.users.service import NewKey, Users, key_version
from cloud.users.store import ApiKey, Person

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
Admin = Annotated[Caller, Depends(require(Role.ADMIN))]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Id = Annotated[int, Path(ge=1, le=LARGEST_ID)]
Text = Annotated[str | None, Query(max_length=100, description="part of its name")]
Password = Annotated[str, Field(min_length=10, max_length=200, examples=["ten characters or more"])]


class Language(StrEnum):
    """What a person is written to in."""

    UZ = "uz"
    RU = "ru"
    EN = "en"
    DE = "de"


class ApiKeyRequest(Body):
    model_config = example(name="grafana", role="viewer", expires_at="2030-01-01T00:00:00Z")

    name: Name
    role: Role
    user: int | None = Field(
        None, ge=1, le=LARGEST_ID, description="whose own it is: it may do no more than they may"
    )
    expires_at: Moment | None = None


class ApiKeyView(BaseModel):
    id: int
    name: str
    role: Role
    user: int | None
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="to the minute")

    @classmethod
    def of(cls, key: ApiKey) -> ApiKeyView:
        return cls(**{**asdict(key), "user": key.person_id})


class NewApiKeyView(ApiKeyView):
    key: str = Field(description="the key itself, shown only now")

    @classmethod
    def of_new(cls, made: NewKey) -> NewApiKeyView:
        return cls(**ApiKeyView.of(made.key).model_dump(), key=made.secret)


class UserRequest(Body):
    name: Name
    role: Role
    password: Password
    language: Language = Language.EN


class UserChange(Body):
    """Fields that are left out stay as they are."""

    model_config = example(language="ru")

    name: Name = ""
    role: Role = Role.VIEWER
    password: Password = ""
    language: Language = Language.EN
    disabled: Flag = False


class UserView(BaseModel):
    id: int
    name: str
    role: Role
    language: Language
    created_at: datetime
    disabled: bool
    disabled_at: datetime | None

    @classmethod
    def of(cls, person: Person) -> UserView:
        disabled = person.disabled_at is not None
        return cls(**{**asdict(person), "disabled": disabled})


class MyselfView(BaseModel):
    id: int
    name: str
    language: Language


class MeView(BaseModel):
    tenant: int
    subject: str
    role: Role
    user: MyselfView | None = Field(description="null for a key that is nobody's own")


class LoginRequest(Body):
    name: Name
    password: str = Field(min_length=1, max_length=200)


class LoginView(BaseModel):
    key: str = Field(description="send as `Authorization: Bearer`")
    expires_at: datetime | None


def router(users: Users) -> APIRouter:
    routes = APIRouter(prefix="/api/v1", tags=["users"])
    _add_logins(routes, users)
    _add_keys(routes, users)
    _add_users(routes, users)
    return routes


def _add_logins(routes: APIRouter, users: Users) -> None:
    @routes.get("/me")
    async def me(caller: Viewer) -> MeView:
        person = await users.myself(caller)
        shown = MyselfView.model_validate(person, from_attributes=True) if person else None
        return MeView(tenant=caller.tenant_id, subject=caller.subject, role=caller.role, user=shown)

    @routes.post("/login")
    async def login(http: Request, request: LoginRequest) -> LoginView:
        asker = http.client.host if http.client else "?"
        made = await users.login(asker, request.name, request.password)
        return LoginView(key=made.secret, expires_at=made.key.expires_at)


def _add_keys(routes: APIRouter, users: Users) -> None:
    @routes.get("/api-keys", responses=LIST_RESPONSES)
    async def list_keys(
        caller: Admin,
        listing: Annotated[Listing, Depends(listing(store.KEYS))],
        role: Role | None = None,
        user: Annotated[int | None, Query(ge=1, le=LARGEST_ID)] = None,
        active: Annotated[bool, Query(description="neither revoked nor expired")] = False,
        text: Text = None,
    ) -> Page[ApiKeyView]:
        found = await users.list_keys(
            caller, listing.part, active=active, role=role, person=user, text=text
        )
        return listing.answer(found, ApiKeyView, ApiKeyView.of)

    @routes.post("/api-keys", status_code=201)
    async def create_key(caller: Admin, request: ApiKeyRequest) -> NewApiKeyView:
        made = await users.create_key(
            caller, request.name, request.role, request.expires_at, request.user
        )
        return NewApiKeyView.of_new(made)

    @routes.get("/api-keys/{key_id}", responses=ETAG_RESPONSES)
    async def read_key(caller: Admin, key_id: Id, tagged: IfNoneMatch) -> ApiKeyView:
        found = await users.key(caller, key_id)
        return tagged.answer(
            ApiKeyView.of(found), key_version(found), version_of(found.last_used_at)
        )

    @routes.delete("/api-keys/{key_id}")
    async def revoke_key(caller: Admin, key_id: Id, expected: IfMatch) -> ApiKeyView:
        """The key holds no more, from its next request on."""
        return ApiKeyView.of(await users.revoke_key(caller, key_id, expected))


def _add_users(routes: APIRouter, users: Users) -> None:
    @routes.get("/users", responses=LIST_RESPONSES)
    async def list_users(
        caller: Admin,
        listing: Annotated[Listing, Depends(listing(store.PERSONS))],
        role: Role | None = None,
        disabled: bool | None = None,
        text: Text = None,
    ) -> Page[UserView]:
        found = await users.list_users(
            caller, listing.part, role=role, disabled=disabled, text=text
        )
        return listing.answer(found, UserView, UserView.of)

    @routes.post("/users", status_code=201)
    async def create_user(caller: Admin, request: UserRequest) -> UserView:
        return UserView.of(await users.create_user(caller, request.model_dump()))

    @routes.get("/users/{user_id}", responses=ETAG_RESPONSES)
    async def read_user(caller: Admin, user_id: Id, tagged: IfNoneMatch) -> UserView:
        found = await users.user(caller, user_id)
        return tagged.answer(UserView.of(found), version_of(found))

    @routes.patch("/users/{user_id}")
    async def change_user(
        caller: Admin,
        user_id: Id,
        request: UserChange,
        expected: IfMatch,
    ) -> UserView:
        """A new password, or disabling, ends the user's sessions."""
        changes = request.model_dump(exclude_unset=True)
        changed = await users.change_user(caller, user_id, changes, expected)
        return expected.answer(UserView.of(changed), version_of(changed))

    @routes.delete("/users/{user_id}", status_code=204)
    async def erase_user(caller: Admin, user_id: Id, expected: IfMatch) -> None:
        """Erase the person with their keys and sessions, for good."""
        await users.erase_user(caller, user_id, expected)
