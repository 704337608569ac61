// The dashboard: one document from /api/live, drawn anew whenever it changes. Text only goes into
// the page as text, never as markup; what nobody has measured is shown as a dash.

const byId = (id) => document.getElementById(id);
let seen = [];
let oneSite = false;

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== null));
  return node;
}

function draw(tag, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.textContent = text;
  return node;
}

// --- words and figures ---------------------------------------------------------------------

const KINDS = {
  online: "good", done: "good", confirmed: "good", moved: "good", closed: "good",
  running: "active", training: "active", building: "active", moving: "active", open: "active",
  fetching: "active", verifying: "active", staged: "active", probing: "active", canary: "active", active: "active",
  paused: "warn", late: "warn", refused: "warn", warning: "warn", rolled_back: "warn", stopped: "warn",
  halted: "bad", failed: "bad", error: "bad", aborted: "warn",
};
const state = (word, kind = KINDS[word] ?? "plain") =>
  make("span", { class: `state ${kind}` }, word.replaceAll("_", " "));

const figure = (value, digits = 0) =>
  value === null || value === undefined
    ? "–"
    : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
const milliseconds = (value) =>
  value === null || value === undefined ? "–" : `${figure(value, value < 10 ? 2 : 0)} ms`;
const rate = (value) => (value === null || value === undefined ? "–" : figure(value, value < 10 ? 1 : 0));
const bytes = (value) =>
  value >= 1e6 ? `${figure(value / 1e6, 1)} MB` : `${figure(value / 1e3, 1)} kB`;

// SITE/ID; where there is one site, its name is in the header already.
const named = (device) => (oneSite ? device.slice(device.indexOf("/") + 1) : device);

// What serves; then the version whose update is under way or did not stay, and before its state.
const way = ({ version, target }) =>
  (target && target !== version ? `${version ?? "none"} serves, ${target}` : version ?? "–");

const percent = (share) =>
  (share === null || share === undefined ? "" : ` ${Math.floor(share * 100)} %`);

