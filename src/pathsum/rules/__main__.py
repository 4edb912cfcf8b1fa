"""`python -m pathsum.rules`: the page docs/rules.md, from the rules themselves."""

from __future__ import annotations

import sys

from ..series import RULES
from . import HOMES

HEAD = """# What a series can pass through

Functions with a rule, by the file of `pathsum/rules` that holds it; written by `python -m pathsum.rules`. Each stands
for its spellings in `torch`, `torch.Tensor`, `torch.nn.functional`, `torch.special`, `torch.linalg`, `torch.fft`, and
for its in-place form. What becomes of the coefficients: [semantics.md](semantics.md). Anything else raises
`MissingRuleError`, which names the function, the module and the branch, and shows the line that adds a rule:
`ps.register_rule(torch.foo, handler)`, or `ps.register_rule(torch.foo, linear=True)` for a linear function.
"""


def page() -> str:
    """The page as Markdown."""
    groups: dict[str, set[str]] = {}
    for func, handler in RULES.items():
        owner = getattr(func, "__self__", None)
        getter = getattr(func, "__name__", "") == "__get__"
        name = getattr(owner, "__name__", "") if getter else getattr(func, "__name__", "")
        inner = getattr(handler, "handler", handler)
        home = inner.__module__.rsplit(".", 1)[-1]
        if home in HOMES:
            plain = name if name.startswith("__") else name.rstrip("_")
            plain = plain.removeprefix("linalg_").removeprefix("fft_")
            if not plain.startswith(("__i", "special_")):
                groups.setdefault(home, set()).add(plain)
    parts = [HEAD]
    for home in sorted(groups):
        doc = (sys.modules[f"pathsum.rules.{home}"].__doc__ or "").strip()
        names = ", ".join(f"`{n}`" for n in sorted(groups[home]))
        parts.append(f"## {home}\n\n{doc}\n\n{names}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
