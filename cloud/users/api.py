"""What neighbours may know of users: its errors."""

from __future__ import annotations

from cloud.kernel.errors import KarvonError, Kind


class ApiKeyNotFound(KarvonError):
    kind = Kind.NOT_FOUND
    code = "api_key.not_found"


class UserNotFound(KarvonError):
    kind = Kind.NOT_FOUND
    code = "user.not_found"


class UserExists(KarvonError):
    kind = Kind.CONFLICT
    code = "user.exists"


class LoginRefused(KarvonError):
    kind = Kind.UNAUTHORIZED
    code = "login.refused"


class LoginTooOften(KarvonError):
    kind = Kind.RATE_LIMITED
    code = "login.too_often"


class TenantNotFound(KarvonError):
    kind = Kind.NOT_FOUND
    code = "tenant.not_found"


class TenantExists(KarvonError):
    kind = Kind.CONFLICT
    code = "tenant.exists"
