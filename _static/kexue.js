// Filters the table of claims on the evidence page. Without this script the whole table is there and the controls are not.
document.addEventListener("DOMContentLoaded", () => {
  const filter = document.querySelector(".kx-filter");
  if (!filter) return;
  const [text, chapter, failed, count] = ["text", "chapter", "failed", "count"].map((name) => document.getElementById(`kx-filter-${name}`));
  const rows = [...document.querySelectorAll(".kx-evidence tbody tr")];
  const contents = rows.map((row) => row.textContent.toLowerCase());
  const apply = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      const keep = words.every((word) => contents[i].includes(word)) && (!chapter.value || row.dataset.chapter === chapter.value) && (!failed.checked || "failed" in row.dataset);
      row.hidden = !keep;
      shown += keep;
    });
    count.textContent = shown === rows.length ? `${shown} claims` : `${shown} of ${rows.length} claims`;
  };
  filter.hidden = false;
  filter.addEventListener("input", apply);
});

// Folded proofs and solutions are printed open.
addEventListener("beforeprint", () => document.querySelectorAll("details.kx-fold").forEach((fold) => (fold.open = true)));

// On a narrow screen a formula in the line that is wider than its column gets a line of its own, in which it scrolls.
const fitFormulas = () => {
  for (const formula of document.querySelectorAll("article span.math mjx-container")) {
    formula.classList.remove("kx-wide");
    const column = formula.closest("p, li, dd, td, div");
    const wide = formula.getBoundingClientRect().width > column.clientWidth && column.clientWidth > 0;
    formula.classList.toggle("kx-wide", wide);
    if (wide) formula.tabIndex = 0;
  }
};
addEventListener("load", () => {
  window.MathJax?.startup?.promise?.then(() => {
    fitFormulas();
    addEventListener("resize", fitFormulas);
    document.addEventListener("toggle", fitFormulas, true);
  });
});
