(function () {
  "use strict";
  var kept = null;
  try { kept = window.localStorage.getItem("robustly-theme"); } catch (error) { kept = null; }
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
})();