function ago(ms) {
  const seconds = Math.max(0, Math.round((Date.now() - ms) / 1000));
  if (seconds < 5) return "now";
  if (seconds < 120) return `${seconds} s ago`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} days ago`;
}

function moment(ms) {
  const node = make("time", { datetime: new Date(ms).toISOString() }, ago(ms));
  node.title = new Date(ms).toLocaleString();
  seen.push([node, ms]);
  return node;
}

// --- tables and empty places ---------------------------------------------------------------

function table(columns, rows) {
  const head = columns.map(([label, kind]) => make("th", { class: kind ?? "", scope: "col" }, label));
  const body = rows.map((cells) =>
    make("tr", {}, ...cells.map((cell, at) => {
      const content = Array.isArray(cell) ? make("div", {}, ...cell) : cell;
      return make("td", { class: columns[at][1] ?? "", "data-label": columns[at][0] }, content);
    })));
  return make("table", { class: "stack" },
    make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
}

function empty(text, command) {
  return make("p", { class: "empty" }, `${text} `, command ? make("code", {}, command) : null);
}

// --- sections ------------------------------------------------------------------------------

function header(found) {
  byId("sites").textContent = found.sites.join(", ");
  const facts = [
    ["devices online", `${found.online} of ${found.known}`],
    ["messages since start", figure(found.messages.stored)],
    ["bundles", figure(found.bundles.length)],
  ];
  byId("summary").replaceChildren(...facts.map(([name, value]) =>
    make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  const word = found.connected ? "broker connected" : "broker not connected";
  byId("link").replaceChildren(state(word, found.connected ? "good" : "bad"));
}

function devices(found) {
  if (!found.devices.length) {
    return empty("No device has reported yet. Start the daemon on one:",
      "edgekitd --config /etc/edgekit/device.toml");
  }
  const rows = found.devices.map((device) => {
    const models = Object.entries(device.models);
    const each = (show) => (models.length
      ? models.map(([, model]) => make("span", { class: "model" }, show(model))) : "–");
    return [
      named(device.device),
      state(device.online ? "online" : "offline"),
      device.profile || "–",
      models.length
        ? models.map(([name, model]) => make("span", { class: "model" },
          `${name} ${way(model.state)} `, state(model.state.state),
          model.state.reason ? make("span", { class: "quiet", title: model.state.detail ?? "" },
            ` ${model.state.reason.replaceAll("_", " ")}`) : null))
        : "–",
      each((model) => rate(model.requests_per_s)),
      each((model) => milliseconds(model.p50_ms)),
      each((model) => milliseconds(model.p99_ms)),
      device.temperature_c === null ? "–" : `${figure(device.temperature_c)} °C`,
      moment(device.last_seen_ms),
    ];
  });
  const shown = table([
    ["Device", "name"], ["State"], ["Profile"], ["Models"], ["Requests/s", "number"],
    ["p50", "number"], ["p99", "number"], ["Temp.", "number"], ["Last message", "number"],
  ], rows);
  const more = found.known - found.devices.length;
  return more > 0
    ? make("div", {}, shown, empty(`${more} more devices:`, "edgekit fleet devices")) : shown;
}

function wave(one) {
  const bar = make("div", { class: "bar" });
  for (const part of ["moved", "moving", "failed", "late"]) {
    const piece = make("i", { class: part });
    piece.style.flexGrow = one[part];
    bar.append(piece);
  }
  const rest = make("i");
  rest.style.flexGrow = one.devices - one.moved - one.moving - one.failed - one.late;
  bar.append(rest);
  const failed = one.failed ? `, ${one.failed} failed` : "";
  const node = make("div", { class: "wave" }, bar,
    make("span", {}, `wave ${one.number}: ${one.moved} of ${one.devices}${failed}`));
  node.style.flex = `${one.devices} 1 0`;
  return node;
}

function rollouts(found) {
  if (!found.rollouts.length) {
    return empty("No rollout yet. Publish a bundle, then:",
      "edgekit rollout create --model NAME --version VERSION");
  }
  return make("div", {}, ...found.rollouts.map((one) => {
    const told = [
      ...one.devices.filter((device) => ["failed", "late", "skipped", "revoked", "stopped"].includes(device.outcome)),
      ...one.devices.filter((device) => device.outcome === "moving"),
    ];
    return make("div", { class: "item" },
      make("div", { class: "title" },
        make("h3", {}, `${one.id} · ${one.model} ${one.version}`), state(one.state)),
      one.reason ? make("p", { class: "reason" }, one.reason) : null,
      ...one.warnings.map((warning) => make("p", { class: "reason" }, `warning: ${warning}`)),
      make("div", { class: "waves" }, ...one.waves.map(wave)),
      told.length ? make("ul", { class: "devices" }, ...told.slice(0, 8).map((device) =>
        make("li", {}, `${named(device.device)} `,
          state(device.outcome === "moving" ? device.update : device.outcome),
          make("span", { class: "quiet" }, device.outcome === "moving"
            ? `${percent(device.progress)}${device.online ? "" : " offline"}` : ` ${device.reason}`)))) : null);
  }));
}

function curve(rounds) {
  const closed = rounds.filter((one) => one.loss_before !== null);
  if (closed.length < 2) return null;
  const values = closed.map((one) => one.loss_before);
  const [width, height, left, right, top, bottom] = [480, 150, 44, 12, 12, 24];
  const high = Math.max(...values), low = Math.min(...values, 0);
  const x = (at) => left + (at / (values.length - 1)) * (width - left - right);
  const y = (value) => top + ((high - value) / (high - low || 1)) * (height - top - bottom);
  const label = `Mean loss on the devices at the start of each round: ${values.map((v) => v.toFixed(3)).join(", ")}`;
  const svg = draw("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const value of [low, (low + high) / 2, high]) {
    svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(draw("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(2)));
  }
  svg.append(draw("polyline", { class: "line", points: values.map((v, at) => `${x(at)},${y(v)}`).join(" ") }));
  const every = Math.ceil(values.length / 10);
  values.forEach((value, at) => {
    svg.append(draw("circle", { class: "dot", cx: x(at), cy: y(value), r: 3 }));
    if (at % every === 0) {
      svg.append(draw("text", { x: x(at), y: height - 6, "text-anchor": "middle" }, closed[at].number));
    }
  });
  return make("div", {}, svg,
    make("p", { class: "reason" }, "Mean loss on the devices' own data when each round began"));
}

function candidate(one) {
  const found = one.candidate;
  if (!found || !found.metric || !found.base_metric) return null;
  return make("p", { class: "figure" },
    `${found.metric.name} on ${figure(found.metric.samples)} held-out samples: `,
    `${found.base_metric.value.toFixed(4)} → `, make("strong", {}, found.metric.value.toFixed(4)),
    found.accepted ? `, published as ${found.version}` : ", not published");
}

function series(found) {
  if (!found.series.length) {
    return empty("No federated round yet. With devices that train a model:",
      "edgekit round start --model NAME --source MODEL.onnx --data HELDOUT.npz --profile PROFILE");
  }
  return make("div", {}, ...found.series.map((one) => {
    const closed = one.rounds.filter((round) => round.state === "closed").length;
    // The candidate's own line has the figures already.
    const told = one.reason && one.reason !== one.candidate?.reason;
    const rows = one.rounds.map((round) => [
      String(round.number), state(round.state), `${round.accepted} of ${round.participants.length}`,
      round.loss_before === null ? "–" : `${round.loss_before.toFixed(3)} → ${round.loss_after.toFixed(3)}`,
      bytes(round.up_bytes),
      Object.entries(round.refused).map(([device, why]) => `${device}: ${why}`).join("; ") || "–",
    ]);
    return make("div", { class: "item" },
      make("div", { class: "title" },
        make("h3", {}, `${one.id} · ${one.model}, from ${one.base_version}`), state(one.state)),
      make("p", { class: "reason" },
        `${closed} of ${one.count} rounds closed${told ? ` · ${one.reason}` : ""}`),
      candidate(one), curve(one.rounds),
      rows.length ? make("details", { "data-key": `series-${one.id}` },
        make("summary", {}, "each round"),
        table([["Round"], ["State"], ["Updates", "number"], ["Loss in training", "number"],
          ["Up", "number"], ["Not counted"]], rows)) : null);
  }));
}

function variants(found) {
  byId("window").textContent = `last ${found.window_minutes} minutes, whole fleet`;
  if (!found.variants.length) return empty("No device has sent telemetry of a model yet.");
  return table([
    ["Model", "name"], ["Variant"], ["Requests", "number"], ["Errors", "number"],
    ["p50", "number"], ["p99", "number"],
  ], found.variants.map((one) => [
    `${one.model} ${one.version}`, one.variant, figure(one.requests), figure(one.errors),
    milliseconds(one.p50_ms), milliseconds(one.p99_ms),
  ]));
}

function bundles(found) {
  if (!found.bundles.length) return empty("Nothing is published yet:", "edgekit publish BUNDLE");
  return table([["Bundle", "name"], ["Profile"], ["Size", "number"], ["Published", "number"]],
    found.bundles.slice(0, 12).map((one) => [
      `${one.name} ${one.version}`, one.profile, bytes(one.size_bytes), moment(one.published_ms),
    ]));
}

function events(found) {
  if (!found.events.length) return empty("No device has reported an event yet.");
  return make("ol", {}, ...found.events.map((one) =>
    make("li", {}, moment(one.received_ms), state(one.level), make("span", {}, named(one.device)),
      make("span", {}, make("strong", {}, one.kind.replaceAll("_", " ")), one.message ? ` ${one.message}` : ""))));
}

// --- the page ------------------------------------------------------------------------------

const SECTIONS = { devices, rollouts, series, variants, bundles, events };

function show(found) {
  seen = [];
  oneSite = found.sites.length === 1;
  header(found);
  const open = new Set([...document.querySelectorAll("details[open]")].map((node) => node.dataset.key));
  for (const [id, section] of Object.entries(SECTIONS)) byId(id).replaceChildren(section(found));
  for (const node of document.querySelectorAll("details")) node.open = open.has(node.dataset.key);
}

const silent = () => byId("link").replaceChildren(state("coordinator does not answer", "bad"));

fetch("/api/overview").then((answer) => answer.json()).then(show).catch(silent);
const live = new EventSource("/api/live");
live.onmessage = (event) => show(JSON.parse(event.data));
live.onerror = silent;
setInterval(() => { for (const [node, ms] of seen) node.textContent = ago(ms); }, 1000);
