"""/api/v1/api-keys, /users, /me, /login."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import AwareDatetime, BaseModel, Field

from cloud.kernel.http import Caller, Page, Paging, Role, require
from cloud.kernel.rest import Body
from cloud.users.service import NewKey, Users
from cloud.users.store import ApiKey, Person

Viewer = Annotated[Caller, Depends(require(Role.VIEWER))]
Admin = Annotated[Caller, Depends(require(Role.ADMIN))]
Name = Annotated[str, Field(min_length=1, max_length=100)]
Password = Annotated[str, Field(min_length=10, max_length=200)]


class ApiKeyRequest(Body):
    name: Name
    role: Role
    expires_at: AwareDatetime | None = None


class ApiKeyView(BaseModel):
    id: int
    name: str
    role: Role
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="to the minute")

    @classmethod
    def of(cls, key: ApiKey) -> ApiKeyView:
        return cls.model_validate(key, from_attributes=True)


class NewApiKeyView(ApiKeyView):
    key: str = Field(description="the key itself, shown only now")

    @classmethod
    def of_new(cls, made: NewKey) -> NewApiKeyView:
        return cls(**ApiKeyView.of(made.key).model_dump(), key=made.secret)


class UserRequest(Body):
    name: Name
    role: Role
    password: Password


class UserChange(Body):
    role: Role | None = None
    password: Password | None = None
    disabled: bool | None = None


class UserView(BaseModel):
    id: int
    name: str
    role: Role
    created_at: datetime
    disabled_at: datetime | None

    @classmethod
    def of(cls, person: Person) -> UserView:
        return cls.model_validate(person, from_attributes=True)


class MeView(BaseModel):
    tenant: int
    subject: str
    role: Role


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
        return MeView(tenant=caller.tenant_id, subject=caller.subject, role=caller.role)

    @routes.post("/login")
    async def login(http: Request, request: LoginRequest) -> LoginView:
        asker = http.client.host if http.client else "?"
        made = await users.login(asker, request.name, request.password)
        return LoginView(key=made.secret, expires_at=made.key.expires_at)


def _add_keys(routes: APIRouter, users: Users) -> None:
    @routes.get("/api-keys")
    async def list_keys(
        caller: Admin,
        paging: Annotated[Paging, Depends()],
        role: Role | None = None,
        active: bool = False,
    ) -> Page[ApiKeyView]:
        after = paging.after_int() or 0
        found = await users.list_keys(caller, after, paging.limit + 1, role, active=active)
        return paging.page(found, ApiKeyView.of, lambda key: (key.id,))

    @routes.post("/api-keys", status_code=201)
    async def create_key(caller: Admin, request: ApiKeyRequest) -> NewApiKeyView:
        made = await users.create_key(caller, request.name, request.role, request.expires_at)
        return NewApiKeyView.of_new(made)

    @routes.delete("/api-keys/{key_id}")
    async def revoke_key(caller: Admin, key_id: int) -> ApiKeyView:
        return ApiKeyView.of(await users.revoke_key(caller, key_id))


def _add_users(routes: APIRouter, users: Users) -> None:
    @routes.get("/users")
    async def list_users(
        caller: Admin, paging: Annotated[Paging, Depends()], role: Role | None = None
    ) -> Page[UserView]:
        after = paging.after_int() or 0
        found = await users.list_users(caller, after, paging.limit + 1, role)
        return paging.page(found, UserView.of, lambda person: (person.id,))

    @routes.post("/users", status_code=201)
    async def create_user(caller: Admin, request: UserRequest) -> UserView:
        made = await users.create_user(caller, request.name, request.role, request.password)
        return UserView.of(made)

    @routes.patch("/users/{user_id}")
    async def change_user(caller: Admin, user_id: int, request: UserChange) -> UserView:
        changed = await users.change_user(
            caller,
            user_id,
            role=request.role,
            password=request.password,
            disabled=request.disabled,
        )
        return UserView.of(changed)
