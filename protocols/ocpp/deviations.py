"""What stations do against the specification, by name and in words for talks with their maker.

A deviation is told, counted and shown; it never stops a message that can be understood.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_LONGEST_QUOTE: Final = 120

DEVIATIONS: Final[dict[str, str]] = {
    # the frame
    "byte_order_mark": "begins its messages with a byte order mark",
    "trailing_bytes": "ends its messages with zero bytes",
    "invalid_utf8": "sends bytes that are no text in UTF-8",
    "zero_in_text": "sends the character zero in texts; U+FFFD is taken for it",
    "numeric_message_id": "numbers its messages where a text is due",
    "long_message_id": "uses message ids of more than 36 characters",
    "missing_payload": "leaves out the payload of a message",
    "payload_not_object": "sends null or an empty list for an empty payload",
    "missing_error_text": "leaves out parts of an error answer",
    "surplus_elements": "adds elements to an answer",
    "pipelined_call": "does not wait for an answer before its next request",
    "repeated_call": "repeats a request under the same message id",
    "unasked_answer": "answers what was not asked",
    "late_answer": "answers after the time for it has passed",
    "unreadable_frame": "sends what is no OCPP message",
    "unknown_message_type": "uses a message type that its OCPP version does not have",
    # the action and its fields
    "action_case": "spells the name of a request its own way",
    "field_case": "spells the name of a field its own way",
    "unknown_field": "sends a field that does not exist; it is dropped",
    "null_for_absent": "sends null for a field that is absent",
    "null_in_list": "sends null as an item of a list; it is dropped",
    "missing_field": "leaves out a required field; a neutral value is taken",
    "object_for_list": "sends one item where a list is due",
    "list_for_object": "sends a list of one where its item is due",
    "empty_text": "sends an empty text for a value that is absent",
    "empty_list": "sends an empty list where one item is due",
    "too_many_items": "sends more items than a list may have",
    # texts, numbers, enumerations
    "number_for_text": "sends a number or a boolean where a text is due",
    "object_for_text": "sends an object as its data where a text is due; it is kept as JSON",
    "text_too_long": "sends a longer text than allowed; it is kept whole",
    "text_for_number": "sends a text where a number is due",
    "decimal_for_integer": "writes a whole number with decimals",
    "fraction_rounded": "sends fractions of a watt-hour where whole ones are due; rounded",
    "value_for_boolean": "sends a text or a number where true or false is due",
    "enum_case": "spells a value of an enumeration in another case or with other separators",
    "enum_alias": "uses another name for a value of an enumeration",
    "unknown_qualifier": "uses a unit, measurand or other qualifier that does not exist; kept raw",
    "unknown_reason": "uses a reason or error code that does not exist; taken as other",
    "sample_dropped": "sends a meter value that cannot be read; it is dropped",
    # times
    "naive_timestamp": "sends times without a zone",
    "timestamp_form": "writes times in a form of its own",
    "epoch_timestamp": "sends times as a number of seconds or milliseconds since 1970",
    "empty_timestamp": "sends an empty text for an absent time",
    "missing_timestamp": "leaves out the time of a message; the time of receipt is taken",
    "unreadable_timestamp": "sends a time that is none; the time of receipt is taken",
}
"""What a station with this deviation does: "this station …"."""


class Deviation(NamedTuple):
    """One deviation of one message."""

    name: str
    """A key of DEVIATIONS."""
    path: str
    """A JSON pointer to the first place; empty for the message itself."""
    text: str
    """What was found there, and what it was taken for."""


def quoted(text: str) -> str:
    """One line, of bounded length, whatever a station wrote."""
    plain = "".join(c if c.isprintable() else "�" for c in text[:_LONGEST_QUOTE])
    return plain if len(text) <= _LONGEST_QUOTE else f"{plain}…"
