"""What our pages look like: one frame, one style, nothing loaded from elsewhere and no script at all.

The style stands in the page; the Content-Security-Policy names its SHA-256 and forbids all else.
"""

from __future__ import annotations

import base64
import hashlib
import re
from html import escape
from typing import Final

from starlette.responses import HTMLResponse, Response

STYLE: Final = """
:root{color-scheme:light dark;--bg:#fdfdfc;--ink:#1d2126;--soft:#5b6570;--line:#dfe3e6;--well:#f3f5f6;--link:#0b5cad;
--get:#0a6b4f;--post:#8a4b00;--put:#5b3fa8;--bad:#a32431}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--ink:#e4e7ea;--soft:#9aa5b0;--line:#2c3238;--well:#1c2126;
--link:#7db8f7;--get:#57c79f;--post:#e8a35a;--put:#b39df0;--bad:#f08a94}}
*{box-sizing:border-box}
html{scroll-padding-top:1rem}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
a{color:var(--link);text-decoration-thickness:1px;text-underline-offset:2px}
code,pre,.path{font:.9em/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
code{background:var(--well);padding:.1em .35em;border-radius:4px;overflow-wrap:anywhere}
pre{background:var(--well);border:1px solid var(--line);border-radius:8px;padding:.8rem 1rem;overflow:auto}
pre code{background:none;padding:0}
.page{display:grid;grid-template-columns:17rem minmax(0,1fr);max-width:80rem;margin:0 auto}
nav{position:sticky;top:0;align-self:start;max-height:100vh;overflow:auto;padding:1.6rem 1rem 3rem 1.4rem;
font-size:.9rem;border-right:1px solid var(--line)}
nav a{text-decoration:none;color:var(--soft);display:block;padding:.12rem 0}
nav a:hover,nav a:focus{color:var(--link);text-decoration:underline}
nav b{display:block;margin-top:1rem;color:var(--ink)}
nav b:first-child{margin-top:0}
main{padding:1.6rem 2rem 6rem;min-width:0}
main.alone{max-width:44rem;margin:8vh auto 0}
h1{font-size:1.9rem;line-height:1.2;margin:.2rem 0 .6rem}
h2{margin:3rem 0 .4rem;font-size:1.4rem;border-bottom:1px solid var(--line);padding-bottom:.3rem}
h3{margin:0;font-size:1.05rem;display:flex;flex-wrap:wrap;gap:.6rem;align-items:baseline}
h4{margin:1.1rem 0 .3rem;font-size:.85rem;color:var(--soft);text-transform:uppercase;letter-spacing:.04em}
.soft{color:var(--soft)}
section.op{margin:1.6rem 0;padding:1.1rem 1.2rem 1.2rem;border:1px solid var(--line);border-radius:10px}
section.op:target,section.schema:target{border-color:var(--link);box-shadow:0 0 0 1px var(--link)}
section.schema{margin:1.2rem 0;padding:1rem 1.2rem;border:1px solid var(--line);border-radius:10px}
.verb{font-weight:700;font-size:.8rem;letter-spacing:.05em}
.GET{color:var(--get)}.POST{color:var(--post)}.PUT{color:var(--put)}
.hash{text-decoration:none;color:var(--line);margin-left:auto}
.hash:hover,.hash:focus{color:var(--link)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.93rem}
td,th{text-align:left;vertical-align:top;padding:.4rem .8rem .4rem 0;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:600;font-size:.82rem}
td:first-child{white-space:nowrap}
tr:last-child td{border-bottom:0}
.bad{color:var(--bad)}
summary{cursor:pointer;color:var(--link)}
@media (max-width:56rem){.page{display:block}nav{position:static;max-height:40vh;border:0;padding-bottom:1rem;
border-bottom:1px solid var(--line)}
main{padding:1.2rem}td:first-child{white-space:normal}}
@media print{nav{display:none}.page{display:block}}
""".strip()
_HASH: Final = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS: Final = {
    "content-security-policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}
_CODE: Final = re.compile(r"`([^`]+)`")
_LINK: Final = re.compile(r"\[((?:[^\[\]]|<code>[^<]*</code>)+)\]\((/[a-z0-9/#-]*)\)")


def page(title: str, body: str, status: int = 200) -> Response:
    """A whole page; `body` is HTML, `title` is text."""
    return HTMLResponse(
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{body}</body></html>",
        status,
        HEADERS,
    )


def words(text: str) -> str:
    """A line of text as HTML: names in backticks and links to our own pages are shown as such."""
    return _LINK.sub(r'<a href="\2">\1</a>', _CODE.sub(r"<code>\1</code>", escape(text)))


def prose(text: str) -> str:
    """Paragraphs, and lists of lines that begin with a star."""
    blocks = []
    for block in re.split(r"\n\n+", text.strip()):
        if block.startswith("* "):
            items = [" ".join(one.split()) for one in re.split(r"^\* ", block, flags=re.MULTILINE) if one.strip()]
            blocks.append("<ul>" + "".join(f"<li>{words(one)}</li>" for one in items) + "</ul>")
        else:
            blocks.append(f"<p>{words(' '.join(block.split()))}</p>")
    return "".join(blocks)
