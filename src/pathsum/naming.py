"""Names of sites: qualified module paths, made unique."""

from __future__ import annotations

from collections import Counter


def common_prefix(paths: list[str]) -> str:
    """The deepest module that holds all of these."""
    split = [p.split(".") if p else [] for p in paths]
    if not split:
        return ""
    prefix = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        prefix.append(parts[0])
    return ".".join(prefix)


def numbered(names: list[str]) -> list[str]:
    """Names made unique: a name used more than once gets #1, #2, … in order."""
    total = Counter(names)
    seen: dict[str, int] = {}
    out = []
    for n in names:
        seen[n] = seen.get(n, 0) + 1
        out.append(f"{n}#{seen[n]}" if total[n] > 1 else n)
    return out
