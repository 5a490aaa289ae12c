"""What upstreams have spent, in a file that outlives them: several may append to one, and be killed while they do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.real.upstream.ask import Ask


@dataclass(frozen=True)
class Spent:
    """Tokens, of requests and answers together. counted: of whole answers, and of streams that came to their usage;
    broken_off: of streams that did not, as far as they came. What was in a killed upstream's hands is in neither."""

    counted: int = 0
    broken_off: int = 0


def append(path: str, ask: Ask) -> None:
    """One write, so that no line is mixed with another's."""
    usage = ask.usage
    if ask.usage_reported:
        line = f"counted {usage['total_tokens']}\n"
    elif ask.produced:
        line = f"broken_off {usage['prompt_tokens'] + ask.produced}\n"
    else:
        return
    with Path(path).open("a") as file:
        file.write(line)


def read(path: Path) -> Spent:
    spent = {"counted": 0, "broken_off": 0}
    for line in path.read_text().splitlines() if path.exists() else []:
        kind, _, tokens = line.partition(" ")
        spent[kind] += int(tokens)
    return Spent(**spent)
