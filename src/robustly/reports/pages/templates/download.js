(function () {
  "use strict";
  /* Downloads of figures and tables: made here in the browser from the page, as data URIs; nothing is loaded. */
  document.documentElement.classList.add("downloads");
  const WITH_INTERVAL = /^(-?[\d.]+) ?% \[([\d.]+), ([\d.]+)\]$/;
  const INTERVAL = /^\[([\d.]+), ([\d.]+)\]$/;
  const SHARE = /^(-?[\d.]+) ?%$/;
  const NUMBER = /^-?\d[\d ]*(\.\d+)?(e[+-]?\d+)?$/;
  const NONE = /^[\u2013-]?$/;

  /* A column in percent becomes numbers, and its intervals two more columns. */
  function columns(header, cells) {
    const named = header.replace(/ \(%\)$/, "");
    const all = (...kinds) => cells.every((cell) => NONE.test(cell) || kinds.some((kind) => kind.test(cell)));
    const some = (kind) => cells.some((cell) => kind.test(cell));
    const parts = (kind, count) => cells.map((cell) => (kind.exec(cell) || SHARE.exec(cell) || []).slice(1, count + 1));
    if (some(WITH_INTERVAL) && all(WITH_INTERVAL, SHARE)) {
      const found = parts(WITH_INTERVAL, 3);
      return ["", " low", " high"].map((end, i) => [`${named}${end} (%)`, ...found.map((row) => row[i] || "")]);
    }
    if (some(INTERVAL) && all(INTERVAL)) {
      const found = parts(INTERVAL, 2);
      return [" low", " high"].map((end, i) => [`${named}${end} (%)`, ...found.map((row) => row[i] || "")]);
    }
    if (some(SHARE) && all(SHARE)) return [[`${named} (%)`, ...parts(SHARE, 1).map((row) => row[0] || "")]];
    if (all(NUMBER)) return [[header, ...cells.map((cell) => (NONE.test(cell) ? "" : cell.replaceAll(" ", "")))]];
    return [[header, ...cells]];
  }

  function quoted(text) {
    const safe = /^[=+\-@\t\r]/.test(text) && !NUMBER.test(text) ? `'${text}` : text; // no formula in a spreadsheet
    return /[",;\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  }

  /* The text of a cell without its remarks; a number keeps its interval. */
  function plain(cell) {
    const copy = cell.cloneNode(true);
    for (const small of copy.querySelectorAll("small")) if (!/^\s*\[/.test(small.textContent)) small.remove();
    for (const remark of copy.querySelectorAll("em, details, .dot")) remark.remove();
    for (const part of copy.querySelectorAll("small")) part.before(" ");
    return copy.textContent.replace(/[\s\u202f]+/g, " ").trim();
  }

  function csv(table) {
    const rows = [...table.rows].filter((row) => !row.hidden).map((row) => [...row.cells]
      .filter((cell) => !cell.matches(".ruler-cell, .meaning")).map(plain));
    const found = rows[0].flatMap((header, i) => columns(header, rows.slice(1).map((row) => row[i] || "")));
    return rows.map((_, r) => found.map((column) => quoted(column[r])).join(",")).join("\r\n") + "\r\n";
  }

  function save(name, uri) {
    const link = document.createElement("a");
    link.download = name.replace(/[^\p{L}\p{N}._-]+/gu, "_").slice(0, 120);
    link.href = uri;
    link.click();
  }

  function loaded(uri) {
    return new Promise((resolve, reject) => {
      const image = new Image();
      image.onload = () => resolve(image);
      image.onerror = () => reject(new Error("the chart cannot be drawn"));
      image.src = uri;
    });
  }

  /* The chart as it is shown, in its theme, under its title and the name of its run. */
  async function png(plot, title, about) {
    const scale = 2, top = 56;
    const width = Math.max(plot.offsetWidth, 560), height = plot.offsetHeight;
    const size = { format: "png", width, height, scale };
    const image = await loaded(await window.Plotly.toImage({ data: plot.data, layout: plot.layout }, size));
    const canvas = document.createElement("canvas");
    canvas.width = width * scale;
    canvas.height = (height + top) * scale;
    const paint = canvas.getContext("2d"), style = window.getComputedStyle(plot.closest(".card"));
    paint.scale(scale, scale);
    paint.fillStyle = style.backgroundColor;
    paint.fillRect(0, 0, width, height + top);
    paint.fillStyle = style.color;
    paint.font = `600 15px ${style.fontFamily}`;
    paint.fillText(title, 14, 24, width - 28);
    paint.globalAlpha = 0.7;
    paint.font = `12.5px ${style.fontFamily}`;
    paint.fillText(about, 14, 43, width - 28);
    paint.globalAlpha = 1;
    paint.drawImage(image, 0, top, width, height);
    return canvas.toDataURL("image/png");
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-get]");
    if (!button) return;
    const card = button.closest("[data-name]"), name = card.dataset.name;
    if (button.dataset.get === "csv") {
      save(`${name}.csv`, `data:text/csv;charset=utf-8,${encodeURIComponent(csv(card.querySelector("table")))}`);
      return;
    }
    button.disabled = true;
    try {
      const title = card.querySelector("h3").textContent;
      save(`${name}.png`, await png(card.querySelector(".plot"), title, card.dataset.about));
    } finally {
      button.disabled = false;
    }
  });
})();
