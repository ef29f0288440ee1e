"""What neighbours may know of transactions: its errors."""

from __future__ import annotations

from cloud.kernel.errors import KarvonError, Kind


class TransactionNotFound(KarvonError):
    kind = Kind.NOT_FOUND
    code = "transaction.not_found"


class TransactionOver(KarvonError):
    kind = Kind.CONFLICT
    code = "transaction.over"


class IdTokenRefused(KarvonError):
    kind = Kind.CONFLICT
    code = "id_token.refused"
