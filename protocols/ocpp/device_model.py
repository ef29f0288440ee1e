"""The device model of OCPP 2.x (2.0.1 Part 1, 4; B05 to B08): what is told and asked of it.

Names compare without regard to case; a secret's value is never kept, whoever says it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from protocols.ocpp.dialect import Outcome, done
from protocols.ocpp.messages import Variable


def reported(data: Iterable[dict[str, Any]]) -> Iterable[Variable]:
    for one in data:
        for attribute in one["variableAttribute"]:
            yield _variable(
                one,
                attribute.get("type"),
                attribute.get("value"),
                mutability=attribute.get("mutability", "ReadWrite"),
                characteristics=one.get("variableCharacteristics", {}),
            )


_SECRET: Final = ("securityctrlr", "basicauthpassword")


def _variable(
    told: Mapping[str, Any], kind: str | None, value: str | None, **more: Any
) -> Variable:
    component, variable = told["component"], told["variable"]
    evse = component.get("evse") or {}
    if (component["name"].lower(), variable["name"].lower()) == _SECRET:
        value, more["mutability"] = None, "WriteOnly"
    return Variable(
        component=component["name"],
        component_instance=component.get("instance") or "",
        variable=variable["name"],
        variable_instance=variable.get("instance") or "",
        evse=evse.get("id"),
        connector=evse.get("connectorId"),
        attribute=kind or "Actual",
        value=value,
        **more,
    )


_OF_VARIABLES: Final = frozenset({"GetVariables", "SetVariables"})


def outcome(action: str, request: Mapping[str, Any], results: list[dict[str, Any]]) -> Outcome:
    """Of an answer that has a result for each item: consent is that of all."""
    texts, variables, accepted = [], [], True
    wanted = {_key(one): one["attributeValue"] for one in request.get("setVariableData") or ()}
    for one in results:
        status = one.get("attributeStatus") or one.get("status") or ""
        accepted = accepted and done(status)
        if status != "Accepted":
            texts.append(_text(one, status))
        if done(status) and action in _OF_VARIABLES:
            value = one.get("attributeValue")
            value = wanted.get(_key(one)) if value is None else value
            variables.append(_variable(one, one.get("attributeType"), value))
    return Outcome(accepted=accepted, text="; ".join(texts), variables=tuple(variables))


def asked(variables: Iterable[Variable]) -> dict[str, Any]:
    """GetVariablesRequest (B06)."""
    wanted = [_named(one) | {"attributeType": one.attribute} for one in variables]
    return {"getVariableData": wanted}


def changed(variables: Iterable[Variable]) -> dict[str, Any]:
    """SetVariablesRequest (B05)."""
    wanted = [
        _named(one) | {"attributeType": one.attribute, "attributeValue": one.value or ""}
        for one in variables
    ]
    return {"setVariableData": wanted}


def _named(one: Variable) -> dict[str, Any]:
    component: dict[str, Any] = {"name": one.component}
    if one.component_instance:
        component["instance"] = one.component_instance
    if one.evse is not None:
        component["evse"] = {"id": one.evse}
        if one.connector is not None:
            component["evse"]["connectorId"] = one.connector
    variable = {"name": one.variable}
    if one.variable_instance:
        variable["instance"] = one.variable_instance
    return {"component": component, "variable": variable}


def _key(one: Mapping[str, Any]) -> tuple[object, ...]:
    """Names compare without regard to case (2.0.1 Part 1, 4)."""
    component, variable = one["component"], one["variable"]
    evse = component.get("evse") or {}
    names = (
        component["name"],
        component.get("instance") or "",
        variable["name"],
        variable.get("instance") or "",
        one.get("attributeType") or "Actual",
    )
    return (*(name.lower() for name in names), evse.get("id"), evse.get("connectorId"))


def _text(one: Mapping[str, Any], status: str) -> str:
    component, variable = one.get("component") or {}, one.get("variable") or {}
    what = ".".join(part["name"] for part in (component, variable) if part.get("name"))
    info = one.get("attributeStatusInfo") or one.get("statusInfo") or {}
    parts = (what, status, info.get("reasonCode"), info.get("additionalInfo"))
    return ": ".join(str(part) for part in parts if part)
