from collections.abc import Sequence


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
