from collections.abc import Iterable, Sequence

_FEW = 4  # names that are listed as they are

Pattern = tuple[frozenset[str], ...]  # per component of a dotted name, what may stand there


def covering(chosen: Sequence[str], everything: Sequence[str]) -> list[str]:
    """The chosen dotted names with whole modules as ``module.*``: as few entries as say the same."""
    wanted = set(chosen)
    out: dict[str, None] = {}
    for name in chosen:
        path = name.split(".")
        prefixes = (".".join(path[:length]) for length in range(1, len(path)))
        whole = (p for p in prefixes if all(n in wanted for n in everything if n.startswith(p + ".")))
        prefix = next(whole, None)
        out[name if prefix is None else f"{prefix}.*"] = None
    return list(out)


def collapsed(names: Sequence[str]) -> list[str]:
    """Names that differ in few places as one: ``layers.{0..15}.{q,v}_proj.weight``; each name is said once.

    Numbers are always put together, words where there are more than a few names.
    """
    patterns = [tuple(frozenset((part,)) for part in name.split(".")) for name in names]
    patterns = _merged(patterns, numbers=True)
    if len(names) > _FEW:
        patterns = _merged(patterns, numbers=False)
    return [".".join(_alternatives(part) for part in pattern) for pattern in patterns]


def _merged(patterns: Sequence[Pattern], *, numbers: bool) -> list[Pattern]:
    """Join the patterns that differ in one place only, from the last place to the first, until none do."""
    out = list(dict.fromkeys(patterns))
    for place in reversed(range(max(map(len, out), default=0))):
        rest: dict[Pattern, Pattern] = {}
        for pattern in out:
            fits = 1 < len(pattern) > place and (not numbers or _are_numbers(pattern[place]))
            others = (*pattern[:place], frozenset(("", "")), *pattern[place + 1 :]) if fits else pattern
            alike = rest.get(others)
            joined = pattern[place] | alike[place] if fits and alike else frozenset()
            rest[others] = (*pattern[:place], joined, *pattern[place + 1 :]) if joined else pattern
        out = list(rest.values())
    return out if len(out) == len(patterns) else _merged(out, numbers=numbers)


def _alternatives(words: Iterable[str]) -> str:
    """``{q,v}_proj`` for q_proj and v_proj, ``{0..3,7}`` for numbers."""
    words = sorted(words)
    if len(words) == 1:
        return words[0]
    if _are_numbers(words):
        return "{" + ",".join(_ranges(sorted(map(int, words)))) + "}"
    split = [word.split("_") for word in words]
    start = 0
    while all(len(parts) > start + 1 for parts in split) and len({parts[start] for parts in split}) == 1:
        start += 1
    stop = 0
    while all(len(parts) > start + stop + 1 for parts in split) and len({parts[-1 - stop] for parts in split}) == 1:
        stop += 1
    middle = ("_".join(parts[start : len(parts) - stop]) for parts in split)
    first, last = split[0][:start], split[0][len(split[0]) - stop :]
    return "_".join([*first, "{" + ",".join(middle) + "}", *last])


def _ranges(numbers: Sequence[int]) -> list[str]:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return [f"{run[0]}..{run[-1]}" if len(run) > 2 else ",".join(map(str, run)) for run in runs]


def _are_numbers(words: Iterable[str]) -> bool:
    return all(word.isdecimal() for word in words)
