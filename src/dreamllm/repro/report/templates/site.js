"use strict";

// ---- sorting: click a heading to sort, again to reverse; rows without a value stay last
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const rows = [...table.tBodies[0].rows];
  for (const [place, heading] of headings.entries()) {
    heading.querySelector("button").addEventListener("click", () => {
      const numeric = heading.classList.contains("num"), now = heading.getAttribute("aria-sort");
      const falling = numeric ? now !== "descending" : now === "ascending"; // numbers: the highest first
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const value = row => {
        const cell = row.cells[place];
        const text = (cell.dataset.sort ?? cell.textContent).trim();
        return numeric ? (text === "" ? NaN : Number(text)) : text;
      };
      const compare = (a, b) => {
        if (typeof a === "string") return a.localeCompare(b, "en", { numeric: true });
        if (Number.isNaN(a) || Number.isNaN(b)) return 0;
        return a - b;
      };
      const missing = row => Number.isNaN(value(row)) || value(row) === "";
      const sorted = rows.filter(row => !missing(row)).sort((a, b) => (falling ? -1 : 1) * compare(value(a), value(b)));
      table.tBodies[0].append(...sorted, ...rows.filter(missing));
    });
  }
}

// ---- claims: buttons show and hide the claims with a status
for (const button of document.querySelectorAll(".filter button")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    for (const claim of document.querySelectorAll(".claim")) {
      if (claim.dataset.status === button.dataset.status) claim.hidden = !shown;
    }
  });
}

// ---- lineage: a click on a number shows it in a dialog; without this script the link leads to the same text below
const dialog = document.getElementById("lineage");
document.addEventListener("click", event => {
  const link = event.target.closest("a");
  if (!link) return;
  if (link.classList.contains("number") && !event.ctrlKey && !event.metaKey) {
    event.preventDefault();
    const lineage = document.getElementById(link.hash.slice(1));
    document.getElementById("lineage-title").textContent = link.dataset.row + ", " + link.dataset.column;
    const facts = [["value", link.querySelector("span").textContent], ["95 % interval", link.querySelector("small")?.textContent],
      ["items", link.dataset.n], ["runs", link.dataset.seeds], ["cell", link.dataset.cell],
      ["measured on", lineage.querySelector("h3").textContent], ["protocol", link.dataset.protocol]];
    document.getElementById("lineage-cell").replaceChildren(...facts.filter(fact => fact[1]).map(([name, value]) => {
      const pair = document.createElement("div"), term = document.createElement("dt"), text = document.createElement("dd");
      term.textContent = name;
      text.textContent = value;
      pair.append(term, text);
      return pair;
    }));
    document.getElementById("lineage-steps").replaceChildren(lineage.querySelector(".steps").cloneNode(true));
    dialog.showModal();
    dialog.scrollTop = 0;
  } else if (dialog.open) {
    dialog.close();
  }
  openTarget(link.hash);
});
dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });

// ---- open the details that a link points to, and all of them for printing
function openTarget(hash) {
  const target = hash && document.getElementById(hash.slice(1));
  if (target instanceof HTMLDetailsElement) target.open = true;
}
openTarget(location.hash);
addEventListener("hashchange", () => openTarget(location.hash));
addEventListener("beforeprint", () => {
  for (const one of document.querySelectorAll("details:not([open])")) { one.open = true; one.dataset.printed = ""; }
});
addEventListener("afterprint", () => {
  for (const one of document.querySelectorAll("details[data-printed]")) { one.open = false; delete one.dataset.printed; }
});
