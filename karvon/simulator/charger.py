"""A simulated charger: contactor, session, watchdog and an exact meter behind a register bank.

The meter is the referee of every test: it integrates what truly flowed. World time (vehicle,
energy) may run faster than the clock; the watchdog belongs to the wire and keeps the clock's time.
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass
from typing import Any, Final

from karvon.simulator.bank import ILLEGAL_VALUE, RefusedError, RegisterBank, Target, Values
from karvon.simulator.vehicle import MIN_CURRENT, NANOJOULES_PER_WH, Vehicle
from protocols.modbus.binding import Binding, Facts
from protocols.modbus.checks import POWER
from protocols.modbus.profile import FailsafeRegister, Number, Profile, Write
from protocols.modbus.values import Words, exact, factor, nearest

STEP_MS: Final = 100
OVERDRAW_ALLOWED_MS: Final = 5_000
WATCHDOG_ERROR: Final = 0x100


@dataclass(slots=True, kw_only=True)
class Session:
    """From the first release after plugging in until the vehicle leaves."""

    number: int
    evse: int
    energy_nj: int = 0
    started_ms: int
    ended_ms: int | None = None

    def shown(self) -> dict[str, Any]:
        return {**asdict(self), "energy_wh": self.energy_nj / NANOJOULES_PER_WH}


@dataclass(slots=True, kw_only=True)
class SimEvse:
    """One EVSE; limits in mA, energy in nJ."""

    number: int
    limit: int
    released: bool
    stopped: bool = False
    paused: bool = False
    error: int = 0
    vehicle: Vehicle | None = None
    session: Session | None = None
    lifetime_nj: int = 0
    shown_nj: int = 0
    timeout_s: int = 0
    fallback: int | None = None
    ceiling: int | None = None
    """Set by something else than Modbus: a dial inside, another controller."""
    overdrawn_ms: int = 0

    def situation(self, limit: int) -> str:
        if self.error:
            return "fault"
        if self.vehicle is None:
            return "empty"
        if self.stopped:
            return "stopped"
        if not self.released:
            return "waiting"
        offered = limit >= MIN_CURRENT and not self.paused
        return "charging" if offered and self.vehicle.wants else "ready"


class SimulatedCharger:
    """`advance(now)` steps it (clock seconds); `read` and `write` are the device's Modbus side."""

    def __init__(
        self,
        profile: Profile,
        *,
        evses: int,
        unit: int,
        speed: float,
        now: float,
        options: frozenset[str] = frozenset(),
    ) -> None:
        if profile.simulator is None or not profile.simulator.states:
            raise ValueError(f"profile {profile.profile} has no simulator block")
        self.profile, self.speed = profile, speed
        defaults = profile.simulator.defaults
        told = defaults.get(profile.identity.firmware or "")
        facts = Facts(
            firmware=None if told is None else str(told), registers=defaults, options=options
        )
        self.bank = RegisterBank(Binding(profile=profile, unit=unit, facts=facts), self._all(evses))
        self.millivolts = profile.evses.nominal_mv
        self.sessions: list[Session] = []
        self.violations: list[str] = []
        self.evses = {n: self._new_evse(n) for n in range(1, evses + 1)}
        self._real, self._left_ms, self.world_ms = now, 0.0, 0
        self._fed_at = now
        self._starving = False
        self.refresh()

    @staticmethod
    def _all(evses: int) -> range:
        return range(1, evses + 1)

    def _new_evse(self, number: int) -> SimEvse:
        defaults = self.profile.simulator.defaults if self.profile.simulator else {}
        block = self.profile.failsafe
        timeout = self._at_first(block.timeout, defaults) if block else 0
        fallback = self._at_first(block.fallback, defaults) if block else 0
        evse = SimEvse(
            number=number,
            limit=self.profile.evses.max_current_ma,
            released=not self.profile.release,
            timeout_s=int(timeout),
        )
        evse.fallback = self._fallback(int(fallback)) if block else None
        return evse

    def _at_first(self, register: FailsafeRegister, defaults: dict[str, int | str]) -> int:
        """Seconds or mA before anybody has written anything."""
        name = register.read_back or ""
        shown = int(register.fixed or defaults.get(name, 0))
        each = self.profile.registers.get(name)
        if each is None or each.unit not in POWER:
            return shown
        return shown * 1_000_000 // (self.millivolts * self.profile.evses.phases)

    def _fallback(self, milliamperes: int) -> int | None:
        register = self.profile.failsafe.fallback if self.profile.failsafe else None
        if register is None or register.write is None:
            return milliamperes
        for raw, means in ((register.none_raw, None), (register.stop_raw, 0)):
            if raw is not None and milliamperes == self._in_ma(register.write, raw):
                return means
        return milliamperes

    def advance(self, now: float) -> None:
        """Let the world run up to clock time `now`."""
        self._watch(now)
        self._left_ms += (now - self._real) * 1000 * self.speed
        self._real = now
        while self._left_ms >= STEP_MS:
            self._left_ms -= STEP_MS
            self.world_ms += STEP_MS
            for evse in self.evses.values():
                self._step(evse)
        self.refresh()

    def read(self, span: Any, now: float) -> Words:
        self.advance(now)
        words = self.bank.read(span)
        if self._feed_kind() == "reads":
            self._feed(now)
        return words

    def write(self, unit: int, function: int, address: int, words: Words, now: float) -> None:
        """Raises RefusedError."""
        self.advance(now)
        targets = self.bank.write(unit, function, address, words)
        raw = self._raw(targets[0], words)
        chosen = self._aimed_at(targets, raw)
        self._act(chosen, raw)
        kind = self._feed_kind()
        if kind in {"reads", "writes"} or self._feeds(chosen, kind):
            self._feed(now)
        self.refresh()

    def plug(self, vehicle: Vehicle, evse: int = 1) -> None:
        target = self.evses[evse]
        if target.vehicle is None:
            target.vehicle = vehicle
            if target.released:
                self._begin(target)

    def unplug(self, evse: int = 1) -> None:
        target = self.evses[evse]
        target.vehicle, target.stopped, target.error = None, False, 0
        target.released = not self.profile.release
        self.bank.unsigned.discard(evse)
        if target.session is not None:
            target.session.ended_ms = self.world_ms
            target.session = None

    def fault(self, code: int = 1, evse: int = 1) -> None:
        self.evses[evse].error = code
        self._cut(self.evses[evse])

    def clear(self, evse: int = 1) -> None:
        self.evses[evse].error = 0

    def set_ceiling(self, milliamperes: int | None, evse: int = 1) -> None:
        self.evses[evse].ceiling = milliamperes

    def reset_board(self) -> None:
        """A power cycle of the board: sessions, releases and limits are forgotten."""
        for evse in self.evses.values():
            self._cut(evse)
            evse.limit, evse.error, evse.shown_nj = self.profile.evses.max_current_ma, 0, 0
            evse.released, evse.stopped, evse.paused = not self.profile.release, False, False
            if evse.session is not None:
                evse.session.ended_ms, evse.session = self.world_ms, None

    def jump_register(self, wh: int, evse: int = 1) -> None:
        """The energy that is shown jumps by so much for good; what truly flowed stays true."""
        target = self.evses[evse]
        target.shown_nj = max(0, target.shown_nj + wh * NANOJOULES_PER_WH)

    def status(self) -> dict[str, Any]:
        """What truly is, for tests: the referee's view."""
        return {
            "world_s": self.world_ms / 1000,
            "watchdog_ran_out": self._starving,
            "violations": list(self.violations),
            "sessions": [session.shown() for session in self.sessions],
            "evses": [self._shown(evse) for evse in self.evses.values()],
        }

    def _shown(self, evse: SimEvse) -> dict[str, Any]:
        vehicle = evse.vehicle
        return {
            "evse": evse.number,
            "situation": evse.situation(self.limit(evse)),
            "plugged": vehicle is not None,
            "full": vehicle.full if vehicle else False,
            "released": evse.released,
            "contactor": self._closed(evse),
            "limit_ma": self.limit(evse),
            "set_limit_ma": evse.limit,
            "current_ma": vehicle.current if vehicle else 0,
            "power_w": self._power(evse),
            "energy_wh": evse.lifetime_nj / NANOJOULES_PER_WH,
            "session_wh": evse.shown_nj / NANOJOULES_PER_WH,
            "error": evse.error,
            "failsafe_s": evse.timeout_s,
            "failsafe_ma": evse.fallback,
        }

    def limit(self, evse: SimEvse) -> int:
        """The limit that holds now: set, or the fallback when the watchdog ran out."""
        limits = [evse.limit]
        if self._starving and evse.fallback is not None:
            limits.append(evse.fallback)
        if evse.ceiling is not None:
            limits.append(evse.ceiling)
        return min(limits)

    def _closed(self, evse: SimEvse) -> bool:
        return evse.situation(self.limit(evse)) == "charging" or bool(
            evse.vehicle and evse.vehicle.current and evse.released and not evse.error
        )

    def _power(self, evse: SimEvse) -> int:
        if evse.vehicle is None:
            return 0
        return evse.vehicle.current * self.millivolts * evse.vehicle.phases // 1_000_000

    def _step(self, evse: SimEvse) -> None:
        if evse.vehicle is None:
            return
        limit = self.limit(evse)
        situation = evse.situation(limit)
        if situation in {"waiting", "stopped", "fault"} and not evse.vehicle.stubborn:
            evse.vehicle.cut()
            return
        offered = limit if situation == "charging" else 0
        taken = evse.vehicle.step(offered, self.millivolts, STEP_MS)
        evse.lifetime_nj += taken
        evse.shown_nj += taken
        if evse.session is not None:
            evse.session.energy_nj += taken
        self._judge(evse, limit, situation)

    def _judge(self, evse: SimEvse, limit: int, situation: str) -> None:
        current = evse.vehicle.current if evse.vehicle else 0
        if current and situation in {"waiting", "stopped", "fault"}:
            self._violated(evse, f"{current} mA flow while {situation}")
        allowed = limit if situation == "charging" else 0
        evse.overdrawn_ms = evse.overdrawn_ms + STEP_MS if current > allowed else 0
        if evse.overdrawn_ms > OVERDRAW_ALLOWED_MS:
            self._violated(evse, f"more than {allowed} mA for over {OVERDRAW_ALLOWED_MS} ms")

    def _violated(self, evse: SimEvse, what: str) -> None:
        text = f"EVSE {evse.number}: {what}"
        if text not in self.violations:
            self.violations.append(text)

    def _cut(self, evse: SimEvse) -> None:
        if evse.vehicle is not None and not evse.vehicle.stubborn:
            evse.vehicle.cut()

    def _begin(self, evse: SimEvse) -> None:
        evse.shown_nj = 0
        number = len(self.sessions) + 1
        evse.session = Session(number=number, evse=evse.number, started_ms=self.world_ms)
        self.sessions.append(evse.session)
        self.bank.unsigned.add(evse.number)

    def _feed_kind(self) -> str:
        return self.profile.failsafe.fed_by.by if self.profile.failsafe else "none"

    def _feeds(self, target: Target, kind: str) -> bool:
        return (kind == "setpoint" and target.path == ("setpoint", "write")) or (
            kind == "life" and target.path[-1] == "life"
        )

    def _feed(self, now: float) -> None:
        self._fed_at = now
        if self._starving:
            self._starving = False
            for evse in self.evses.values():
                if evse.error == WATCHDOG_ERROR:
                    evse.error = 0

    def _watch(self, now: float) -> None:
        """No feed for the timeout: the fallback, or an error that ends the session."""
        for evse in self.evses.values():
            if not evse.timeout_s or self._starving or now - self._fed_at < evse.timeout_s:
                continue
            self._starving = True
        if self._starving:
            for evse in self.evses.values():
                if evse.fallback is None and evse.session and evse.released:
                    evse.error, evse.stopped, evse.released = WATCHDOG_ERROR, True, False
                    self._cut(evse)

    def _aimed_at(self, targets: tuple[Target, ...], raw: Number) -> Target:
        """One register may carry several fixed commands: the value says which."""
        for target in targets:
            if target.write.value is not None and target.write.value == raw:
                return target
        for target in targets:
            if target.write.value is None:
                return target
        raise RefusedError(ILLEGAL_VALUE)

    def _raw(self, target: Target, words: Words) -> Number:
        if target.write.function == 5:
            return words[0]
        order = self.bank.binding.word_order(target.write)
        ordered = words if order == "msw_first" else tuple(reversed(words))
        if target.write.type == "f32":
            return float(struct.unpack(">f", struct.pack(">2H", *ordered))[0])
        raw = 0
        for word in ordered:
            raw = raw << 16 | word
        return raw

    def _act(self, target: Target, raw: Number) -> None:
        evse = self.evses[target.evse]
        match target.path:
            case ("setpoint", "write"):
                self._set_limit(evse, target.write, raw)
            case ("setpoint", "pause", kind, _):
                evse.paused = kind == "write"
            case ("release", _):
                self._release(evse)
            case ("withhold", _):
                evse.stopped = evse.vehicle is not None
                evse.released = False
                self._cut(evse)
                self.bank.unsigned.discard(target.evse)
            case ("failsafe", _, "write") | ("failsafe", "restore", _):
                self._set_failsafe(target, raw)

    def _release(self, evse: SimEvse) -> None:
        evse.stopped = False
        evse.released = True
        if evse.vehicle is not None and evse.session is None:
            self._begin(evse)

    def _set_limit(self, evse: SimEvse, write: Write, raw: Number) -> None:
        setpoint = self.profile.setpoint
        if setpoint is None:
            raise RefusedError(ILLEGAL_VALUE)
        milliamperes = self._in_ma(write, raw)
        pause = setpoint.pause
        pauses = milliamperes < MIN_CURRENT or raw == pause.raw
        shown = exact(raw) * exact(write.scale)
        if not pauses and shown > exact(setpoint.range[1]):
            raise RefusedError(ILLEGAL_VALUE)
        if shown in {exact(value) for value in setpoint.never}:
            self._violated(evse, f"{float(shown):g} {write.unit} written, which it misreads")
        evse.limit = 0 if pauses else milliamperes

    def _set_failsafe(self, target: Target, raw: Number) -> None:
        block = self.profile.failsafe
        if block is None:
            return
        # A board has one watchdog, whatever EVSE it was written through.
        for evse in self.evses.values():
            if self._same(target.write, block.timeout):
                if target.write.value is None:  # what the profile restores may be no timeout: off
                    self._in_range(block.timeout, raw)
                evse.timeout_s = nearest(exact(raw) * exact(target.write.scale))
            elif self._same(target.write, block.fallback):
                meant = {block.fallback.none_raw, block.fallback.stop_raw, target.write.value}
                if raw not in meant:
                    self._in_range(block.fallback, raw)
                # a restoring write carries no unit: the fallback's own says what its number means
                evse.fallback = self._fallback(
                    self._in_ma(block.fallback.write or target.write, raw)
                )

    @staticmethod
    def _same(write: Write, register: FailsafeRegister) -> bool:
        return register.write is not None and write.address == register.write.address

    @staticmethod
    def _in_range(register: FailsafeRegister, raw: Number) -> None:
        if register.write is None or register.range is None:
            return
        low, high = (exact(bound) for bound in register.range)
        if not low <= exact(raw) * exact(register.write.scale) <= high:
            raise RefusedError(ILLEGAL_VALUE)

    def _in_ma(self, write: Write, raw: Number) -> int:
        varied = self.bank.binding.varied_write(write)
        shown = exact(raw) * exact(varied.scale)
        if varied.unit in POWER:
            watts = shown * (1000 if varied.unit == "kW" else 1)
            return int(watts * 1_000_000 / (self.millivolts * self.profile.evses.phases))
        return int(shown * (1000 if varied.unit == "A" else 1))

    def refresh(self) -> None:
        """Show the world in the registers."""
        self.bank.show({number: self._values(evse) for number, evse in self.evses.items()})

    def _values(self, evse: SimEvse) -> Values:
        simulator = self.profile.simulator
        limit = self.limit(evse)
        situation = evse.situation(limit)
        values: Values = dict(simulator.defaults) if simulator else {}
        vehicle = evse.vehicle
        current = vehicle.current if vehicle else 0
        phases = vehicle.phases if vehicle else 0
        for phase in (1, 2, 3):
            values[f"current_l{phase}"] = current if phase <= phases else 0
            values[f"voltage_l{phase}"] = self.millivolts
            values[f"power_l{phase}"] = self._power(evse) // phases if phase <= phases else 0
        values["power"] = self._power(evse)
        setpoint = self.profile.setpoint
        for name in {"modbus_limit", (setpoint and setpoint.read_back) or "modbus_limit"}:
            values[name] = self._shown_limit(name, evse.limit)
        values["applied_limit"] = self._shown_limit("applied_limit", 0 if evse.paused else limit)
        self._put_energy(values, evse)
        self._put_failsafe(values, evse)
        values["error"] = evse.error
        if simulator:
            values.update(simulator.states.get(situation, {}))  # type: ignore[call-overload]  # keys are checked by the profile
        if evse.error:
            values["error"] = evse.error
        return values

    def _shown_limit(self, name: str, limit: int) -> int:
        """In the unit of the register that shows it."""
        each = self.bank.fields.get(name)
        if each is None or each.unit not in POWER:
            return limit
        return limit * self.millivolts * self.profile.evses.phases // 1_000_000

    def _put_energy(self, values: Values, evse: SimEvse) -> None:
        energy = self.profile.energy
        values["session_energy"] = evse.shown_nj // NANOJOULES_PER_WH
        values["lifetime_energy"] = evse.lifetime_nj // NANOJOULES_PER_WH
        if energy is None or energy.field not in self.bank.fields:
            return
        count = evse.shown_nj if energy.kind == "session" else evse.lifetime_nj
        step = self.bank.binding.step(energy.field)
        wh = count // NANOJOULES_PER_WH
        wh -= wh % step
        modulus = self.bank.binding.modulus(energy.field) if energy.wraps else None
        values[energy.field] = wh % modulus if modulus else wh
        if energy.checked_by is not None:
            values[energy.checked_by] = evse.lifetime_nj // NANOJOULES_PER_WH

    def _put_failsafe(self, values: Values, evse: SimEvse) -> None:
        block = self.profile.failsafe
        if block is None:
            return
        if block.timeout.read_back:
            values[block.timeout.read_back] = evse.timeout_s
        if block.fallback.read_back:
            values[block.fallback.read_back] = self._fallback_shown(block.fallback, evse.fallback)

    def _fallback_shown(self, register: FailsafeRegister, fallback: int | None) -> int:
        """As the register has it: none and stop may be numbers of their own, and it may be W."""
        write, raw = register.write, None
        if fallback is None:
            raw = register.none_raw or 0
        elif fallback == 0:
            raw = register.stop_raw
        if write is None or raw is None:
            return self._shown_limit(register.read_back or "", fallback or 0)
        return nearest(exact(raw) * factor(write.scale, write.unit))
