"""The report's look: one HTML page with inline CSS, no scripts, nothing loaded from elsewhere."""

from collections.abc import Iterable, Sequence
from html import escape
from string import Template

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")

STYLE = """
:root { color-scheme: light dark; --ink: #1f2733; --quiet: #5b6675; --ground: #ffffff; --panel: #f5f7fa;
  --rule: #dfe3ea; --accent: #0072B2; --run-a: #cfe6f5; --run-b: #ffe6b8; --edge: #5b6675; --good: #00795a;
  --bad: #b34700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --quiet: #9aa5b4; --ground: #14181f; --panel: #1d232d;
  --rule: #323a47; --accent: #56B4E9; --run-a: #16425f; --run-b: #5a4310; --edge: #9aa5b4; --good: #4fc79d;
  --bad: #f0945a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.1rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.6rem 0 .6rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; } p { margin: .5rem 0; } .quiet, figcaption { color: var(--quiet); }
.box { background: var(--panel); border-left: 4px solid var(--accent); border-radius: 6px; padding: .7rem 1.1rem;
  margin: 1.2rem 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .92rem; }
th, td { text-align: right; padding: .42rem .7rem; border-bottom: 1px solid var(--rule); white-space: nowrap;
  font-variant-numeric: tabular-nums; }
th { color: var(--quiet); font-weight: 600; vertical-align: bottom; white-space: normal; min-width: 4.8rem; }
.words td:first-child, .words th:first-child, .two td:nth-child(2), .two th:nth-child(2) { text-align: left; }
tr.first td { border-top: 2px solid var(--rule); } tbody tr.first:first-child td { border-top: 0; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.1rem; margin: .8rem 0; }
dl.facts dt { color: var(--quiet); } dl.facts dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1.4rem 0 2rem; } figure img { width: 100%; height: auto; display: block; background: #fff;
  border: 1px solid var(--rule); border-radius: 8px; }
@media (prefers-color-scheme: dark) { figure img { filter: invert(.91) hue-rotate(180deg); } }
figcaption { font-size: .9rem; margin-top: .5rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: .2rem .9rem; }
.sample { margin: .5rem 0; min-width: 0; } .sample .head { font-size: .86rem; color: var(--quiet); }
.text { font: .88rem/1.75 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; background: var(--panel); border-radius: 6px; padding: .5rem .7rem; margin: .2rem 0; }
.prompt { color: var(--quiet); } .run { border-left: 1.5px solid var(--edge); padding: .1em 0; }
.a { background: var(--run-a); } .b { background: var(--run-b); } .blank { opacity: .5; }
.right { color: var(--good); } .wrong { color: var(--bad); }
a { color: var(--accent); } details { margin: .6rem 0; } summary { cursor: pointer; color: var(--accent); }
dl.glossary dt { font-weight: 600; margin-top: .7rem; } dl.glossary dd { margin: 0; color: var(--quiet); }
@media (max-width: 34rem) { dl.facts { grid-template-columns: 1fr; gap: 0; } dl.facts dd { margin-bottom: .5rem; }
  main { padding-top: 1.2rem; } h1 { font-size: 1.4rem; } th, td { padding: .35rem .45rem; } }
"""


def page(title: str, sections: Iterable[str]) -> str:
    """The whole document; `sections` are HTML already, the title is text."""
    return PAGE.substitute(title=escape(title), style=STYLE, body="\n".join(filter(None, sections)))


def table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1, group: bool = False) -> str:
    """A table of texts (escaped here).

    Args:
      head: column names.
      rows: as long as head, each.
      words: leading columns to align left, 1 or 2.
      group: a line above each change of the first column.
    """
    lines = []
    for i, row in enumerate(rows):
        mark = ' class="first"' if group and (i == 0 or rows[i - 1][0] != row[0]) else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
    columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    kind = "words two" if words == 2 else "words"
    body = "\n".join(lines)
    head_and_body = f"<thead><tr>{columns}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll"><table class="{kind}">{head_and_body}</table></div>'


def facts(pairs: Iterable[tuple[str, str]], kind: str = "facts") -> str:
    """A definition list of texts (escaped here)."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in pairs)
    return f'<dl class="{kind}">{items}</dl>'


def folded(summary: str, content: str, opened: bool = False) -> str:
    """A <details>; `content` is HTML already."""
    return f"<details{' open' if opened else ''}><summary>{escape(summary)}</summary>{content}</details>"
