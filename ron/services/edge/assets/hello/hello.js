// The Hello Map page: a Leaflet map over the node's own tiles, and a panel that polls /hello.json.
// Nothing here reaches another host, and whatever comes from the node enters the page as text.
"use strict";

(() => {
  const POLL_MS = 2000;
  const POLL_HIDDEN_MS = 20000;
  const BACKOFF_MAX_MS = 30000;
  const ANSWER_WITHIN_MS = 15000;
  const KEPT_ROUND_TRIPS = 30;
  const KEPT_LATENCIES = 200;
  const NATIVE_ZOOM = 5;
  const OVERZOOM = 7;
  const NARROW = window.matchMedia("(max-width: 640px)");
  const CALM = window.matchMedia("(prefers-reduced-motion: reduce)");
  const $ = (id) => document.getElementById(id);

  // -- small things ----------------------------------------------------------------------------------------------

  function say(element, text) {
    if (element.textContent !== text) element.textContent = text;
  }

  function pill(element, state, text) {
    element.dataset.state = state;
    say(element, text);
  }

  function complain(element, text) {
    say(element, text);
    element.hidden = text === "";
  }

  function milliseconds(value) {
    if (value >= 9950) return `${(value / 1000).toFixed(1)} s`;
    return value < 9.95 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`;
  }

  function whole(value) {
    return Math.round(value).toLocaleString("en").replace(/,/g, "\u202f");
  }

  function median(values) {
    const sorted = [...values].sort((a, b) => a - b);
    const middle = sorted.length >> 1;
    return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  }

  function draw(name, attributes) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  }

  function part(name, className, text = "") {
    const element = document.createElement(name);
    element.className = className;
    element.textContent = text;
    return element;
  }

  // -- the map ---------------------------------------------------------------------------------------------------

  const latencies = [];
  let tilesLoaded = 0;
  let tilesFailed = 0;

  /** The whole zoom at which the world is as high as the window: no grey beyond the poles, tiles shown as drawn. */
  function coveringZoom(container) {
    const height = Math.max(container.clientHeight, 256);
    return Math.min(NATIVE_ZOOM, Math.ceil(Math.log2(height / 256)));
  }

  /** What the tile took on the wire; null when the browser had it already. */
  function tileLatency(tile) {
    const timing = performance.getEntriesByName(tile.src).pop();
    if (!timing) return performance.now() - tile.startedAt;
    const fromCache = timing.transferSize === 0 && timing.decodedBodySize > 0;
    return fromCache ? null : timing.responseEnd - timing.startTime;
  }

  function tileCame({ tile }) {
    tilesLoaded += 1;
    document.body.dataset.tiles = String(tilesLoaded);
    const latency = tileLatency(tile);
    if (latency !== null) {
      latencies.push(latency);
      if (latencies.length > KEPT_LATENCIES) latencies.shift();
      say($("tile-last"), milliseconds(latency));
      say($("tile-median"), milliseconds(median(latencies)));
    }
    showTileCount();
  }

  function showTileCount() {
    say($("tile-count"), tilesFailed ? `${whole(tilesLoaded)} (${whole(tilesFailed)} failed)` : whole(tilesLoaded));
  }

  function startMap() {
    if (!window.L) {
      complain($("trouble"), "The map library did not load. Reload the page.");
      return;
    }
    const container = $("map");
    const map = L.map(container, {
      zoomControl: false,
      minZoom: coveringZoom(container),
      maxZoom: OVERZOOM,
      maxBounds: [[-85.0511, -Infinity], [85.0511, Infinity]],
      maxBoundsViscosity: 1,
      worldCopyJump: true,
      fadeAnimation: !CALM.matches,
      zoomAnimation: !CALM.matches,
      inertia: !CALM.matches,
    });
    map.attributionControl.setPrefix("Leaflet");
    L.control.zoom({ position: "bottomright" }).addTo(map);
    L.tileLayer("/tiles/{z}/{x}/{y}.png", {
      maxNativeZoom: NATIVE_ZOOM,
      maxZoom: OVERZOOM,
      keepBuffer: 1,
      attribution: "Made with Natural Earth",
    })
      .on("tileloadstart", ({ tile }) => { tile.startedAt = performance.now(); })
      .on("tileload", tileCame)
      .on("tileerror", () => { tilesFailed += 1; showTileCount(); })
      .on("load", () => performance.clearResourceTimings())
      .addTo(map);
    map.setView([22, 10], map.getMinZoom(), { animate: false });
    if (!NARROW.matches) map.panBy([-$("panel").offsetWidth / 2, 0], { animate: false });
    map.on("resize", () => map.setMinZoom(coveringZoom(container)));
  }

  // -- the panel -------------------------------------------------------------------------------------------------

  function setOpen(open) {
    document.body.dataset.panel = open ? "open" : "closed";
    $("toggle").setAttribute("aria-expanded", String(open));
    $("details").hidden = !open;
  }

  function startPanel() {
    const isOpen = () => document.body.dataset.panel === "open";
    setOpen(!NARROW.matches);
    NARROW.addEventListener("change", () => setOpen(!NARROW.matches));
    $("toggle").addEventListener("click", () => setOpen(!isOpen()));
    $("panel").addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !isOpen()) return;
      setOpen(false);
      $("toggle").focus();
    });
    $("copy").addEventListener("click", copyOnion);
    const throughOnion = location.hostname.endsWith(".onion");
    const loopback = /^(localhost|127(\.\d+){3}|\[::1\])$/.test(location.hostname);
    $("route").dataset.onion = throughOnion ? "yes" : "no";
    say($("route"), throughOnion
      ? "This page was loaded through the onion."
      : `This page was loaded ${loopback ? "over loopback" : "directly"}, not through the onion.`);
  }

  async function copyOnion() {
    const text = $("onion").textContent;
    let copied = true;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      copied = copyBySelection(text);
    }
    say($("copy"), copied ? "Copied" : "Press Ctrl+C");
    setTimeout(() => say($("copy"), "Copy"), 1800);
  }

  /** For browsers that do not count an onion as a secure context, where navigator.clipboard is missing. */
  function copyBySelection() {
    const range = document.createRange();
    range.selectNodeContents($("onion"));
    const selection = window.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    return document.execCommand("copy");
  }

  // -- the ping --------------------------------------------------------------------------------------------------

  const roundTrips = []; // milliseconds; null for a ping that failed
  const WORDS = { ok: "ok", failed: "failed", running: "under way", idle: "waiting" };
  let seenSeq = 0;

  /** The state of the last finished ping; while there is none, what is going on. */
  function finishedState(ping) {
    if (ping.seq === 0) return ping.state;
    return ping.error === null ? "ok" : "failed";
  }

  function showReport(report) {
    say($("network"), `RustyOnions · ${report.network} network`);
    pill($("node"), report.ready ? "ok" : "running", report.ready ? "ready" : "starting");
    $("copy").disabled = report.onion === null;
    say($("onion"), report.onion ?? "not published yet");
    showPing(report.ping);
  }

  function showPing(ping) {
    const finished = finishedState(ping);
    document.body.dataset.ping = finished;
    pill($("ping-state"), ping.state, WORDS[ping.state] ?? ping.state);
    complain($("ping-error"), finished === "failed" ? `The last ping failed: ${ping.error}` : "");
    say($("pings"), whole(ping.seq));
    if (ping.state !== "running" || ping.seq === 0) showSteps(ping.steps);
    if (finished === "ok") {
      say($("suite"), ping.suite);
      say($("sealed"), `${whole(ping.sealed_bytes)} B`);
      say($("roundtrip"), ping.roundtrip_ms < 10 ? ping.roundtrip_ms.toFixed(1) : whole(ping.roundtrip_ms));
    }
    if (ping.seq < seenSeq) roundTrips.length = 0; // the node was restarted
    if (ping.seq !== seenSeq) {
      seenSeq = ping.seq;
      if (ping.seq) remember(finished === "ok" ? ping.roundtrip_ms : null);
    }
  }

  function remember(roundTrip) {
    roundTrips.push(roundTrip);
    if (roundTrips.length > KEPT_ROUND_TRIPS) roundTrips.shift();
    drawSparkline($("spark"), roundTrips);
  }

  /** One row a step, as a waterfall: the bar starts where the steps before it ended. */
  function showSteps(steps) {
    const total = steps.reduce((sum, step) => sum + step.ms, 0) || 1;
    let before = 0;
    $("steps").replaceChildren(...steps.map((step) => {
      const bar = part("span", "step-bar");
      const fill = part("span", "step-fill");
      fill.style.marginLeft = `${(before / total) * 100}%`;
      fill.style.width = `${(step.ms / total) * 100}%`;
      bar.append(fill);
      before += step.ms;
      const row = part("li", "step");
      row.append(part("span", "step-name", step.name), part("span", "step-ms", milliseconds(step.ms)), bar);
      return row;
    }));
  }

  function drawSparkline(svg, values) {
    const [width, height, margin] = [150, 44, 5];
    const known = values.filter((value) => value !== null);
    const top = Math.max(...known, 1);
    const low = Math.min(...known, top);
    const x = (index) => width - margin - (values.length - 1 - index) * ((width - 2 * margin) / (KEPT_ROUND_TRIPS - 1));
    const y = (value) => height - margin - ((value - low * 0.8) / (top - low * 0.8 || 1)) * (height - 2 * margin);
    const points = values.flatMap((value, index) => (value === null ? [] : [[x(index), y(value)]]));
    const line = points.map(([px, py], index) => `${index ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
    const shapes = [];
    if (points.length > 1) {
      const [first, last] = [points[0][0], points[points.length - 1][0]];
      shapes.push(draw("path", { class: "spark-area", d: `${line}L${last.toFixed(1)} ${height}L${first.toFixed(1)} ${height}Z` }));
      shapes.push(draw("path", { class: "spark-line", d: line }));
    }
    values.forEach((value, index) => {
      if (value === null) shapes.push(draw("path", { class: "spark-fail", d: `M${x(index).toFixed(1)} ${height - 8}v8` }));
    });
    if (points.length) {
      const [px, py] = points[points.length - 1];
      shapes.push(draw("circle", { class: "spark-dot", cx: px.toFixed(1), cy: py.toFixed(1), r: 3 }));
    }
    svg.replaceChildren(...shapes);
    svg.setAttribute("aria-label", known.length
      ? `Last ${known.length} round trips, ${whole(low)} to ${whole(top)} milliseconds`
      : "No round trips yet");
  }

  // -- polling ---------------------------------------------------------------------------------------------------

  let failures = 0;
  let timer = 0;
  let polling = false;

  async function poll() {
    if (polling) return;
    polling = true;
    clearTimeout(timer);
    const giveUp = new AbortController();
    const deadline = setTimeout(() => giveUp.abort(), ANSWER_WITHIN_MS);
    try {
      const answer = await fetch("/hello.json", { cache: "no-store", signal: giveUp.signal });
      if (!answer.ok) throw new Error(`answer ${answer.status}`);
      showReport(await answer.json());
      failures = 0;
      complain($("trouble"), "");
    } catch (error) {
      failures += 1;
      pill($("node"), "failed", "no answer");
      complain($("trouble"), `The node does not answer (${failures}×). What you see may be old; next try in ${pause() / 1000} s.`);
    } finally {
      clearTimeout(deadline);
      polling = false;
      timer = setTimeout(poll, pause());
    }
  }

  function pause() {
    const wanted = document.hidden ? POLL_HIDDEN_MS : POLL_MS;
    return Math.max(wanted, Math.min(BACKOFF_MAX_MS, POLL_MS * 2 ** failures) * (failures > 0));
  }

  startPanel();
  startMap();
  poll();
  document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
  window.addEventListener("online", poll);
})();
