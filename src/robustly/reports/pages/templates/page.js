(function () {
  "use strict";
  const root = document.documentElement;
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const darkMedia = window.matchMedia("(prefers-color-scheme: dark)");
  const probe = document.createElement("span");
  probe.hidden = true;
  document.body.append(probe);

  /* Charts: colours are CSS variables, resolved for the theme in force. */
  function coloured(value, known) {
    if (typeof value === "string" && value.startsWith("var(--")) {
      if (!known.has(value)) {
        probe.style.color = value;
        known.set(value, window.getComputedStyle(probe).color);
      }
      return known.get(value);
    }
    if (Array.isArray(value)) return value.map((item) => coloured(item, known));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, coloured(item, known)]));
    }
    return value;
  }

  const settings = { displaylogo: false, displayModeBar: false, responsive: false };
  const resizer = new ResizeObserver((entries) => {
    window.requestAnimationFrame(() => {
      for (const entry of entries) {
        const plot = entry.target;
        if (plot.dataset.drawn && plot.offsetWidth > 0) draw(plot);
      }
    });
  });

  function draw(plot) {
    const figure = coloured(figures[plot.dataset.figure], new Map());
    const font = window.getComputedStyle(document.body).fontFamily;
    const layout = figure.layout;
    layout.width = plot.offsetWidth;
    layout.height = plot.offsetHeight;
    layout.font.family = font;
    layout.hoverlabel.font.family = font;
    layout.dragmode = false;
    if (root.classList.contains("printing")) {
      const small = { size: 8.5 };
      layout.font.size = layout.legend.font.size = small.size;
      for (const axis of [layout.xaxis, layout.yaxis]) if (axis.title) axis.title.font = small;
      for (const note of layout.annotations || []) note.font = { ...note.font, ...small };
      layout.margin = { ...layout.margin, l: 30, r: 4, t: 4, b: 28 };
    } else if (plot.offsetWidth < 460) {
      layout.margin = { ...layout.margin, l: 40, r: 8 };
      layout.legend.font.size = 12;
      if (layout.yaxis.title && layout.yaxis.tickformat) layout.yaxis.title = undefined;
    }
    const first = !plot.dataset.drawn;
    plot.dataset.drawn = "yes";
    window.Plotly.react(plot, figure.data, layout, settings);
    if (first) resizer.observe(plot);
  }

  function drawVisible() {
    for (const plot of document.querySelectorAll(".plot")) {
      if (!plot.dataset.drawn && plot.offsetWidth > 0) draw(plot);
    }
  }

  function redraw() {
    for (const plot of document.querySelectorAll(".plot[data-drawn]")) {
      if (plot.offsetWidth > 0) draw(plot);
      else delete plot.dataset.drawn;
    }
  }

  /* Theme. */
  function isDark() {
    return root.dataset.theme ? root.dataset.theme === "dark" : darkMedia.matches;
  }
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try { window.localStorage.setItem("robustly-theme", root.dataset.theme); } catch (error) { /* not kept */ }
    redraw();
  });
  darkMedia.addEventListener("change", redraw);

  /* Tabs: one panel of a group is shown. */
  function choose(button) {
    for (const other of button.parentElement.children) {
      const chosen = other === button;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      document.getElementById(other.dataset.panel).hidden = !chosen;
    }
    drawVisible();
    aimLinks();
  }
  for (const list of document.querySelectorAll("[data-tabs]")) {
    list.addEventListener("click", (event) => {
      const button = event.target.closest("[role=tab]");
      if (button) choose(button);
    });
    list.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const buttons = [...list.children];
      const next = buttons[(buttons.indexOf(document.activeElement) + step + buttons.length) % buttons.length];
      next.focus();
      choose(next);
    });
  }

  /* Navigation: links to a section of a run lead to the run that is shown. */
  const links = [...document.querySelectorAll(".links a")];
  function aimLinks() {
    for (const link of links) {
      if (!link.dataset.section) continue;
      const sections = [...document.querySelectorAll(`section[data-section="${link.dataset.section}"]`)];
      const shown = sections.find((section) => section.offsetWidth > 0);
      link.hidden = !shown;
      if (shown) link.hash = shown.id;
    }
  }
  const watched = new IntersectionObserver(
    (entries) => {
      for (const entry of entries) {
        if (!entry.isIntersecting) continue;
        for (const link of links) link.classList.toggle("here", link.hash === "#" + entry.target.id);
        const here = links.find((link) => link.classList.contains("here"));
        const strip = here && here.parentElement;
        if (here) strip.scrollTo({ left: here.offsetLeft - strip.offsetLeft - strip.clientWidth / 2 + here.offsetWidth / 2 });
      }
    },
    { rootMargin: "-20% 0px -70% 0px" },
  );
  document.querySelectorAll("main section[id]").forEach((section) => watched.observe(section));

  /* Tables that are wider than the screen fade at the side that has more, with a hint below. */
  const watch = new ResizeObserver((entries) => { for (const entry of entries) mark(entry.target); });
  function mark(box) {
    const room = box.scrollWidth - box.clientWidth;
    box.classList.toggle("wide", room > 4);
    box.classList.toggle("more", room > 4 && box.scrollLeft < room - 4);
  }
  for (const box of document.querySelectorAll(".scroll")) {
    const hint = document.createElement("p");
    hint.className = "hint";
    hint.textContent = "More columns: scroll sideways \u2192";
    box.after(hint);
    box.addEventListener("scroll", () => mark(box), { passive: true });
    watch.observe(box);
  }

  /* Enlarged pictures. */
  const viewer = document.getElementById("viewer");
  let shown = null;
  function enlarge(shot) {
    shown = shot;
    const words = viewer.querySelector(".viewer-words");
    words.textContent = shot.dataset.words;
    const pictures = [...shot.querySelectorAll("img")].map((image) => {
      const figure = document.createElement("figure");
      const large = document.createElement("img");
      const caption = document.createElement("figcaption");
      large.src = image.src;
      large.alt = image.alt;
      caption.textContent = image.dataset.title;
      figure.append(large, caption);
      return figure;
    });
    viewer.querySelector(".viewer-pictures").replaceChildren(...pictures);
    if (!viewer.open) viewer.showModal();
  }
  function turn(step) {
    const shots = [...shown.parentElement.children];
    enlarge(shots[(shots.indexOf(shown) + step + shots.length) % shots.length]);
  }
  document.addEventListener("click", (event) => {
    const shot = event.target.closest(".shot");
    if (shot) enlarge(shot);
  });
  viewer.querySelector(".close").addEventListener("click", () => viewer.close());
  viewer.querySelector(".previous").addEventListener("click", () => turn(-1));
  viewer.querySelector(".next").addEventListener("click", () => turn(1));
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", () => { if (shown) shown.focus(); });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") turn(-1);
    if (event.key === "ArrowRight") turn(1);
  });

  /* Paper: light, every panel open, charts as wide as the sheet. */
  let before = null;
  window.addEventListener("beforeprint", () => {
    before = { theme: root.dataset.theme, hidden: [...document.querySelectorAll(".panel[hidden]:not(.shelf)")] };
    root.dataset.theme = "light";
    root.classList.add("printing");
    for (const panel of before.hidden) panel.hidden = false;
    redraw();
    drawVisible();
  });
  window.addEventListener("afterprint", () => {
    if (!before) return;
    root.classList.remove("printing");
    if (before.theme) root.dataset.theme = before.theme;
    else delete root.dataset.theme;
    for (const panel of before.hidden) panel.hidden = true;
    redraw();
  });

  aimLinks();
  drawVisible();
})();
