"""A flag as a dataclass field: its default, its help text, and its policy."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from vlm2vec.errors import InputError

Effect = Literal["result", "speed", "place"]
REQUIRED = dataclasses.MISSING
# Whether something is refused, and the message: the flag, what is wrong, the remedy.
Refusal = tuple[bool, str]

_POLICY = "policy"


@dataclass(frozen=True)
class Policy:
    """What a flag's value decides, and therefore where it is compared.

    Attributes:
        effect: "result": what the run computes; a resume refuses a different value. "speed": how fast it runs or what
            is reported, and "place": where something is stored; a resume may change both.
        per_node: Whether the value may differ between nodes, because the contents at that place are compared instead.
            All other values must be the same on every rank.
        compared_as: What a resume compares in place of the value, because the value alone does not decide the result.
        needs: The flag without which this one has no effect.
        decides_chunks: Whether it decides what chunks hold, and so how many of their graphs fit.
    """

    effect: Effect
    per_node: bool = False
    compared_as: str | None = None
    needs: str | None = None
    decides_chunks: bool = False

    @property
    def is_compared_on_resume(self) -> bool:
        """Whether a resume refuses a different value."""
        return self.effect == "result" and self.compared_as is None


def option(
    default: Any,
    text: str,
    effect: Effect = "result",
    *,
    metavar: str | None = None,
    per_node: bool = False,
    compared_as: str | None = None,
    needs: str | None = None,
    decides_chunks: bool = False,
) -> Any:
    """A field that is a flag.

    Args:
        default: Its default; a list for a flag with several values; `REQUIRED` for none.
        text: The flag's help: sentences that say what the value does and, if the default is None, what happens then.
        effect: See `Policy`, as for the rest.
        metavar: What stands for the value in help: DIR, FILE, NAME, or the choices "a|b". By the type if None: N for
            integers, FLOAT, true|false, TEXT.
        per_node: Whether nodes may have different values.
        compared_as: What a resume compares instead.
        needs: A flag of the same group.
        decides_chunks: Whether it decides what chunks hold.
    """
    metadata = {"help": text, _POLICY: Policy(effect, per_node, compared_as, needs, decides_chunks)}
    if metavar is not None:
        metadata["metavar"] = metavar
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def policies(group: Any) -> dict[str, Policy]:
    """The policies of a group's flags, by name; a flag without a policy decides the result."""
    return {each.name: each.metadata.get(_POLICY, Policy("result")) for each in dataclasses.fields(group)}


def given(group: Any, names: Iterable[str]) -> list[str]:
    """Those of a group's flags that differ from their defaults, with dashes."""
    defaults = _defaults(group)
    return [f"--{name}" for name in names if getattr(group, name) != defaults.get(name)]


def unused_refusals(group: Any) -> Iterator[Refusal]:
    """Refuses the flags of a group whose `needs` is not given."""
    dependent: dict[str, list[str]] = defaultdict(list)
    for name, policy in policies(group).items():
        if policy.needs is not None:
            dependent[policy.needs].append(name)
    for needed, names in dependent.items():
        yield no_effect(given(group, names), f"without --{needed}", when=not given(group, [needed]))


def no_effect(flags: list[str], why: str, when: bool = True) -> Refusal:
    """Refuses flags that would be ignored: "--a, --b: no effect without --c"."""
    return when and bool(flags), f"{', '.join(flags)}: no effect {why}"


def refuse(refusals: Iterable[Refusal]) -> None:
    """Raises the first refusal that applies.

    Raises:
        InputError: With the refusal's message.
    """
    for is_refused, message in refusals:
        if is_refused:
            raise InputError(message)


def _defaults(group: Any) -> dict[str, Any]:
    return {
        each.name: each.default if each.default_factory is dataclasses.MISSING else each.default_factory()
        for each in dataclasses.fields(group)
    }
