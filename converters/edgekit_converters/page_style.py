"""The style sheet of a report: light and dark, from a telephone to a wide screen, and printed."""

STYLE = """
:root{--bg:#fbfaf8;--card:#fff;--ink:#1d2126;--soft:#5d6570;--line:#e3e0da;--ship:#0f766e;
--float:#b45309;--lost:#9aa1ab;--good:#166534;--bad:#b91c1c;--warn:#92400e}
@media (prefers-color-scheme:dark){:root{--bg:#14171a;--card:#1c2024;--ink:#e7e9ec;--soft:#9ba4af;
--line:#2d3338;--ship:#2dd4bf;--float:#f59e0b;--lost:#6b7280;--good:#4ade80;--bad:#f87171;
--warn:#fbbf24}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1080px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:34px;margin:0;letter-spacing:-.02em}h1 small{color:var(--soft);font-weight:400}
h2{font-size:19px;margin:0 0 4px}p{margin:4px 0;color:var(--soft)}header p b{color:var(--ink)}
.over{text-transform:uppercase;letter-spacing:.08em;font-size:12px}
.badge{display:inline-block;padding:2px 10px;border-radius:99px;border:1px solid;font-weight:600;
font-size:13px;color:var(--warn)}.badge.passed{color:var(--good)}.badge.refused{color:var(--bad)}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.digest{word-break:break-all;color:var(--soft);font-size:12px}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px;
white-space:pre-wrap;word-break:break-word}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px;
margin:20px 0 8px}
.cards div,section{background:var(--card);border:1px solid var(--line);border-radius:12px}
.cards div{padding:14px 16px;display:flex;flex-direction:column}
.cards b{font-size:26px;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.cards i{font-style:normal;color:var(--soft);font-size:13px}
section{margin-top:16px;padding:18px 20px}
figure{margin:12px 0 0}figcaption{color:var(--soft);font-size:13px}
svg{width:100%;height:auto;max-width:720px;display:block}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(300px,1fr));gap:16px}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:12px}
.tiles img{width:100%;border-radius:8px;display:block;image-rendering:auto}
.scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;margin-top:8px;
font-variant-numeric:tabular-nums}
th{text-align:left;color:var(--soft);font-weight:500;font-size:13px;white-space:nowrap}
td,th{padding:6px 12px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
tr:last-child td{border-bottom:0}td{overflow-wrap:break-word}em{color:var(--warn);font-style:normal}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 14px;margin:12px 0 0;font-size:13px}
dt{font-weight:600}dd{margin:0;color:var(--soft)}
svg text{fill:var(--ink);font-size:12px}svg .tick,svg .axis{fill:var(--soft)}
svg .tick{font-size:11px}svg .grid{stroke:var(--line)}svg .base{stroke:var(--soft)}
svg .ship{fill:var(--ship)}svg .float{fill:var(--float)}
svg .lost{fill:var(--card);stroke:var(--lost);stroke-width:2}
svg .faint{opacity:.45}svg .dot{fill:var(--ship);opacity:.5}svg .bar{fill:var(--ship);opacity:.8}
svg .interval{stroke:var(--soft);stroke-width:1.5}svg .median{stroke:var(--ink);stroke-width:2}
svg .front{fill:none;stroke:var(--soft);stroke-dasharray:4 4}
@media print{body{background:#fff}section,.cards div{break-inside:avoid}}
""".strip().replace("\n", "")
