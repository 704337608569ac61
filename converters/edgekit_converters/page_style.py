"""The style sheet of a report: light and dark, from a telephone to a wide screen, and printed."""

_LIGHT = """
--bg:#f6f5f2;--card:#fff;--ink:#1b1f24;--soft:#59616b;--faint:#8b939d;--line:#e4e1da;
--ship:#0f766e;--ship-soft:#d5efeb;--float:#b45309;--float-soft:#fbead2;--lost:#9aa1ab;
--good:#15703b;--bad:#b42318;--warn:#8a4b08;--shade:#f1efea
"""
_DARK = """
--bg:#121518;--card:#1a1e22;--ink:#e8eaed;--soft:#a3acb7;--faint:#77808b;--line:#2c3238;
--ship:#2dd4bf;--ship-soft:#123a37;--float:#f5a524;--float-soft:#3d2c10;--lost:#6b7480;
--good:#4ade80;--bad:#f87171;--warn:#fbbf24;--shade:#22272c
"""

STYLE = (
    f":root{{{_LIGHT}}}"
    f"@media (prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
    # Paper is white whatever the screen is.
    f"@media print{{:root{{{_LIGHT};--bg:#fff}}}}"
    """
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:36px 20px 72px}
h1{font-size:34px;line-height:1.2;margin:0;letter-spacing:-.02em;overflow-wrap:anywhere}
h1 small{color:var(--soft);font-weight:400;font-size:.62em}
h2{font-size:20px;margin:0 0 4px;letter-spacing:-.01em}
h3{font-size:16px;margin:22px 0 4px}
h4{font-size:13px;margin:18px 0 6px;font-weight:600}figure>h4:first-child{margin-top:0}
p{margin:4px 0;color:var(--soft);max-width:78ch}
header>p b{color:var(--ink)}
small{font-size:12px;color:var(--soft)}
.over{text-transform:uppercase;letter-spacing:.09em;font-size:12px;color:var(--soft)}
.verdict{margin:16px 0 10px;padding:12px 16px;border:1px solid var(--line);
border-left:5px solid var(--warn);border-radius:10px;background:var(--card)}
.verdict p{margin:0;color:var(--ink);max-width:none}
.verdict.passed{border-left-color:var(--good)}.verdict.refused{border-left-color:var(--bad)}
.badge{display:inline-block;padding:1px 10px;margin-right:6px;border-radius:99px;border:1px solid;
font-weight:600;font-size:13px;color:var(--warn);white-space:nowrap}
.passed .badge{color:var(--good)}.refused .badge{color:var(--bad)}
ul{margin:6px 0 0;padding-left:20px;color:var(--soft)}li{margin:2px 0;overflow-wrap:anywhere}
ul.names{font:12px/1.5 ui-monospace,Menlo,Consolas,monospace;columns:3 220px}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
code{overflow-wrap:anywhere}
.digest{color:var(--soft);font-size:12px;word-break:break-all}
pre{background:var(--shade);border-radius:8px;padding:12px 14px;margin:10px 0;overflow-x:auto;
white-space:pre-wrap;overflow-wrap:anywhere}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin:18px 0 2px;font-size:14px}
nav a{color:var(--soft);text-decoration:none;border-bottom:1px solid var(--line)}
nav a:hover{color:var(--ink)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(160px,1fr));gap:12px;margin:14px 0}
.cards div,section{background:var(--card);border:1px solid var(--line);border-radius:12px}
.cards div{padding:13px 15px;display:flex;flex-direction:column}
.cards b{font-size:26px;line-height:1.25;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.cards span{font-size:14px}
.cards i{font-style:normal;color:var(--soft);font-size:12.5px;line-height:1.4;margin-top:2px}
.cards .absent b{color:var(--faint);font-size:18px;line-height:1.8}
section{margin-top:16px;padding:20px 22px;scroll-margin-top:12px}
figure{margin:14px 0 0}
figcaption{color:var(--soft);font-size:13px;max-width:78ch;margin-top:4px}
.explained{display:grid;grid-template-columns:minmax(0,2.4fr) minmax(190px,1fr);gap:8px 24px;
align-items:center}
.key{list-style:none;padding:0;margin:0 0 10px}.key li{display:flex;gap:8px;align-items:center}
.key svg{width:14px;flex:none}
svg{width:100%;height:auto;max-width:760px;display:block}
.pair{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(330px,100%),1fr));
gap:10px 28px}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(215px,100%),1fr));gap:14px}
.tile{border:1px solid var(--line);border-radius:10px;padding:10px;margin-top:8px;min-width:0}
.tile.changed{border-color:var(--float)}
.tile img{width:100%;max-height:190px;object-fit:contain;border-radius:6px;display:block;
background:var(--shade)}
.tile svg{background:var(--shade);border-radius:6px}
.tile dl{margin-top:8px;gap:1px 10px}
.seen{position:relative}
.tile .sight{position:absolute;inset:0;width:100%;height:100%;max-width:none;background:none}
.sight rect{fill:none;stroke-width:1.5;vector-effect:non-scaling-stroke}
.sight .alone{stroke-width:3}
.sight .float-box{stroke:#38bdf8}.sight .artefact-box{stroke:#fb923c;stroke-dasharray:5 3}
.sight .edge{stroke:#000;stroke-width:3;opacity:.45}.sight .edge.alone{stroke-width:5}
.sight .cells{image-rendering:pixelated}
.key.flat{display:flex;flex-wrap:wrap;gap:2px 18px;margin:8px 0 0;font-size:13px}
.numbers{font:12px/1.5 ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin-top:8px}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
th{text-align:left;color:var(--soft);font-weight:500;font-size:12.5px;white-space:nowrap;
vertical-align:bottom}
td,th{padding:7px 14px 7px 0;border-bottom:1px solid var(--line)}td{vertical-align:top}
td:last-child,th:last-child{padding-right:0}
.n{text-align:right;white-space:nowrap}
tr:last-child td{border-bottom:0}
.none{color:var(--faint);font-style:normal}
em{color:var(--warn);font-style:normal}
.tag,.level{display:inline-block;padding:0 8px;border-radius:99px;border:1px solid;font-size:12px;
line-height:19px;white-space:nowrap;color:var(--lost)}
.tag.ship{color:var(--ship);background:var(--ship-soft);border-color:transparent;font-weight:600}
.tag.open{color:var(--float)}.tag.lost{color:var(--soft);border-color:var(--line)}
.level.executed{color:var(--good)}.level.simulated,.level.estimated{color:var(--warn)}
.level.linted{color:var(--soft)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 16px;margin:12px 0 0;font-size:14px}
dt{color:var(--soft)}dd{margin:0;min-width:0;overflow-wrap:anywhere}
.tile dl{font-size:13px}
details{margin-top:12px;border-top:1px solid var(--line);padding-top:8px}
summary{cursor:pointer;color:var(--soft);font-size:14px}summary:hover{color:var(--ink)}
svg text{fill:var(--ink);font-size:12px}svg .tick,svg .axis,svg .num{fill:var(--soft)}
svg .tick,svg .num{font-size:11px}svg .grid{stroke:var(--line)}svg .base{stroke:var(--faint)}
svg .ship{fill:var(--ship)}svg .float{fill:var(--float)}
svg .open{fill:var(--card);stroke:var(--ship);stroke-width:2}
svg .lost{fill:var(--lost);opacity:.55}
svg rect.open{fill:var(--ship);stroke:none;opacity:.45}
svg .faint{opacity:.4;stroke:none}svg .open.faint{fill:var(--ship)}
svg .dot{fill:var(--ship);opacity:.5}svg .bar{fill:var(--ship);opacity:.85}
svg .share{fill:var(--lost);opacity:.6}
svg .interval{stroke:var(--soft);stroke-width:2}svg .median{stroke:var(--ink);stroke-width:2}
svg .front{fill:none;stroke:var(--ship);stroke-dasharray:5 4;opacity:.8}
svg .limit{stroke:var(--bad);stroke-dasharray:2 3;opacity:.8}
svg .signal{fill:none;stroke:var(--ship);stroke-width:1.5}
@media (max-width:560px){main{padding:20px 12px 48px}section{padding:16px 14px}h1{font-size:27px}
.cards{grid-template-columns:repeat(2,1fr);gap:8px}.cards div{padding:10px 12px}
.cards b{font-size:21px}.explained{grid-template-columns:1fr}
dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:6px}.wide{min-width:760px}svg .num{display:none}
.tile dl{grid-template-columns:max-content 1fr}.tiles{grid-template-columns:repeat(2,1fr);gap:8px}
svg text{font-size:15px}svg .tick{font-size:13px}}
@media print{body{font-size:12px}main{padding:0;max-width:none}nav{display:none}
section{padding:12px 14px}figure,.tile,tr,.cards div{break-inside:avoid}
h2,h3,h4,section>p,summary{break-after:avoid}
.scroll{overflow:visible}table{font-size:10.5px}td,th{padding:5px 8px 5px 0}th{font-size:10px}
details::details-content{content-visibility:visible;display:block}}
"""
).replace("\n", "")
