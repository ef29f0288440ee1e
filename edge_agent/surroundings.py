"""What is around a controller, as links: its network, what that costs, and the site's fuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from edge_agent.links import Link, LinkState

MIB: Final = 1024 * 1024
Facts = dict[str, int | str]


def networks(traffic: Mapping[str, Any] | None) -> list[Link]:
    """A link for each interface that is configured, in use, or has carried something.

    Takes what the traffic keeper describes; its `order` is that of preference.
    """
    if traffic is None:
        return []
    used = traffic["in_use"]
    named = list(traffic["order"])
    busy = [name for name, size in traffic["month_bytes"].items() if size and name not in named]
    named += [*busy, *([used] if used is not None and used not in [*named, *busy] else [])]
    found = [_network(name, traffic) for name in named]
    if used is None:
        found.insert(0, Link(kind="network", name="", state=LinkState.TROUBLE, code="network.none"))
    return found


def _network(name: str, traffic: Mapping[str, Any]) -> Link:
    preferred = next(iter(traffic["order"]), name)
    costs, budget = name in traffic["metered"], traffic["monthly_budget_bytes"]
    month = traffic["month_bytes"].get(name)
    facts: Facts = {
        "today": _mib(traffic["today_bytes"].get(name, 0)),
        "month": "?" if month is None else _mib(month),
        "budget": "" if budget is None else str(budget // MIB),
        "preferred": preferred,
    }
    state, code = LinkState.OK, "network.in_use"
    why = traffic["troubles"].get(name, "")
    if name != traffic["in_use"]:
        state, code = (LinkState.TROUBLE, "network.dead") if why else (state, "network.standby")
    elif costs and traffic["level"] > 1:
        state, code = LinkState.TROUBLE, "network.nearly_used_up"
    elif costs and traffic["level"]:
        state, code = LinkState.WAITING, "network.thinned"
    elif name != preferred:
        state, code = LinkState.WAITING, "network.fallback"
    elif costs and budget is not None:
        code = "network.metered"
    return Link(kind="network", name=name, state=state, code=code, why=why, facts=facts)


def _mib(size: int) -> str:
    return f"{size / MIB:.1f}"


def sites(site: Mapping[str, Any] | None) -> list[Link]:
    """Who shares the fuse, what there is for vehicles, and how full it is.

    Takes what the agent describes of its site.
    """
    if site is None:
        return []
    others = site["neighbours"]
    load = site["measured_ma"] if site["measured_fresh"] else None
    flows = site["own_ma"] if load is None else load
    facts: Facts = {
        "limit": _amperes(site["limit_ma"]),
        "own": _amperes(site["own_ma"]),
        "room": _amperes(site["room_ma"] or site["limit_ma"]),
        "percent": _percent(flows, site["limit_ma"]),
    }
    if others is None:
        return [Link(kind="site", name="alone", state=LinkState.OK, code="site.alone", facts=facts)]
    facts["share"] = _amperes(others["safe_share_ma"])
    role = _follower if others["role"] == "follower" else _leader
    return [role(others, facts)]


def _follower(others: Mapping[str, Any], facts: Facts) -> Link:
    lease = others["lease_ma"]
    facts |= {
        "leader": others["leader"] or "?",
        "lease": "0.0" if lease is None else _amperes(lease),
        "left_s": (others["lease_left_ms"] or 0) // 1000,
    }
    state, code = LinkState.OK, "site.follower"
    if lease is None:
        state, code = LinkState.TROUBLE, "site.alone_for_now"
    return Link(
        kind="site",
        name="follower",
        state=state,
        code=code,
        why=others["trouble"],
        age_ms=others["leader_heard_ms"],
        facts=facts,
    )


def _leader(others: Mapping[str, Any], facts: Facts) -> Link:
    members = others["members"]
    silent = [one["station"] for one in members if one["trouble"] or not one["fresh"]]
    facts |= {"members": len(members), "silent": ", ".join(silent)}
    trouble = "; ".join(one["trouble"] for one in members if one["trouble"])
    state, code = LinkState.OK, "site.leader"
    if silent:
        state, code = LinkState.TROUBLE, "site.member_silent"
    return Link(kind="site", name="leader", state=state, code=code, why=trouble, facts=facts)


def _amperes(lines: Sequence[int]) -> str:
    """One number where all phases are the same."""
    shown = [f"{current / 1000:.1f}" for current in lines]
    return shown[0] if len(set(shown)) == 1 else "/".join(shown)


def _percent(lines: Sequence[int], limit: Sequence[int]) -> int:
    """Of the phase that is fullest."""
    return max(100 * one // most if most else 0 for one, most in zip(lines, limit, strict=True))
